//! Tells the service manager how the daemon is doing, by the protocol of sd_notify(3): ready, alive, stopping.
//!
//! Without a service manager (no NOTIFY_SOCKET) nothing is said. Nothing here can fail or hold up the daemon. That is why
//! the protocol is spoken here and not by a crate: those block, as the C function does, when the manager does not read
//! and its socket is full, and the tick would hang with an edit in force because somebody else does.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// A sign of life goes out this many times within the time that the manager waits for one, so that one that is lost or
/// late does no harm.
const SIGNS: u32 = 4;

const READY: &str = "READY=1\n";
const ALIVE: &str = "WATCHDOG=1\n";
const STOPPING: &str = "STOPPING=1\n";

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct Supervisor {
    line: Option<(UnixDatagram, SocketAddr)>,
    /// Between two signs of life; None when the manager does not wait for any.
    every: Option<Duration>,
    ready: bool,
    last: Option<Instant>,
    complained: bool,
}

impl Supervisor {
    /// As the environment has it: NOTIFY_SOCKET, and WATCHDOG_USEC for WatchdogSec= of the unit.
    pub fn of_this_process() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        // A watchdog that is set on another process of the service is not ours to feed (sd_watchdog_enabled(3)).
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC")
            .filter(|_| for_us)
            .map(Duration::from_micros);
        Self::at(&address, watchdog).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell the service manager (NOTIFY_SOCKET) how the daemon is doing");
            Self::default()
        })
    }

    fn at(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            line: Some((socket, address)),
            every: watchdog.map(|watchdog| watchdog / SIGNS),
            ..Self::default()
        })
    }

    /// A tick has come to its end. The first one makes the daemon ready: it has looked, so that `status` has an answer.
    pub fn ticked(&mut self, now: Instant) {
        if !self.ready {
            self.ready = self.tell(READY);
        }
        if self.is_due(now) {
            self.last = Some(now);
            self.tell(ALIVE);
        }
    }

    /// The daemon gives back what is in force, which may take as long as TimeoutStopSec= of the unit allows.
    pub fn stopping(&mut self) {
        self.tell(STOPPING);
        self.tell(ALIVE);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.every.is_some_and(|every| {
            self.last
                .is_none_or(|last| now.saturating_duration_since(last) >= every)
        })
    }

    /// Whether there is nothing more to say of this: it was said, or nobody is there to hear it.
    fn tell(&mut self, what: &str) -> bool {
        let Some((socket, address)) = &self.line else {
            return true;
        };
        match socket.send_to_addr(what.as_bytes(), address) {
            Ok(_) => {
                self.complained = false;
                true
            }
            Err(error) => {
                if !self.complained {
                    tracing::warn!(%error, "the service manager (NOTIFY_SOCKET) does not listen to {}", what.trim());
                    self.complained = true;
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    struct Manager {
        dir: tempfile::TempDir,
        socket: UnixDatagram,
    }

    impl Manager {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { dir, socket }
        }

        fn supervisor(&self, watchdog: Option<Duration>) -> Supervisor {
            Supervisor::at(self.dir.path().join("notify").as_os_str(), watchdog).unwrap()
        }

        fn heard(&self) -> Vec<String> {
            let mut buffer = [0; 64];
            std::iter::from_fn(|| {
                let length = self.socket.recv(&mut buffer).ok()?;
                Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
            })
            .collect()
        }
    }

    #[test]
    fn ready_once_and_signs_of_life_well_within_the_watchdogs_time() {
        let manager = Manager::new();
        let mut supervisor = manager.supervisor(Some(Duration::from_secs(40)));
        let start = clock::now().mono;
        let mut at = |seconds| {
            supervisor.ticked(start + Duration::from_secs(seconds));
            manager.heard()
        };
        assert_eq!(at(0), [READY, ALIVE]);
        assert!(at(9).is_empty());
        assert_eq!(at(11), [ALIVE]);
        assert!(at(20).is_empty(), "counted from the last one");
        assert_eq!(at(21), [ALIVE]);
        supervisor.stopping();
        assert_eq!(manager.heard(), [STOPPING, ALIVE]);
    }

    #[test]
    fn without_a_watchdog_there_is_nothing_to_feed() {
        let manager = Manager::new();
        let mut supervisor = manager.supervisor(None);
        let start = clock::now().mono;
        supervisor.ticked(start);
        supervisor.ticked(start + Duration::from_secs(3600));
        assert_eq!(manager.heard(), [READY]);
    }

    /// The queue of such a socket holds some ten messages (net.unix.max_dgram_qlen).
    #[test]
    fn a_manager_that_does_not_read_holds_up_nothing_and_hears_ready_later() {
        let manager = Manager::new();
        let mut early = manager.supervisor(Some(Duration::from_secs(4)));
        let mut late = manager.supervisor(None);
        let start = clock::now().mono;
        for second in 0..10_000 {
            early.ticked(start + Duration::from_secs(second));
        }
        late.ticked(start);
        assert!(!late.ready, "the queue is full");
        assert!(!manager.heard().is_empty());
        late.ticked(start);
        assert_eq!(manager.heard(), [READY]);
    }

    #[test]
    fn an_abstract_address_is_understood() {
        let name = format!("smtp-sentinel-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Supervisor::at(OsStr::new(&format!("@{name}")), None)
            .unwrap()
            .ticked(clock::now().mono);
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], READY.as_bytes());
    }
}
