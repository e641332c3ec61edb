//! The loads. Each is a plain value: who comes, how many, from when on.
//!
//! Rates and counts of flood, ramp, burst, m100 and swarm are those of the measurement that the design rests on, so that
//! figures can be held against each other; patience, pauses and Postfix's settings likewise ([`Traffic::new`]).

use std::time::Duration;

use crate::attackers::{Arrival, Attack, Manner};
use crate::senders::{Traffic, Upload};

/// Legitimate sessions a second.
const LEGITIMATE: f64 = 8.0;
const SLOTS: u32 = 20;
/// How long the attack is measured. Built-in stress leaves the first clients their 300 s, and its recovery after that is to
/// be seen.
const LONG: Duration = Duration::from_secs(345);
/// Once is enough for that: in the others all slots are gone by then, and it goes on so.
const MIDDLE: Duration = Duration::from_secs(120);
/// Where nothing is to happen, or the same all the time.
const SHORT: Duration = Duration::from_secs(60);

/// A load.
#[derive(Debug, Clone)]
pub struct Profile {
    pub name: &'static str,
    /// One sentence, for tables.
    pub about: &'static str,
    pub maxproc: u32,
    /// smtpd takes so many seconds to greet, as with slow DNS.
    pub greeting_delay: Option<u32>,
    pub parties: Vec<Party>,
    pub assaults: Vec<Assault>,
    /// The measured time, from the start of the attack.
    pub window: Duration,
    /// Keeps a processor busy by itself, so that its scenarios run one after the other.
    pub alone: bool,
}

/// Legitimate senders of one kind.
#[derive(Debug, Clone)]
pub struct Party {
    pub name: &'static str,
    pub begin: Begin,
    pub traffic: Traffic,
    /// Honest, but slow: counted by itself, since stress mode means to cut some of them.
    pub slow: bool,
}

/// Attackers of one kind.
#[derive(Debug, Clone)]
pub struct Assault {
    pub begin: Begin,
    pub attack: Attack,
    /// On for so long, then all leave and it is off for so long, over and over; `None` is on to the end.
    pub pulse: Option<(Duration, Duration)>,
}

/// When a part of the load begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// In the calm before the attack.
    Calm,
    /// So long after the attack began.
    Attack(Duration),
    /// In the middle of the measured time.
    Halfway,
}

impl Begin {
    /// Since the start of the attack; `None` is before it.
    pub(super) fn after(self, window: Duration) -> Option<Duration> {
        match self {
            Self::Calm => None,
            Self::Attack(after) => Some(after),
            Self::Halfway => Some(window / 2),
        }
    }
}

/// All profiles, in the order of the tables.
pub fn all() -> Vec<Profile> {
    [attacks(), harder(), honest(), false_alarms()].concat()
}

/// Those that give the shape in ten minutes.
pub const QUICK: [&str; 6] = ["flood", "ramp", "burst", "noop", "drip", "swarm"];

fn attacks() -> Vec<Profile> {
    let silent = |per_second| vec![steady(per_second, Manner::Silent)];
    vec![
        Profile {
            assaults: silent(1.2),
            window: LONG,
            ..profile("flood", "1.2 silent clients a second")
        },
        Profile {
            assaults: silent(0.4),
            ..profile("ramp", "0.4 silent clients a second")
        },
        Profile {
            assaults: vec![
                crowd(30, Duration::from_secs(2), None, Manner::Silent),
                Assault {
                    begin: Begin::Attack(Duration::from_secs(2)),
                    ..steady(0.8, Manner::Silent)
                },
            ],
            ..profile("burst", "30 silent clients within 2 s, then 0.8 a second")
        },
        Profile {
            maxproc: 100,
            assaults: silent(5.0),
            ..profile("m100", "100 slots, and 5 silent clients a second")
        },
        Profile {
            assaults: vec![crowd(
                60,
                Duration::from_secs(6),
                Some(Duration::from_secs(1)),
                Manner::Silent,
            )],
            ..profile(
                "swarm",
                "60 silent clients, each back a second after it was dropped",
            )
        },
        Profile {
            assaults: vec![steady(1.2, NOOP)],
            ..profile("noop", "1.2 clients a second that say NOOP every 4 s")
        },
        Profile {
            assaults: vec![steady(
                1.2,
                Manner::Drip {
                    every: Duration::from_secs(4),
                },
            )],
            ..profile(
                "drip",
                "1.2 clients a second that go as far as DATA, then send a byte every 4 s",
            )
        },
        Profile {
            assaults: vec![Assault {
                pulse: Some((Duration::from_secs(20), Duration::from_secs(20))),
                ..steady(3.0, Manner::Silent)
            }],
            ..profile(
                "pulse",
                "3 silent clients a second for 20 s, then all leave for 20 s, over and over",
            )
        },
    ]
}

