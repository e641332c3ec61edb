//! What can be seen of one instance from outside: its sockets, through the window on its network namespace, and which of
//! its processes hold them. Keeps no history but one, what postscreen said to whom: all else is the services'.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::postfix::discovery::socket_inodes;
use crate::postfix::processes::Smtpd;
use crate::postfix::services::{Listen, WatchedService};
use crate::postfix::{Master, discovery, locks};
use crate::probes::ListenerReading;
use crate::signals::service::{ListenerLook, Look, Slots};
use crate::signals::{AcceptQueue, ListenerId, Reading};
use crate::sock_diag::{Connection, ListenSocket, Owners, SockDiag, UnixListener};

#[derive(Debug)]
pub(super) struct Eyes {
    master: Master,
    /// Why there is no window, when there is none.
    sockets: Result<SockDiag, String>,
    owned: Option<Owned>,
    /// Of the connections behind postscreen, by inode: the smtpd that has each. What an smtpd has been handed it keeps
    /// until it closes it, so only who has none is looked into: a readlink for each of its descriptors.
    handed: HashMap<u32, i32>,
    screen: Screen,
}

/// How long it is taken for known which sockets are the master's, while the listening sockets are the same: to find out
/// costs a readlink for each of its hundred descriptors.
const OWNED_FOR: Duration = Duration::from_secs(10);

/// Which sockets are the master's, as of a moment ago.
#[derive(Debug)]
struct Owned {
    at: Instant,
    inodes: Rc<HashSet<u64>>,
    /// The listening sockets that there were then.
    listening: HashSet<u32>,
}

/// What postscreen has sent on each connection, by its cookie: the teaser of its pregreet test (postscreen_greet_banner).
///
/// Without it a client that was just handed over would look greeted, and silent since the teaser: six seconds, which is
/// above what is asked of a client that has really been greeted.
#[derive(Debug, Default)]
struct Screen(HashMap<[u8; 8], u64>);

impl Screen {
    /// Of `connections`, those that are held by `inodes`, with only that counted as sent which smtpd sent. One that was
    /// never seen in postscreen's hands was passed on at once, without a test and its teaser.
    fn behind(
        &mut self,
        connections: Vec<Connection>,
        inodes: &HashSet<u64>,
        handed_over: &HashSet<u64>,
    ) -> Vec<Connection> {
        let mut said = HashMap::with_capacity(connections.len());
        let mut held = Vec::new();
        for mut connection in connections.into_iter().filter(Connection::accepted) {
            let inode = u64::from(connection.inode);
            let teaser = if handed_over.contains(&inode) {
                self.0.get(&connection.cookie).copied().unwrap_or(0)
            } else {
                connection.bytes_sent
            };
            said.insert(connection.cookie, teaser);
            if inodes.contains(&inode) {
                connection.bytes_sent = connection.bytes_sent.saturating_sub(teaser);
                held.push(connection);
            }
        }
        self.0 = said;
        held
    }
}

/// The listening sockets of the master's network namespace, and which sockets are the master's own.
#[derive(Debug)]
struct Listening {
    all: Vec<ListenSocket>,
    unix: Vec<UnixListener>,
    owned: Rc<HashSet<u64>>,
}

/// What one look found of one service, before the probes' counts are added.
#[derive(Debug)]
pub(super) struct Found {
    at: Instant,
    smtpd: Reading<Vec<Smtpd>>,
    slots: Slots,
    listeners: Vec<ListenSocket>,
    no_listeners: String,
    handover: Option<Reading<AcceptQueue>>,
}

impl Eyes {
    pub(super) fn open(master: &Master) -> Self {
        let own = fs::metadata("/proc/self/ns/net").map(|meta| meta.ino());
        let opened = match own {
            Ok(inode) if inode == u64::from(master.netns) => SockDiag::open(),
            _ => SockDiag::open_in(Path::new(&format!("/proc/{}/ns/net", master.pid))),
        };
        let sockets = opened
            .map_err(|error| {
                format!(
                    "cannot open sock_diag in the network namespace of master {}: {error}",
                    master.pid
                )
            })
            // Its pid may have been somebody else's when the namespace was opened.
            .and_then(|window| match discovery::alive(master) {
                true => Ok(window),
                false => Err(format!("master {} is gone", master.pid)),
            });
        Self {
            master: master.clone(),
            sockets,
            owned: None,
            handed: HashMap::new(),
            screen: Screen::default(),
        }
    }

