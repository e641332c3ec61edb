//! From what was seen to the figures. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::report::{Crowd, Recovery, Second};
use super::sampler::Sample;
use crate::senders::{Outcome, Session, Stage, Tally, quantile};

/// A queue of so many is saturation: a short one comes with any fork.
const SATURATED: u32 = 5;
/// What a sender waits at most for its delivery to count for recovery: some give up after 10 s.
const PROMPT: Duration = Duration::from_secs(10);
/// The windows that recovery looks at; they begin every second.
const WINDOW_S: usize = 5;
/// The share of prompt deliveries that makes a window good.
const GOOD: f64 = 0.9;

/// Seconds from `base` to `time`, negative when it was before.
pub(super) fn since(base: Instant, time: Instant) -> f64 {
    match time.checked_duration_since(base) {
        Some(after) => after.as_secs_f64(),
        None => -base.duration_since(time).as_secs_f64(),
    }
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    // A tenth is finer than any clock here deserves, and keeps the files small.
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// What became of some sessions.
pub fn crowd<'a>(sessions: impl IntoIterator<Item = &'a Session> + Clone) -> Crowd {
    let tally = Tally::of(sessions.clone());
    let greeting = |q| {
        let waits = sessions.clone().into_iter().map(Session::wait);
        quantile(waits, q).map(milliseconds)
    };
    let mut losses = BTreeMap::new();
    for loss in sessions
        .clone()
        .into_iter()
        .filter_map(|session| loss(session.outcome))
    {
        *losses.entry(loss).or_default() += 1;
    }
    Crowd {
        tried: tally.tried,
        delivered: tally.delivered,
        no_greeting: tally.no_greeting,
        refused: tally.refused,
        dropped: tally.dropped,
        losses,
        greeting_p50_ms: greeting(0.5),
        greeting_p90_ms: greeting(0.9),
        greeting_p99_ms: greeting(0.99),
    }
}

/// In words; `None` for a delivery.
fn loss(outcome: Outcome) -> Option<String> {
    let place = |stage| match stage {
        Stage::Connect => "connect",
        Stage::Greeting => "the greeting",
        Stage::Ehlo => "EHLO",
        Stage::Mail => "MAIL",
        Stage::Rcpt => "RCPT",
        Stage::Data => "DATA",
        Stage::Body => "the message",
    };
    match outcome {
        Outcome::Delivered => None,
        Outcome::NoGreeting => Some("no greeting".to_owned()),
        Outcome::Refused(stage, code) => Some(format!("{code} at {}", place(stage))),
        Outcome::Dropped(stage) => Some(format!("dropped at {}", place(stage))),
    }
}

/// How long legitimate mail was held up, by the sessions that began from saturation to `end`.
pub fn recovery<'a>(
    sessions: impl IntoIterator<Item = &'a Session>,
    saturated: Option<Instant>,
    end: Instant,
) -> Recovery {
    let Some(saturated) = saturated else {
        return Recovery::NotSaturated;
    };
    let seconds = end.saturating_duration_since(saturated).as_secs();
    // Tried and promptly delivered, by the second after saturation.
    let mut by_second = vec![(0_usize, 0_usize); usize::try_from(seconds).unwrap_or_default()];
    for session in sessions {
        let Some(after) = session.started.checked_duration_since(saturated) else {
            continue;
        };
        let second = usize::try_from(after.as_secs()).unwrap_or(usize::MAX);
        if let Some((tried, prompt)) = by_second.get_mut(second) {
            *tried += 1;
            *prompt += usize::from(is_prompt(session));
        }
    }
    let bad = |window: &[(usize, usize)]| {
        let sums = window
            .iter()
            .fold((0, 0), |sum, second| (sum.0 + second.0, sum.1 + second.1));
        (sums.1 as f64) < GOOD * sums.0 as f64
    };
    // Saturated shortly before the end: what is left is one window.
    let width = WINDOW_S.min(by_second.len()).max(1);
    match by_second.windows(width).rposition(bad) {
        None => Recovery::AfterS(0.0),
        Some(last) if last + width >= by_second.len() => Recovery::NotWithinRun,
        Some(last) => Recovery::AfterS((last + 1) as f64),
    }
}

