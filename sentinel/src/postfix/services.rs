//! Which entries of master.cf are watched, and which of them may be touched.
//!
//! Every smtpd that listens (`inet`) or gets its clients from postscreen (`pass`) is watched. Touched are only those
//! that the configuration names, and never one where stress mode would overrule the admin or hurt his own users.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use jiff::Timestamp;

use super::ServiceId;
use super::edit::{self, EditError};
use super::endpoint::{Endpoint, Names, canonical_name, same_service};
use super::headroom;
use super::main_cf::{Settings, list};
use super::master_cf::{Entry, Field, MasterCf};
use crate::signals::ProcessLimit;

pub use super::endpoint::port;

/// One entry that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedService {
    /// As it stands in master.cf, and on the command lines of its processes.
    pub id: ServiceId,
    pub limit: ProcessLimit,
    /// What the administrator has there, while headroom of ours is on the entry.
    pub own_limit: Option<u32>,
    /// Where it should listen; empty for `pass`, whose clients come in through postscreen. The sockets that master
    /// holds are the truth, this is the way to tell which of them are of this service.
    pub listens: Vec<Listen>,
    /// Whether master itself gives its processes `-o stress=`: one that is public and has a limit above 1
    /// (Postfix src/master/master_ent.c get_master_ent()).
    pub native: bool,
    /// Whether we may put stress on it; if not, why, in one sentence.
    pub actionable: Result<(), String>,
}

/// A place where a service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub host: ListenHost,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenHost {
    /// All addresses.
    Any,
    Address(IpAddr),
    /// A host name, which only the resolver of that machine knows; it could be any address.
    Name(String),
}

impl Listen {
    /// Whether a listening socket can be this one.
    pub fn matches(&self, socket: SocketAddr) -> bool {
        let host = match &self.host {
            ListenHost::Any => socket.ip().is_unspecified(),
            ListenHost::Address(address) => *address == socket.ip(),
            ListenHost::Name(_) => true,
        };
        host && self.port == socket.port()
    }