/// Made to defeat a rule that the others do not.
fn harder() -> Vec<Profile> {
    let pack = |manner| {
        let mut assault = crowd(12, Duration::from_secs(2), Some(Duration::from_secs(1)), manner);
        assault.attack.network = Some(200);
        assault
    };
    vec![
        Profile {
            assaults: vec![steady(
                0.6,
                Manner::Repeat {
                    command: "EHLO crawl.lab.invalid\r\n",
                    every: Duration::from_secs(9),
                },
            )],
            ..profile(
                "crawl",
                "0.6 clients a second that say EHLO every 9 s, just below the timeout of stress mode",
            )
        },
        Profile {
            assaults: vec![pack(Manner::Silent), pack(NOOP)],
            ..profile(
                "pack",
                "24 clients of one /24, half of them silent and half with a NOOP every 4 s, each back a second after it \
                 was dropped",
            )
        },
    ]
}

fn honest() -> Vec<Profile> {
    let slow = |name, traffic| Party {
        name,
        begin: Begin::Calm,
        traffic,
        slow: true,
    };
    let pausing = |seconds| Traffic {
        pause: Duration::from_secs(seconds),
        ..Traffic::new(0.04)
    };
    vec![
        Profile {
            parties: vec![
                legitimate(LEGITIMATE),
                slow("pause 8 s", pausing(8)),
                slow("pause 15 s", pausing(15)),
                slow(
                    "upload",
                    Traffic {
                        upload: Some(Upload {
                            bytes: 400_000,
                            bytes_per_second: 20_000,
                        }),
                        ..Traffic::new(0.06)
                    },
                ),
            ],
            assaults: vec![steady(1.2, Manner::Silent)],
            ..profile(
                "slow",
                "flood, and among the legitimate some that pause 8 s or 15 s before each command, or upload 400 KB at 20 KB/s",
            )
        },
        Profile {
            parties: vec![
                legitimate(LEGITIMATE),
                Party {
                    begin: Begin::Attack(Duration::ZERO),
                    ..legitimate(9.0 * LEGITIMATE)
                },
            ],
            window: SHORT,
            alone: true,
            ..profile("surge", "ten times the legitimate load, no attacker")
        },
    ]
}

fn false_alarms() -> Vec<Profile> {
    let scan = |per_second, begin| Assault {
        begin,
        ..steady(per_second, Manner::Leave)
    };
    vec![
        Profile {
            window: SHORT,
            ..profile("quiet", "the legitimate load, and nothing else")
        },
        Profile {
            assaults: vec![
                scan(50.0, Begin::Attack(Duration::ZERO)),
                scan(150.0, Begin::Halfway),
            ],
            window: SHORT,
            ..profile(
                "scan",
                "50 connections a second, from halfway on 200, that leave at once",
            )
        },
        Profile {
            greeting_delay: Some(3),
            parties: vec![
                legitimate(2.0),
                Party {
                    begin: Begin::Halfway,
                    ..legitimate(8.0)
                },
            ],
            window: SHORT,
            ..profile(
                "slowdns",
                "smtpd takes 3 s to greet; 2 legitimate sessions a second, from halfway on 10, which is more than 20 slots bear",
            )
        },
    ]
}

const NOOP: Manner = Manner::Repeat {
    command: "NOOP\r\n",
    every: Duration::from_secs(4),
};

fn profile(name: &'static str, about: &'static str) -> Profile {
    Profile {
        name,
        about,
        maxproc: SLOTS,
        greeting_delay: None,
        parties: vec![legitimate(LEGITIMATE)],
        assaults: Vec::new(),
        window: MIDDLE,
        alone: false,
    }
}

fn legitimate(per_second: f64) -> Party {
    Party {
        name: "legitimate",
        begin: Begin::Calm,
        traffic: Traffic::new(per_second),
        slow: false,
    }
}

fn steady(per_second: f64, manner: Manner) -> Assault {
    Assault {
        begin: Begin::Attack(Duration::ZERO),
        attack: Attack {
            manner,
            ..Attack::silent(Arrival::PerSecond(per_second))
        },
        pulse: None,
    }
}

fn crowd(count: usize, within: Duration, reconnect: Option<Duration>, manner: Manner) -> Assault {
    Assault {
        begin: Begin::Attack(Duration::ZERO),
        attack: Attack {
            manner,
            reconnect,
            ..Attack::silent(Arrival::Evenly { count, within })
        },
        pulse: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_those_of_the_quick_run_exist() {
        let names: Vec<_> = all().iter().map(|profile| profile.name).collect();
        let set: BTreeSet<_> = names.iter().copied().collect();
        assert_eq!(set.len(), names.len(), "{names:?}");
        for name in QUICK {
            assert!(set.contains(name), "{name}");
        }
    }

    #[test]
    fn every_profile_has_senders_from_the_calm_on() {
        for profile in all() {
            assert!(
                profile
                    .parties
                    .iter()
                    .any(|party| party.begin == Begin::Calm && !party.slow),
                "{}",
                profile.name
            );
        }
    }
}