fn is_prompt(session: &Session) -> bool {
    session.outcome == Outcome::Delivered && session.wait().is_some_and(|wait| wait < PROMPT)
}

/// When a queue first was long in the attack; `None` when it never was.
pub(super) fn saturation(samples: &[Sample], attack: Instant) -> Option<Instant> {
    let mut attacked = samples.iter().filter(|sample| sample.at >= attack);
    attacked
        .find(|sample| sample.queue() >= SATURATED)
        .map(|sample| sample.at)
}

/// The course of a run, a line a second, from the first session or sample to the last.
pub(super) fn seconds(sessions: &[Session], samples: &[Sample], attack: Instant) -> Vec<Second> {
    let second = |time| since(attack, time).floor() as i64;
    let times = sessions
        .iter()
        .flat_map(|session| [session.started, session.ended])
        .chain(samples.iter().map(|sample| sample.at))
        .map(second);
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
        return Vec::new();
    };
    let mut course: Vec<_> = (first..=last)
        .map(|at_s| Second {
            at_s,
            ..Second::default()
        })
        .collect();
    let mut at = |time, note: &mut dyn FnMut(&mut Second)| {
        let index = usize::try_from(second(time) - first).ok();
        if let Some(second) = index.and_then(|index| course.get_mut(index)) {
            note(second);
        }
    };
    for session in sessions {
        at(session.started, &mut |second| {
            second.waits_ms.push(session.wait().map(milliseconds));
        });
        if session.outcome == Outcome::Delivered {
            at(session.ended, &mut |second| second.delivered += 1);
        }
    }
    for sample in samples {
        at(sample.at, &mut |second| {
            second.queue = second.queue.max(sample.queue());
            second.accepted = second.accepted.max(sample.accepted);
            second.stress |= sample.edited;
        });
    }
    course
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn session(started: Instant, wait: Option<Duration>, outcome: Outcome) -> Session {
        Session {
            started,
            connect: wait.map(|_| Duration::ZERO),
            greeting: wait,
            outcome,
            ended: started + wait.unwrap_or(30 * SECOND),
        }
    }

    fn good(started: Instant) -> Session {
        session(started, Some(Duration::from_millis(5)), Outcome::Delivered)
    }

    fn bad(started: Instant) -> Session {
        session(started, None, Outcome::NoGreeting)
    }

    /// Ten sessions a second for `seconds`, those that began in `outage` without a greeting.
    fn course(base: Instant, seconds: u32, outage: std::ops::Range<u32>) -> Vec<Session> {
        (0..seconds * 10)
            .map(|tenth| {
                let started = base + SECOND * tenth / 10;
                if outage.contains(&(tenth / 10)) {
                    bad(started)
                } else {
                    good(started)
                }
            })
            .collect()
    }

    #[test]
    fn recovery_is_where_good_windows_begin_and_stay() {
        let base = clock::now();
        let of = |sessions: &[Session], saturated: u32| {
            recovery(sessions, Some(base + SECOND * saturated), base + 60 * SECOND)
        };
        // The last window with more than a tenth lost begins with the outage's last second.
        assert_eq!(of(&course(base, 60, 10..30), 10), Recovery::AfterS(20.0));
        assert_eq!(
            of(&course(base, 60, 10..30), 5),
            Recovery::AfterS(25.0),
            "from saturation"
        );
        assert_eq!(of(&course(base, 60, 0..0), 10), Recovery::AfterS(0.0));
        assert_eq!(of(&course(base, 60, 10..60), 10), Recovery::NotWithinRun);
        assert_eq!(
            of(&course(base, 60, 59..60), 10),
            Recovery::NotWithinRun,
            "it does not stay"
        );
        assert_eq!(of(&course(base, 60, 10..60), 58), Recovery::NotWithinRun);
        let relapse = [course(base, 40, 5..8), course(base + 40 * SECOND, 20, 2..4)].concat();
        assert_eq!(of(&relapse, 5), Recovery::AfterS(39.0), "the relapse counts");
    }

    #[test]
    fn a_tenth_of_a_window_may_be_lost() {
        let base = clock::now();
        let mut sessions = course(base, 60, 0..0);
        for session in &mut sessions[100..105] {
            *session = bad(session.started);
        }
        let end = base + 60 * SECOND;
        assert_eq!(recovery(&sessions, Some(base), end), Recovery::AfterS(0.0));
        sessions[105] = bad(sessions[105].started);
        assert_eq!(recovery(&sessions, Some(base), end), Recovery::AfterS(11.0));
    }

    #[test]
    fn a_late_delivery_is_no_recovery() {
        let base = clock::now();
        let mut sessions = course(base, 30, 0..0);
        for session in &mut sessions[..100] {
            session.greeting = Some(PROMPT);
        }
        let after = recovery(&sessions, Some(base), base + 30 * SECOND);
        assert_eq!(after, Recovery::AfterS(10.0));
    }

    #[test]
    fn without_saturation_there_is_nothing_to_recover_from() {
        let base = clock::now();
        let sessions = course(base, 30, 0..30);
        assert_eq!(
            recovery(&sessions, None, base + 30 * SECOND),
            Recovery::NotSaturated
        );
    }

    #[test]
    fn a_refusal_is_no_greeting() {
        let base = clock::now();
        let at_once = Some(Duration::from_millis(1));
        let busy = session(base, at_once, Outcome::Refused(Stage::Greeting, 421));
        let late = session(base, at_once, Outcome::Refused(Stage::Ehlo, 421));
        let crowd = crowd(&[busy, late]);
        assert_eq!((crowd.tried, crowd.refused, crowd.lost()), (2, 2, 2));
        let losses = [("421 at EHLO", 1), ("421 at the greeting", 1)];
        assert_eq!(
            crowd.losses,
            BTreeMap::from(losses.map(|(loss, count)| (loss.to_owned(), count)))
        );
        assert_eq!((crowd.greeting_p50_ms, crowd.greeting_p99_ms), (Some(1.0), None));
    }

    fn sample(at: Instant, depth: u32, pass_queue: Option<u32>, edited: bool) -> Sample {
        Sample {
            at,
            depth,
            pass_queue,
            accepted: depth + 1,
            overflows: 0,
            edited,
        }
    }

    #[test]
    fn saturation_is_a_queue_of_five_in_the_attack() {
        let attack = clock::now() + 10 * SECOND;
        let before = sample(attack - SECOND, 50, None, false);
        let short = sample(attack, 4, None, false);
        let long = sample(attack + SECOND, 5, None, false);
        assert_eq!(saturation(&[before, short], attack), None);
        assert_eq!(saturation(&[before, short, long], attack), Some(long.at));
        let pass = sample(attack, 0, Some(7), false);
        assert_eq!(saturation(&[before, pass, long], attack), Some(pass.at));
    }

    #[test]
    fn a_second_has_the_sessions_that_began_and_those_that_ended_in_it() {
        let attack = clock::now() + 10 * SECOND;
        let early = session(attack - SECOND / 2, Some(SECOND), Outcome::Delivered);
        let lost = bad(attack + SECOND / 4);
        let samples = [
            sample(attack, 3, None, false),
            sample(attack + SECOND / 2, 1, Some(4), true),
        ];
        let course = seconds(&[early, lost], &samples, attack);
        assert_eq!(course.len(), 32, "from -1 to 30, where the lost one gave up");
        assert_eq!(
            course[0],
            Second {
                at_s: -1,
                waits_ms: vec![Some(1000.0)],
                ..Second::default()
            }
        );
        assert_eq!(
            course[1],
            Second {
                at_s: 0,
                waits_ms: vec![None],
                delivered: 1,
                queue: 4,
                accepted: 4,
                stress: true,
            }
        );
        assert_eq!(seconds(&[], &[], attack), []);
    }
}