    fn is_loopback(&self) -> bool {
        match &self.host {
            ListenHost::Any => false,
            ListenHost::Address(address) => address.is_loopback(),
            ListenHost::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl WatchedService {
    /// Whether its idle processes can be told by [`super::locks::idle_by_lock`]: with maxproc 1 they use no lock.
    pub fn lock_tells_idle(&self) -> bool {
        self.limit != ProcessLimit::Of(1)
    }
}

/// The entries to watch, in the order of the file. `names` are those of `[watch] services`, like `smtp/inet`: without
/// a host part such a name stands for every entry on that port, with one for just that one. An entry whose maxproc is
/// not a number is left out: master cannot be running it.
pub fn watched(master_cf: &MasterCf<'_>, settings: &Settings, names: &[String]) -> Vec<WatchedService> {
    let raised = headroom::raised(master_cf.bytes());
    let smtpds = master_cf
        .in_force()
        .filter(|e| e.program() == "smtpd" && matches!(e.id.kind.as_str(), "inet" | "pass"));
    smtpds
        .filter_map(|entry| {
            let limit = process_limit(entry, settings)?;
            let listens = listens(&entry.id, settings);
            // As with master: no loopback rule for pass, whose list is empty.
            let local = !listens.is_empty() && listens.iter().all(Listen::is_loopback);
            Some(WatchedService {
                id: entry.id.clone(),
                limit,
                own_limit: raised
                    .iter()
                    .find(|mark| same_service(&mark.service, &entry.id))
                    // "-" is default_process_limit.
                    .map(|mark| mark.own.parse().unwrap_or(settings.default_process_limit)),
                native: !local && matches!(limit, ProcessLimit::Of(2..)),
                actionable: actionable(master_cf, entry, settings, names, limit, local),
                listens,
            })
        })
        .collect()
}

/// The first entry that a reload would have master open a socket for: none of `sockets`, on which it listens, is the
/// entry's. Master dies when the kernel does not give it that socket (Postfix src/util/inet_listen.c, msg_fatal).
pub fn unbound(master_cf: &MasterCf<'_>, settings: &Settings, sockets: &[SocketAddr]) -> Option<ServiceId> {
    let mut enabled = master_cf
        .in_force()
        .filter(|entry| !settings.disables(&entry.id.name, &entry.id.kind));
    let new = enabled.find(|entry| {
        let places = listens(&entry.id, settings);
        let open = |place: &Listen| sockets.iter().any(|&socket| place.matches(socket));
        !places.is_empty() && !places.iter().any(open)
    });
    new.map(|entry| entry.id.clone())
}

/// Where postscreen listens: the clients of the pass services come in there.
pub fn screened(master_cf: &MasterCf<'_>, settings: &Settings) -> Vec<Listen> {
    let screens = master_cf
        .in_force()
        .filter(|entry| entry.program() == "postscreen" && entry.id.kind == "inet");
    screens.flat_map(|entry| listens(&entry.id, settings)).collect()
}

fn process_limit(entry: &Entry, settings: &Settings) -> Option<ProcessLimit> {
    match entry.maxproc {
        Field::Default => Some(settings.default_process_limit),
        Field::Is(limit) => Some(limit),
        Field::Bad(_) => None,
    }
    .map(|limit| {
        if limit == 0 {
            ProcessLimit::Unlimited
        } else {
            ProcessLimit::Of(limit)
        }
    })
}

fn actionable(
    master_cf: &MasterCf<'_>,
    entry: &Entry,
    settings: &Settings,
    names: &[String],
    limit: ProcessLimit,
    local: bool,
) -> Result<(), String> {
    let id = &entry.id;
    let named: Vec<Named> = names.iter().filter_map(|name| named(name, id)).collect();
    if settings.disables(&id.name, &id.kind) {
        return Err(format!(
            "master_service_disable in main.cf turns {id} off; take it out there"
        ));
    }
    // What insert() refuses, it would refuse when it comes to it. Our own lines are no reason.
    match edit::insert(master_cf.bytes(), id, Timestamp::UNIX_EPOCH) {
        Ok(_) | Err(EditError::AlreadyOurs(_)) => {}
        Err(refusal) => return Err(refusal.to_string()),
    }
    if named.is_empty() {
        return Err(if is_submission(id) {
            format!(
                "{id} is for submission, where stress mode cuts off real users; name it in [watch] services to allow it"
            )
        } else {
            format!("{id} is not named in [watch] services; name it there to allow it")
        });
    }
    // `smtp/inet` in the configuration does not mean a listener behind a proxy or a filter, only a name with that very
    // address does.
    if local && !named.contains(&Named::ByAddress) {
        return Err(format!(
            "{id} listens on loopback only, so its clients are a proxy or a filter; name it with its address in [watch] services to allow it"
        ));
    }
    match limit {
        ProcessLimit::Of(1) => Err(format!(
            "maxproc of {id} is 1, so one slow client is enough to fill it; raise it in master.cf"
        )),
        ProcessLimit::Unlimited => Err(format!(
            "maxproc of {id} is 0, unlimited, so its slots cannot run out; set a limit in master.cf"
        )),
        ProcessLimit::Of(_) => Ok(()),
    }
}

#[derive(PartialEq, Eq)]
enum Named {
    /// The port on any host, or the name of a `pass` service.
    ByPort,
    /// The very address.
    ByAddress,
}

/// Whether and how a name of the configuration means this entry.
fn named(name: &str, id: &ServiceId) -> Option<Named> {
    let (name, kind) = name.rsplit_once('/')?;
    let wanted = ServiceId {
        name: name.to_owned(),
        kind: kind.to_owned(),
    };
    if wanted.kind != id.kind {
        return None;
    }
    if id.kind != "inet" {
        return (wanted.name == id.name).then_some(Named::ByPort);
    }
    if Endpoint::parse(name).ok()?.host.is_some() {
        return (canonical_name(&wanted) == canonical_name(id)).then_some(Named::ByAddress);
    }
    let names = Names::built_in();
    let port = |name: &str| {
        let port = Endpoint::parse(name).ok()?.port.to_owned();
        Some(names.port(&port).map_or(port, |number| number.to_string()))
    };
    (port(name) == port(&id.name)).then_some(Named::ByPort)
}

fn is_submission(id: &ServiceId) -> bool {
    matches!(port(id), Some(465 | 587)) || id.name.contains("submission") || id.name.contains("smtps")
}

fn listens(id: &ServiceId, settings: &Settings) -> Vec<Listen> {
    let endpoint = Endpoint::parse(&id.name).ok().filter(|_| id.kind == "inet");
    let (Some(endpoint), Some(port)) = (endpoint, port(id)) else {
        return Vec::new();
    };
    let hosts = match (endpoint.host, settings.inet_interfaces.as_str()) {
        (Some(host), _) => vec![listen_host(host)],
        (None, all) if all.eq_ignore_ascii_case("all") => vec![ListenHost::Any],
        (None, only) if only.eq_ignore_ascii_case("loopback-only") => vec![
            ListenHost::Address(IpAddr::from([127, 0, 0, 1])),
            ListenHost::Address(IpAddr::from(Ipv6Addr::LOCALHOST)),
        ],
        (None, interfaces) => list(interfaces).map(listen_host).collect(),
    };
    hosts.into_iter().map(|host| Listen { host, port }).collect()
}

/// `[::1]`, `192.0.2.1`, `mx.example`.
fn listen_host(text: &str) -> ListenHost {
    let plain = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    match plain.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => ListenHost::Any,
        Ok(address) => ListenHost::Address(address),
        Err(_) => ListenHost::Name(plain.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::main_cf::Source;
    use super::*;

    fn settings() -> Settings {
        Settings {
            version: None,
            default_process_limit: 100,
            inet_interfaces: "all".into(),
            master_service_disable: vec![],
            source: Source::Literal,
        }
    }

    fn default_names() -> Vec<String> {
        vec!["smtp/inet".into(), "smtpd/pass".into()]
    }

    fn one(line: &str, settings: &Settings, names: &[String]) -> WatchedService {
        let text = format!("{line}\n");
        let mut all = watched(&MasterCf::parse(text.as_bytes()), settings, names);
        assert_eq!(all.len(), 1, "{line}");
        all.remove(0)
    }

    fn reason(line: &str) -> String {
        one(line, &settings(), &default_names()).actionable.unwrap_err()
    }

    #[test]
    fn the_usual_two_are_ours_to_touch() {
        for line in [
            "smtp inet n - y - - smtpd",
            "25 inet n - y - 20 smtpd -o a=b",
            "192.0.2.1:smtp inet n - y - 20 /x/smtpd",
            "smtpd pass - - y - - smtpd",
        ] {
            let service = one(line, &settings(), &default_names());
            assert_eq!(service.actionable, Ok(()), "{line}");
            assert!(service.native && service.lock_tells_idle(), "{line}");
        }
        let service = one("smtp inet n - y - - smtpd", &settings(), &default_names());
        assert_eq!(service.limit, ProcessLimit::Of(100));
        assert_eq!(
            service.listens,
            [Listen {
                host: ListenHost::Any,
                port: 25
            }]
        );
    }

    #[test]
    fn others_are_watched_and_say_why_they_are_left_alone() {
        assert!(reason("smtp inet n - y - - smtpd -o stress=").contains("law"));
        assert!(reason("submission inet n - y - - smtpd").contains("real users"));
        assert!(reason("[192.0.2.1]:465 inet n - y - - smtpd").contains("real users"));
        assert!(reason("2525 inet n - y - - smtpd").contains("not named"));
        assert!(reason("127.0.0.1:smtp inet n - y - - smtpd").contains("loopback"));
        assert!(reason("localhost:25 inet n - y - - smtpd").contains("loopback"));
        assert!(reason("smtp inet n - y - 1 smtpd").contains("is 1"));
        assert!(reason("smtp inet n - y - 0 smtpd").contains("unlimited"));
        assert!(reason("smtp inet n - y - - smtpd -o").contains("would not be read"));
    }

    #[test]
    fn our_own_lines_are_not_the_admins() {
        let text = b"smtp inet n - y - - smtpd\n";
        let id = ServiceId {
            name: "smtp".into(),
            kind: "inet".into(),
        };
        let after = edit::insert(text, &id, Timestamp::UNIX_EPOCH).unwrap();
        let services = watched(&MasterCf::parse(&after), &settings(), &default_names());
        assert_eq!(services[0].actionable, Ok(()));
    }

    #[test]
    fn naming_allows() {
        for (line, name) in [
            ("submission inet n - y - - smtpd", "587/inet"),
            ("2525 inet n - y - - smtpd", "2525/inet"),
            ("127.0.0.1:smtp inet n - y - - smtpd", "[127.0.0.1]:25/inet"),
            ("front pass n - y - - smtpd", "front/pass"),
            ("odd inet n - y - - smtpd", "odd/inet"),
        ] {
            let service = one(line, &settings(), &[name.to_owned()]);
            assert_eq!(service.actionable, Ok(()), "{line} {name}");
        }
        let by_port = one(
            "127.0.0.1:2525 inet n - y - - smtpd",
            &settings(),
            &["2525/inet".to_owned()],
        );
        assert!(by_port.actionable.unwrap_err().contains("loopback"));
    }

    #[test]
    fn a_socket_that_a_reload_would_open_is_seen() {
        let sockets: Vec<SocketAddr> = ["0.0.0.0:25", "[::]:25", "127.0.0.1:587"]
            .iter()
            .map(|socket| socket.parse().unwrap())
            .collect();
        let new = |text: &str, settings: &Settings| {
            unbound(&MasterCf::parse(text.as_bytes()), settings, &sockets).map(|id| id.name)
        };
        let ok =
            "smtp inet n - n - - smtpd\n127.0.0.1:587 inet n - n - - smtpd\nsmtpd pass - - n - - smtpd\n";
        assert_eq!(new(ok, &settings()), None);
        for name in ["2525", "587", "127.0.0.1:25", "[::1]:587"] {
            let text = format!("{ok}{name} inet n - n - - discard\n");
            assert_eq!(new(&text, &settings()).as_deref(), Some(name));
            let off = Settings {
                master_service_disable: vec![format!("{name}/inet")],
                ..settings()
            };
            assert_eq!(new(&text, &off), None);
        }
    }

    #[test]
    fn main_cf_decides_too() {
        let local = Settings {
            inet_interfaces: "loopback-only".into(),
            ..settings()
        };
        let service = one("smtp inet n - y - - smtpd", &local, &default_names());
        assert!(!service.native && service.actionable.unwrap_err().contains("loopback"));
        assert_eq!(service.listens.len(), 2);

        let listed = Settings {
            inet_interfaces: "localhost, [2001:db8::1]".into(),
            ..settings()
        };
        let service = one("smtp inet n - y - - smtpd", &listed, &default_names());
        assert!(service.native);
        assert!(service.listens[1].matches("[2001:db8::1]:25".parse().unwrap()));
        assert!(!service.listens[1].matches("[2001:db8::2]:25".parse().unwrap()));

        let off = Settings {
            master_service_disable: vec!["inet".into()],
            ..settings()
        };
        let service = one("smtp inet n - y - - smtpd", &off, &default_names());
        assert!(service.actionable.unwrap_err().contains("master_service_disable"));

        let unlimited = Settings {
            default_process_limit: 0,
            ..settings()
        };
        let service = one("smtp inet n - y - - smtpd", &unlimited, &default_names());
        assert_eq!((service.limit, service.native), (ProcessLimit::Unlimited, false));
    }

    #[test]
    fn only_smtpd_and_only_what_counts() {
        let text = b"smtp inet n - y - 1 postscreen\nsmtp unix - - y - - smtp\nsmtpd pass - - y - - smtpd\n\
            2525 inet n - y - 5 smtpd\n2525 inet n - y - 6 smtpd\n2526 inet n - y - x smtpd\n";
        let services = watched(&MasterCf::parse(text), &settings(), &default_names());
        let found: Vec<_> = services.iter().map(|s| (s.id.to_string(), s.limit)).collect();
        let expected = [("smtpd/pass", 100), ("2525/inet", 6)];
        assert_eq!(
            found,
            expected.map(|(id, limit)| (id.to_owned(), ProcessLimit::Of(limit)))
        );
    }
}
