//! Judges: samples in, [`Verdict`] out. Pure: no I/O, no clock; the time is in the sample.
//!
//! No signal trips alone. Busy slots say that something is wrong; only what the clients on those slots do says what,
//! and stress mode cures one condition out of four.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Thresholds;
use crate::signals::window::Window;
use crate::signals::{ProcessLimit, Reading, Sample};

/// A reading older than this decides nothing: a daemon that was stopped, or starved of CPU, must not act on the past.
pub const STALE_AFTER: Duration = Duration::from_secs(3);

/// Share of the slots whose holders can be told from which on one kind of holder names the condition; and share of the
/// slots at the trip threshold whose holders must be told before any is named, and that silent clients must hold for
/// [`VerdictKind::Hogged`]: a few of them say nothing of the rest, who have only just been greeted.
const MAJORITY: f64 = 0.5;

/// Share of all slots that are held when they run out for good.
const ALL_SLOTS: f64 = 1.0;

/// Time constant of the average that has to be below the clear threshold. Sessions arrive at random, and one that is a
/// slot too many for a moment is no reason to hold on to stress mode.
const SETTLED_OVER: Duration = Duration::from_secs(5);

/// From when on a queue counts as standing. What tells overload from a burst is the minimum of the queue over a window
/// (CoDel, RFC 8289 section 3.1), not that somebody had to wait for a moment.
const STANDING_AFTER: Duration = Duration::from_secs(1);

/// The slots' rate of filling is taken over this long: short enough for a burst that takes them all in two seconds.
const FILLING_OVER: Duration = Duration::from_secs(2);

/// What the detector makes of the samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub kind: VerdictKind,
    /// Busy slots over maxproc, 0 to 1; `None` when one of the two is not known or there is no limit.
    pub pressure: Option<f64>,
    /// When the last slot is taken if they go on filling as they did in the last two seconds; `None` when they do not
    /// fill. Zero when none is free.
    pub full_in: Option<Duration>,
    /// Why, in sentences for the operator.
    pub reasons: Vec<String>,
}

/// The conditions that are told apart. Only [`VerdictKind::Hogged`] is one that stress mode cures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Every signal is below its clear threshold.
    Calm,
    /// Between the thresholds, or one signal alone is above.
    Busy,
    /// The slots run out, and clients that sit on them in silence hold them: stress mode helps.
    Hogged,
    /// The slots run out under sessions that do something: stress mode hardly helps.
    Surge,
    /// The slots are held by connections that our own side has not greeted (DNS, policy, milter): stay out.
    SlowGreeting,
    /// The slots are held by sessions that wait for our own side's reply (filter, milter, cleanup): stay out.
    BehindFilter,
    /// Not enough is known, or what is known is too old.
    Unknown,
}

impl fmt::Display for VerdictKind {
    /// The same word as in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Calm => "calm",
            Self::Busy => "busy",
            Self::Hogged => "hogged",
            Self::Surge => "surge",
            Self::SlowGreeting => "slow_greeting",
            Self::BehindFilter => "behind_filter",
            Self::Unknown => "unknown",
        })
    }
}

/// Judges the samples of one service, one after the other.
#[derive(Debug)]
pub struct Detector {
    thresholds: Thresholds,
    /// Exponential average of the pressure, and when it was brought up to date.
    settled: Option<(f64, Instant)>,
    /// Since when every sample has found somebody in the accept queue.
    waiting_since: Option<Instant>,
    filling: Window<u32>,
}