    /// The window itself, for whoever closes a connection.
    pub(super) fn window(&mut self) -> Option<&mut SockDiag> {
        self.sockets.as_mut().ok()
    }

    /// Looks at each of `services`; the kernel is not asked for the connections of one that is known to have none
    /// (`true`). `screened` is where postscreen listens, if it does: the connections of a pass service
    /// come in there.
    pub(super) fn look<'a>(
        &mut self,
        services: impl Iterator<Item = (&'a WatchedService, bool)>,
        screened: &[Listen],
        smtpd: &Reading<Rc<[Smtpd]>>,
        now: Instant,
    ) -> Vec<Found> {
        let services: Vec<_> = services.collect();
        let behind = services.iter().any(|(service, _)| service.id.kind == "pass");
        let listening = self.listening(behind, now);
        services
            .into_iter()
            .map(|(service, vacant)| {
                let everyones = smtpd;
                let smtpd = smtpd.as_ref().map(|all| {
                    let ours = all.iter().filter(|one| one.service == service.id);
                    ours.cloned().collect::<Vec<_>>()
                });
                match &listening {
                    Ok(listening) if service.id.kind == "pass" => {
                        self.behind(service, screened, smtpd, everyones, listening, now)
                    }
                    Ok(listening) => self.in_front(service, vacant, smtpd, listening, now),
                    Err(reason) => self.blind(service, smtpd, reason, now),
                }
            })
            .collect()
    }

    /// With the sockets of the file system only if `behind`: they are a walk over all of the machine's.
    fn listening(&mut self, behind: bool, now: Instant) -> Result<Listening, String> {
        let diag = self.sockets.as_mut().map_err(|reason| reason.clone())?;
        let listed = |error| format!("sock_diag does not list the listening sockets: {error}");
        let all = diag.listeners().map_err(listed)?;
        let unix = if behind {
            // Not every kernel has unix_diag.
            diag.unix_listeners().unwrap_or_default()
        } else {
            Vec::new()
        };
        let inodes = all.iter().map(|one| one.inode);
        let inodes = inodes.chain(unix.iter().map(|one| one.inode)).collect();
        let owned = self.owned(inodes, now)?;
        Ok(Listening { all, unix, owned })
    }

    fn owned(&mut self, listening: HashSet<u32>, now: Instant) -> Result<Rc<HashSet<u64>>, String> {
        if let Some(known) = &self.owned
            && known.listening == listening
            && now.saturating_duration_since(known.at) < OWNED_FOR
        {
            return Ok(Rc::clone(&known.inodes));
        }
        let inodes = socket_inodes(self.master.pid)
            .map_err(|error| format!("cannot list the sockets of master {}: {error}", self.master.pid))?;
        let inodes = Rc::new(inodes);
        self.owned = Some(Owned {
            at: now,
            inodes: Rc::clone(&inodes),
            listening,
        });
        Ok(inodes)
    }

    /// A service that accepts its connections itself.
    fn in_front(
        &mut self,
        service: &WatchedService,
        vacant: bool,
        smtpd: Reading<Vec<Smtpd>>,
        listening: &Listening,
        now: Instant,
    ) -> Found {
        let listeners = listening.of(&service.listens);
        if listeners.is_empty() {
            return self.blind(
                service,
                smtpd,
                "the master listens on no socket for this service",
                now,
            );
        }
        let connections = if vacant {
            Ok(Vec::new())
        } else {
            self.connections(listening, &listeners)
        };
        let slots = match connections {
            Ok(connections) => Slots::Connections(Reading::sampled(connections, now)),
            Err(reason) => return self.blind(service, smtpd, &reason, now),
        };
        Found {
            at: now,
            smtpd,
            slots,
            listeners,
            no_listeners: String::new(),
            handover: None,
        }
    }

