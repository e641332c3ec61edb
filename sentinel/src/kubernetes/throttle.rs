//! Which notices are worth an Event: not the same again, and not too many. Every Event is a write to the cluster's etcd,
//! and what is decided on here comes from masters that a pod's owner can start by the hundred. Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::names::PodUid;
use super::notice::{Kind, Notice};

/// The same is told again after this long if it still holds; as often as kube-controller-manager would by its own
/// aggregation (client-go tools/record, defaultAggregateIntervalInSeconds).
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Of one pod: as many as `max_reloads_per_hour` allows by default, and then one every five minutes.
const PER_POD: Rate = Rate {
    burst: 12,
    every: Duration::from_secs(300),
};

/// Of the whole node.
const PER_NODE: Rate = Rate {
    burst: 60,
    every: Duration::from_secs(10),
};

/// Services and pods that are remembered; beyond it, those of longest ago are forgotten.
const REMEMBERED: usize = 1024;

#[derive(Debug)]
pub(super) struct Throttle {
    /// The last notice of each service of each pod.
    last: HashMap<(PodUid, String), Last>,
    pods: HashMap<PodUid, Bucket>,
    node: Bucket,
}

#[derive(Debug)]
struct Last {
    kind: Kind,
    /// What a refusal is about; a trip is a trip.
    about: Option<String>,
    at: Instant,
    /// Notices like it that were not sent since.
    suppressed: u32,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    every: Duration,
}

/// Tokens that come back one by one.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// Up to when tokens have been given back.
    filled: Instant,
}

/// What becomes of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Sent; so many like it were not, since the last one that was.
    Send {
        suppressed: u32,
    },
    Suppressed,
}

