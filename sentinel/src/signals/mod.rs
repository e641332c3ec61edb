//! What is measured: one source makes one [`Reading`], all readings of a service at one instant make a [`Sample`].
//!
//! Nothing here judges. A source that could not be read says why; it never hands out a made-up 0 or an old number.

pub mod connections;
pub mod overflows;
pub mod service;
pub mod window;

use std::time::Instant;

/// One signal's value with its age and quality, or the reason why there is none.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading<T> {
    /// Measured at `at`.
    Known { value: T, at: Instant, quality: Quality },
    /// Not known, with the reason in words fit for an operator.
    Unavailable(String),
}

/// How far a value can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// Every event was counted (eBPF), or the kernel or master holds this very number.
    Exact,
    /// Looked at now and then, or worked out of something near it: peaks in between are missed.
    Sampled,
}

impl<T> Reading<T> {
    pub fn exact(value: T, at: Instant) -> Self {
        Self::Known {
            value,
            at,
            quality: Quality::Exact,
        }
    }

    pub fn sampled(value: T, at: Instant) -> Self {
        Self::Known {
            value,
            at,
            quality: Quality::Sampled,
        }
    }

    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }

    /// The value, however old.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Unavailable(_) => None,
        }
    }

    /// The value if it is not older than `max_age` at `now`: a stalled daemon must not decide on what it saw before
    /// it stalled.
    pub fn fresh(&self, now: Instant, max_age: std::time::Duration) -> Option<&T> {
        match self {
            Self::Known { value, at, .. } if now.saturating_duration_since(*at) <= max_age => Some(value),
            _ => None,
        }
    }

    /// Why there is no value; `None` when there is one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Known { .. } => None,
            Self::Unavailable(reason) => Some(reason),
        }
    }

    pub fn as_ref(&self) -> Reading<&T> {
        match self {
            Self::Known { value, at, quality } => Reading::Known {
                value,
                at: *at,
                quality: *quality,
            },
            Self::Unavailable(reason) => Reading::Unavailable(reason.clone()),
        }
    }

    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Self::Known { value, at, quality } => Reading::Known {
                value: f(value),
                at,
                quality,
            },
            Self::Unavailable(reason) => Reading::Unavailable(reason),
        }
    }
}

/// All readings of one service at one instant.
#[derive(Debug, Clone)]
pub struct Sample {
    pub at: Instant,
    /// maxproc of the service.
    pub limit: Reading<ProcessLimit>,
    /// What the administrator has there, while headroom of ours is in force.
    pub own_limit: Option<u32>,
    /// Slots in use: sockets accepted and not yet closed, or for `pass` services the processes that neither hold nor
    /// wait for the service's lock. Not the process count, which lags by max_idle (100 s).
    pub busy: Reading<u32>,
    /// smtpd processes of the service, idle ones included.
    pub processes: Reading<u32>,
    /// What the clients on the busy slots are doing.
    pub holders: Reading<Holders>,
    pub queue: Reading<AcceptQueue>,
    /// Clients that left before a greeting, per second over the last few seconds.
    pub early_disconnects_per_s: Reading<f64>,
    /// Greeting latency over the last minute.
    pub greeting: Reading<GreetingLatency>,
    /// Master's own stress mode, as the newest smtpd of the service was started with it.
    pub native_stress: Reading<bool>,
    /// Slots that would be held besides, if the sessions that only stress mode ends had the timeouts of calm.
    pub held_without_stress: Reading<f64>,
}

/// maxproc of a master.cf entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessLimit {
    /// At most this many, at least 1.
    Of(u32),
    /// maxproc 0: no limit, so no pressure on slots, and master never gives such a service `-o stress=`.
    Unlimited,
}

/// The accepted connections of a service, by whose move it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holders {
    /// Accepted, and not a byte sent to them yet: smtpd itself is busy before the greeting (DNS, policy, milter).
    pub ungreeted: u32,
    /// Greeted, the client owes the next move, and nothing has gone either way for at least
    /// [`Holders::SILENT_AFTER`], or [`Holders::MUTE_AFTER`] where the client has never said a word; or the client gives
    /// a byte now and then to look alive.
    pub silent: u32,
    /// Greeted, and the client spoke last, at least [`Holders::SILENT_AFTER`] ago: the server owes the reply.
    pub server_owes: u32,
    /// Greeted just now, and has not said a word yet: for less than [`Holders::MUTE_AFTER`], or four of its round trips.
    /// Whether it will is still to be seen.
    pub just_greeted: u32,
    /// Something went over the wire just now.
    pub active: u32,
}

impl Holders {
    /// From when on a quiet connection counts as quiet. Longer than a slow round trip and a TLS handshake together,
    /// much shorter than stress mode's own 10 s (`smtpd_timeout`, Postfix src/global/mail_params.h).
    pub const SILENT_AFTER: std::time::Duration = std::time::Duration::from_millis(1500);

    /// From when on a client that has not said a word since the greeting counts as quiet, or from four of its round
    /// trips if that is longer: a burst of 15 a second takes 20 slots before the first of them has been silent for
    /// long.
    pub const MUTE_AFTER: std::time::Duration = std::time::Duration::from_millis(500);

    pub fn total(&self) -> u32 {
        self.ungreeted + self.silent + self.server_owes + self.just_greeted + self.active
    }
}

/// The accept queue of a service, over all of its listeners: the fullest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AcceptQueue {
    /// Connections waiting for accept() now.
    pub depth: u32,
    /// The backlog; the kernel drops above it.
    pub limit: u32,
    /// The deepest that the queue was within the last minute.
    pub high_water: u32,
}

/// Greeting latency: from the kernel's ESTABLISHED to the first byte sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GreetingLatency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// How many greetings the quantiles rest on.
    pub count: u64,
}

/// A listening TCP socket: the key under which everything about it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId {
    /// Inode of the network namespace, as in /proc/PID/ns/net.
    pub netns: u32,
    /// Local address and port, the unspecified address for a wildcard listener. A dual-stack listener is its IPv6
    /// address: its IPv4 clients are counted there.
    pub address: std::net::SocketAddr,
}