    /// A service behind postscreen, which accepts the connections and hands them over through a socket of its own: what
    /// its smtpd processes have open is what they hold.
    fn behind(
        &mut self,
        service: &WatchedService,
        screened: &[Listen],
        smtpd: Reading<Vec<Smtpd>>,
        everyones: &Reading<Rc<[Smtpd]>>,
        listening: &Listening,
        now: Instant,
    ) -> Found {
        let in_front = listening.of(screened);
        let held = self.connections(listening, &in_front).map(|connections| {
            let pids = |smtpd: Option<&[Smtpd]>| -> Vec<i32> {
                smtpd.unwrap_or_default().iter().map(|one| one.pid).collect()
            };
            self.see_handed(&connections, &pids(everyones.value().map(Rc::as_ref)));
            let ours = pids(smtpd.value().map(Vec::as_slice));
            let inodes = |wanted: &dyn Fn(i32) -> bool| -> HashSet<u64> {
                let handed = self.handed.iter().filter(|&(_, &pid)| wanted(pid));
                handed.map(|(&inode, _)| u64::from(inode)).collect()
            };
            let (own, handed_over) = (inodes(&|pid| ours.contains(&pid)), inodes(&|_| true));
            self.screen.behind(connections, &own, &handed_over)
        });
        let slots = match held {
            Ok(held) if !in_front.is_empty() => Slots::Connections(Reading::sampled(held, now)),
            Ok(_) | Err(_) => Slots::BusyByLock(self.busy_by_lock(service, &smtpd, now)),
        };
        let name = std::ffi::OsStr::new(&service.id.name);
        let queue = listening.unix.iter().find(|one| {
            listening.owned.contains(&u64::from(one.inode)) && one.path.file_name() == Some(name)
        });
        let handover = match queue {
            Some(one) => Reading::sampled(
                AcceptQueue {
                    depth: one.depth,
                    limit: one.backlog,
                    high_water: one.depth,
                },
                now,
            ),
            None => {
                Reading::unavailable("unix_diag does not list the socket that postscreen hands over through")
            }
        };
        let no_listeners =
            "a pass service has no TCP listener; its connections come through postscreen".into();
        Found {
            at: now,
            smtpd,
            slots,
            listeners: Vec::new(),
            no_listeners,
            handover: Some(handover),
        }
    }

    /// Finds out which of `connections` the smtpd processes `pids` have.
    fn see_handed(&mut self, connections: &[Connection], pids: &[i32]) {
        let accepted = connections.iter().filter(|one| one.accepted());
        let present: HashSet<u32> = accepted.map(|one| one.inode).collect();
        self.handed.retain(|inode, _| present.contains(inode));
        if present.iter().all(|inode| self.handed.contains_key(inode)) {
            return;
        }
        let taken: HashSet<i32> = self.handed.values().copied().collect();
        for pid in pids.iter().filter(|pid| !taken.contains(pid)) {
            // A process that has just ended holds nothing.
            let inodes = socket_inodes(*pid).unwrap_or_default();
            let inodes = inodes.into_iter().filter_map(|inode| u32::try_from(inode).ok());
            self.handed.extend(
                inodes
                    .filter(|inode| present.contains(inode))
                    .map(|inode| (inode, *pid)),
            );
        }
    }

    /// Without the sockets: the lock that idle processes wait for still tells how many are busy.
    fn blind(
        &self,
        service: &WatchedService,
        smtpd: Reading<Vec<Smtpd>>,
        reason: &str,
        now: Instant,
    ) -> Found {
        let slots = Slots::BusyByLock(self.busy_by_lock(service, &smtpd, now));
        Found {
            at: now,
            smtpd,
            slots,
            listeners: Vec::new(),
            no_listeners: reason.to_owned(),
            handover: None,
        }
    }

    fn busy_by_lock(
        &self,
        service: &WatchedService,
        smtpd: &Reading<Vec<Smtpd>>,
        now: Instant,
    ) -> Reading<u32> {
        if !service.lock_tells_idle() {
            return Reading::unavailable("a service with one process has no lock to tell busy from idle by");
        }
        match (smtpd, locks::idle_by_lock(&self.master, &service.id)) {
            (Reading::Unavailable(reason), _) => Reading::unavailable(reason),
            // No process of the service has run yet.
            (Reading::Known { value, .. }, _) if value.is_empty() => Reading::sampled(0, now),
            (_, Err(error)) => Reading::unavailable(format!("cannot tell idle smtpd by their lock: {error}")),
            (Reading::Known { value, .. }, Ok(idle)) => {
                let busy = value.iter().filter(|one| !idle.contains(&one.pid)).count();
                Reading::sampled(u32::try_from(busy).unwrap_or(u32::MAX), now)
            }
        }
    }