impl Throttle {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: HashMap::new(),
            pods: HashMap::new(),
            node: Bucket::full(PER_NODE, now),
        }
    }

    pub(super) fn admit(&mut self, notice: &Notice) -> Admission {
        let admission = self.weigh(notice);
        self.forget();
        admission
    }

    fn weigh(&mut self, notice: &Notice) -> Admission {
        let now = notice.at.mono;
        let key = (notice.pod.uid.clone(), notice.service.clone());
        let about = match notice.kind {
            Kind::Refusal => notice.reasons.first().cloned(),
            Kind::Trip | Kind::Clear | Kind::UnknownMode => None,
        };
        // Whoever read that stress mode is on must read that it is off: as many as there were trips, and no more.
        let mut owed = false;
        let mut suppressed = 0;
        if let Some(last) = self.last.get_mut(&key) {
            owed = (last.kind, notice.kind) == (Kind::Trip, Kind::Clear);
            let same = (last.kind, &last.about) == (notice.kind, &about);
            if same && now.saturating_duration_since(last.at) < AGAIN_AFTER {
                last.suppressed = last.suppressed.saturating_add(1);
                return Admission::Suppressed;
            }
            suppressed = if same { last.suppressed } else { 0 };
        }
        let pod = self
            .pods
            .entry(notice.pod.uid.clone())
            .or_insert_with(|| Bucket::full(PER_POD, now));
        // The pod's own first: one that tells too much must not use up the node's.
        let admitted = owed || (pod.take(PER_POD, now) && self.node.take(PER_NODE, now));
        if !admitted {
            return Admission::Suppressed;
        }
        self.last.insert(
            key,
            Last {
                kind: notice.kind,
                about,
                at: now,
                suppressed: 0,
            },
        );
        Admission::Send { suppressed }
    }

    fn forget(&mut self) {
        while self.last.len() > REMEMBERED {
            let oldest = self.last.iter().min_by_key(|(_, last)| last.at);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            self.last.remove(&key);
        }
        while self.pods.len() > REMEMBERED {
            let oldest = self.pods.iter().min_by_key(|(_, bucket)| bucket.filled);
            let Some(uid) = oldest.map(|(uid, _)| uid.clone()) else {
                return;
            };
            self.pods.remove(&uid);
        }
    }
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self {
            tokens: rate.burst,
            filled: now,
        }
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        while self.tokens < rate.burst && now.saturating_duration_since(self.filled) >= rate.every {
            self.tokens += 1;
            self.filled += rate.every;
        }
        if self.tokens == rate.burst {
            self.filled = now;
        }
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::directory::PodName;
    use super::super::names::Name;
    use super::*;
    use crate::clock::{self, Now};

    fn notice(pod: usize, kind: Kind, reason: &str, at: Now) -> Notice {
        Notice {
            pod: PodName {
                uid: PodUid::parse(&format!("pod-{pod}")).unwrap(),
                namespace: Name::label("post").unwrap(),
                pod: Name::subdomain("mail").unwrap(),
                container: None,
            },
            kind,
            service: "smtp/inet".into(),
            reasons: vec![reason.into()],
            at,
        }
    }

    fn later(start: Now, seconds: u64) -> Now {
        Now {
            mono: start.mono + Duration::from_secs(seconds),
            ..start
        }
    }

    const SENT: Admission = Admission::Send { suppressed: 0 };

    #[test]
    fn the_same_again_is_counted_and_told_after_a_while() {
        let start = clock::now();
        let mut throttle = Throttle::new(start.mono);
        let mut refusal =
            |reason, second| throttle.admit(&notice(1, Kind::Refusal, reason, later(start, second)));
        assert_eq!(refusal("read-only", 0), SENT);
        assert_eq!(refusal("read-only", 5), Admission::Suppressed);
        assert_eq!(refusal("read-only", 599), Admission::Suppressed);
        assert_eq!(refusal("read-only", 600), Admission::Send { suppressed: 2 });
        assert_eq!(refusal("out of budget", 601), SENT, "another reason is news");
        assert_eq!(refusal("read-only", 602), SENT);
    }

    #[test]
    fn one_pod_cannot_take_the_room_of_another() {
        let start = clock::now();
        let mut throttle = Throttle::new(start.mono);
        let sent = (0..1000)
            .filter(|n| throttle.admit(&notice(1, Kind::Refusal, &n.to_string(), start)) == SENT)
            .count();
        assert_eq!(sent, 12);
        assert_eq!(throttle.admit(&notice(2, Kind::Trip, "", start)), SENT);
    }

    #[test]
    fn many_pods_cannot_flood_the_cluster() {
        let start = clock::now();
        let mut throttle = Throttle::new(start.mono);
        let mut at = |second| {
            (0..5000)
                .filter(|n| throttle.admit(&notice(*n, Kind::Trip, "", later(start, second))) == SENT)
                .count()
        };
        assert_eq!(at(0), 60);
        assert_eq!(at(9), 0);
        assert_eq!(at(30), 3);
        assert!(throttle.last.len() <= REMEMBERED && throttle.pods.len() <= REMEMBERED);
    }

    proptest! {
        /// Whatever happens, nobody is left believing that stress mode is on; and an hour has its bound.
        #[test]
        fn the_last_word_on_a_trip_that_was_told_is_its_clear(steps in prop::collection::vec((0..3_usize, 0..120_u64), 1..400)) {
            let start = clock::now();
            let mut throttle = Throttle::new(start.mono);
            let (mut second, mut stressed, mut believed) = (0, [false; 3], [false; 3]);
            let mut sent_in_first_hour = 0;
            for (pod, wait) in steps {
                second += wait;
                stressed[pod] = !stressed[pod];
                let kind = if stressed[pod] { Kind::Trip } else { Kind::Clear };
                if throttle.admit(&notice(pod, kind, "", later(start, second))) != Admission::Suppressed {
                    believed[pod] = stressed[pod];
                    sent_in_first_hour += usize::from(second < 3600);
                }
                prop_assert!(stressed[pod] || !believed[pod]);
            }
            // Of each pod 12 and another 12 in the hour, and a clear for each that was a trip.
            prop_assert!(sent_in_first_hour <= 3 * 48);
        }
    }
}