impl Detector {
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            settled: None,
            waiting_since: None,
            filling: Window::new(FILLING_OVER),
        }
    }

    /// Takes the next sample in and judges.
    pub fn step(&mut self, sample: &Sample) -> Verdict {
        let standing = self.standing_queue(sample);
        let (busy, limit) = match slots(sample) {
            Ok(known) => known,
            Err(reason) => {
                self.settled = None;
                return Verdict {
                    kind: VerdictKind::Unknown,
                    pressure: None,
                    full_in: None,
                    reasons: vec![reason],
                };
            }
        };
        let pressure = (f64::from(busy) / f64::from(limit)).min(1.0);
        // Calm is what would be calm by the administrator's own maxproc: headroom is to go when it is not needed.
        let own_limit = sample.own_limit.unwrap_or(limit).min(limit).max(1);
        let own_pressure = (f64::from(busy) / f64::from(own_limit)).min(1.0);
        let settled = self.settle(own_pressure, sample.at);
        let mut reasons = vec![format!("{busy} of {limit} smtpd slots are busy")];
        let mut kind = VerdictKind::Busy;
        if pressure >= self.thresholds.trip() {
            kind = cause(sample, f64::from(limit) * self.thresholds.trip(), &mut reasons);
        } else if settled < self.thresholds.clear()
            && own_pressure < self.thresholds.trip()
            && !standing
            && !self.would_return(sample, settled, own_limit, &mut reasons)
        {
            kind = VerdictKind::Calm;
        }
        if let Some(queue) = sample
            .queue
            .fresh(sample.at, STALE_AFTER)
            .filter(|queue| queue.depth > 0)
        {
            reasons.push(format!(
                "{} of {} places in the accept queue are taken",
                queue.depth, queue.limit
            ));
        }
        Verdict {
            kind,
            pressure: Some(pressure),
            full_in: self.full_in(busy, limit, sample.at),
            reasons,
        }
    }

    /// Whether the slots would run out again if stress mode were taken off: the sessions that only its limits end come
    /// at a rate that, with the timeouts of calm, holds all the slots that are left. The estimate is from above, since an
    /// honest client that pauses for longer than stress mode bears would be done before the timeout of calm. So what fits
    /// the slots is let go, even above the trip threshold: if the clients do stay, the slots fill in minutes, the next
    /// trip sheds them, and the controller waits longer.
    fn would_return(&self, sample: &Sample, settled: f64, limit: u32, reasons: &mut Vec<String>) -> bool {
        let Some(held) = sample.held_without_stress.fresh(sample.at, STALE_AFTER) else {
            return false;
        };
        let returns = settled + held / f64::from(limit) >= ALL_SLOTS;
        if returns {
            reasons.push(format!(
                "without stress mode, clients that only its limits end would hold {held:.0} slots more"
            ));
        }
        returns
    }

    fn settle(&mut self, pressure: f64, now: Instant) -> f64 {
        let settled = match self.settled {
            None => pressure,
            Some((average, at)) => {
                let passed = now.saturating_duration_since(at).as_secs_f64() / SETTLED_OVER.as_secs_f64();
                average + (pressure - average) * (1.0 - (-passed).exp())
            }
        };
        self.settled = Some((settled, now));
        settled
    }

    fn full_in(&mut self, busy: u32, limit: u32, now: Instant) -> Option<Duration> {
        self.filling.mark(now, busy);
        let free = limit.saturating_sub(busy);
        let (age, then) = self.filling.oldest(now)?;
        let gained = busy.saturating_sub(*then);
        if free == 0 {
            Some(Duration::ZERO)
        } else if gained == 0 || age.is_zero() {
            None
        } else {
            Some(age * free / gained)
        }
    }

    fn standing_queue(&mut self, sample: &Sample) -> bool {
        match sample.queue.fresh(sample.at, STALE_AFTER) {
            Some(queue) if queue.depth > 0 => {
                let since = *self.waiting_since.get_or_insert(sample.at);
                sample.at.saturating_duration_since(since) >= STANDING_AFTER
            }
            _ => {
                self.waiting_since = None;
                false
            }
        }
    }
}

/// Busy slots and maxproc, or why there is no pressure to speak of.
fn slots(sample: &Sample) -> Result<(u32, u32), String> {
    let limit = match fresh(&sample.limit, sample.at, "the process limit")? {
        ProcessLimit::Of(limit) => *limit,
        ProcessLimit::Unlimited => return Err("maxproc is 0, so the service has no limit to run into".into()),
    };
    Ok((
        *fresh(&sample.busy, sample.at, "the number of busy slots")?,
        limit,
    ))
}

/// Above the trip threshold, which is `trips_at` slots: what the holders of the slots say of the cause. Who was greeted a
/// moment ago says nothing yet and counts for neither side: in a burst most of them are such, until the last slot is gone.
fn cause(sample: &Sample, trips_at: f64, reasons: &mut Vec<String>) -> VerdictKind {
    let holders = match fresh(&sample.holders, sample.at, "what the clients do") {
        Ok(holders) => *holders,
        Err(reason) => {
            reasons.push(format!("{reason}, and busy slots alone are no reason to act"));
            return VerdictKind::Busy;
        }
    };
    let told = holders.total() - holders.just_greeted;
    let enough = |part: u32| f64::from(part) >= trips_at * MAJORITY;
    let most = |part: u32| f64::from(part) >= f64::from(told) * MAJORITY;
    let (kind, text) = if !enough(told) {
        (
            VerdictKind::Busy,
            format!(
                "{} of them are held by clients that were greeted a moment ago: whether they will speak is still to be seen",
                holders.just_greeted
            ),
        )
    } else if most(holders.ungreeted) {
        (
            VerdictKind::SlowGreeting,
            format!(
                "{} of them have not been greeted yet: our own side is slow (DNS, policy, milter), which stress mode does not cure",
                holders.ungreeted
            ),
        )
    } else if most(holders.server_owes) {
        (
            VerdictKind::BehindFilter,
            format!(
                "{} of them wait for a reply of our own side (filter, milter, cleanup), which stress mode does not cure",
                holders.server_owes
            ),
        )
    } else if most(holders.silent) {
        let kind = if enough(holders.silent) {
            VerdictKind::Hogged
        } else {
            VerdictKind::Busy
        };
        (
            kind,
            format!(
                "{} of them are held by clients that were greeted and say nothing",
                holders.silent
            ),
        )
    } else {
        (
            VerdictKind::Surge,
            format!(
                "only {} of them are held by silent clients: these are sessions at work",
                holders.silent
            ),
        )
    };
    reasons.push(text);
    kind
}

fn fresh<'a, T>(reading: &'a Reading<T>, now: Instant, what: &str) -> Result<&'a T, String> {
    reading
        .fresh(now, STALE_AFTER)
        .ok_or_else(|| match reading.reason() {
            Some(reason) => format!("{what} is not known: {reason}"),
            None => format!("{what} was last seen more than {} s ago", STALE_AFTER.as_secs()),
        })
}

#[cfg(test)]
pub(crate) mod tests;