    /// The connections that came in through `listeners`. A wildcard listener does not own what came in through somebody
    /// else's socket on the very address.
    fn connections(
        &mut self,
        listening: &Listening,
        listeners: &[ListenSocket],
    ) -> Result<Vec<Connection>, String> {
        let diag = self.sockets.as_mut().map_err(|reason| reason.clone())?;
        let ports: HashSet<u16> = listeners.iter().map(|socket| socket.address.port()).collect();
        let on_port: Vec<_> = listening
            .all
            .iter()
            .map(|socket| socket.address)
            .filter(|address| ports.contains(&address.port()))
            .collect();
        let ours: HashSet<_> = listeners.iter().map(|socket| socket.address).collect();
        let owners = Owners::among(on_port.iter().copied());
        let all = diag
            .connections(&on_port)
            .map_err(|error| format!("sock_diag does not list the connections: {error}"))?;
        let mine = |one: &Connection| owners.of(one.local).is_some_and(|socket| ours.contains(&socket));
        Ok(all.into_iter().filter(mine).collect())
    }
}

impl Listening {
    /// The master's own sockets among those that `listens` can mean.
    fn of(&self, listens: &[Listen]) -> Vec<ListenSocket> {
        let ours = |socket: &&ListenSocket| {
            self.owned.contains(&u64::from(socket.inode))
                && listens.iter().any(|listen| listen.matches(socket.address))
        };
        self.all.iter().filter(ours).copied().collect()
    }
}

impl Found {
    /// With what the probes counted, in the network namespace `netns`. It is judged at `judged`, after the look: a
    /// daemon that was stopped or starved in its midst is to see that its readings are stale.
    pub(super) fn combine(
        self,
        service: &WatchedService,
        netns: u32,
        probed: &HashMap<ListenerId, ListenerReading>,
        judged: Instant,
    ) -> Look {
        let listeners = self.listeners.into_iter().map(|socket| {
            let id = ListenerId {
                netns,
                address: socket.address,
            };
            ListenerLook {
                id,
                socket,
                probed: probed.get(&id).cloned(),
            }
        });
        Look {
            at: judged,
            limit: Reading::exact(service.limit, self.at),
            own_limit: service.own_limit,
            smtpd: self.smtpd,
            slots: self.slots,
            listeners: listeners.collect(),
            no_listeners: self.no_listeners,
            handover: self.handover,
        }
    }
}
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn connection(cookie: u8, bytes_sent: u64) -> Connection {
        Connection {
            local: "192.0.2.1:25".parse().unwrap(),
            remote: "198.51.100.7:40000".parse().unwrap(),
            cookie: [cookie; 8],
            interface: 0,
            inode: cookie.into(),
            client_closed: false,
            bytes_sent,
            bytes_received: 0,
            rtt: Duration::from_millis(30),
            since_sent: Duration::from_secs(6),
            since_received: Duration::from_secs(6),
        }
    }

    fn sent(held: &[Connection]) -> Vec<(u8, u64)> {
        held.iter().map(|one| (one.cookie[0], one.bytes_sent)).collect()
    }

    #[test]
    fn the_teaser_of_postscreen_is_no_greeting_of_smtpd() {
        let mut screen = Screen::default();
        let (nobody, smtpd) = (HashSet::new(), HashSet::from([1]));
        assert_eq!(screen.behind(vec![connection(1, 24)], &nobody, &nobody), []);
        let held = screen.behind(vec![connection(1, 24), connection(2, 24)], &smtpd, &smtpd);
        assert_eq!(sent(&held), [(1, 0)], "handed over, and not greeted yet");
        let held = screen.behind(vec![connection(1, 24 + 31)], &smtpd, &smtpd);
        assert_eq!(sent(&held), [(1, 31)]);
    }

    #[test]
    fn a_client_that_postscreen_knows_is_handed_over_without_a_teaser() {
        let mut screen = Screen::default();
        let smtpd = HashSet::from([1]);
        assert_eq!(
            sent(&screen.behind(vec![connection(1, 31)], &smtpd, &smtpd)),
            [(1, 31)]
        );
        assert_eq!(
            sent(&screen.behind(vec![connection(1, 60)], &smtpd, &smtpd)),
            [(1, 60)]
        );
    }

    #[test]
    fn what_another_pass_service_holds_has_left_postscreen_too() {
        let mut screen = Screen::default();
        let (nobody, theirs) = (HashSet::new(), HashSet::from([1]));
        screen.behind(vec![connection(1, 24)], &nobody, &nobody);
        screen.behind(vec![connection(1, 55)], &nobody, &theirs);
        let held = screen.behind(vec![connection(1, 55)], &theirs, &theirs);
        assert_eq!(sent(&held), [(1, 31)]);
    }
}
