//! Decides: verdict in, state and [`Plan`] out. Pure: no I/O, no clock; what was done comes back through
//! [`Controller::settle`].
//!
//! Trip and clear have their own conditions and their own dwell. Each relapse within an hour doubles the dwell before
//! letting go, so that an attacker who pulses is met by stress mode that stays on, not by one reload a pulse.

mod budget;
mod headroom;
mod told;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use self::budget::Budget;
pub use self::headroom::{Headroom, RoomGate, RoomPlan};
use self::told::Told;
use crate::detector::{STALE_AFTER, Verdict, VerdictKind};

/// Trips further back than this do not count as relapses.
const RELAPSE_WITHIN: Duration = Duration::from_secs(3600);

/// The dwell before letting go is doubled at most this often.
const MAX_DOUBLINGS: u32 = 3;

/// Tells the refusals of the budget from others: their sentence counts seconds down.
const BUDGET: &str = "budget";

/// After this long without a verdict the edit is taken back: what the admin wrote is the safe state.
const BLIND_LETS_GO: Duration = Duration::from_secs(300);

/// After an action that failed, this long until the next try, and twice as long after each further failure, up to
/// 16 minutes: a file that stays as it is needs no entry in the history every 30 s.
const RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_RETRY_DOUBLINGS: u32 = 5;

/// The state of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No edit of ours.
    Normal,
    /// `-o stress=yes` is ours and in force.
    Stressed,
    /// Still in force; all signals are below their clear thresholds, and the dwell runs.
    Recovering,
}

impl State {
    pub const ALL: [Self; 3] = [Self::Normal, Self::Stressed, Self::Recovering];
}

impl fmt::Display for State {
    /// The same word as in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal",
            Self::Stressed => "stressed",
            Self::Recovering => "recovering",
        })
    }
}

/// What the actuator is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    /// Put `-o stress=yes` on the service and reload.
    Trip {
        reasons: Vec<String>,
    },
    /// Take our lines back and reload.
    Clear {
        reasons: Vec<String>,
    },
}

/// One of the two things that a [`Plan`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Trip,
    Clear,
}

/// How long a condition has to last before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dwell {
    /// Hogged for this long, or for a quarter of the time until the slots are full if that is shorter: trip.
    pub trip: Duration,
    /// Calm for this long, doubled by each relapse: clear.
    pub clear: Duration,
}

/// What stands between a verdict and an act.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The instance and the entry may be touched; else why not.
    pub actionable: Result<(), String>,
    /// Master's own stress mode is on: there is nothing to toggle.
    pub native_stress: bool,
    /// A trip can be paid for; else why not.
    pub budget: Result<(), String>,
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub from: State,
    pub to: State,
    pub reasons: Vec<String>,
}

/// What one step comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub plan: Plan,
    pub transition: Option<Transition>,
    /// It would trip and must not, told once for each reason in an episode.
    pub refusal: Option<String>,
}

/// The state machine of one service.
#[derive(Debug)]
pub struct Controller {
    dwell: Dwell,
    state: State,
    hogged_since: Option<Instant>,
    /// The last look that did not find the slots hogged.
    not_hogged_at: Option<Instant>,
    calm_since: Option<Instant>,
    blind_since: Option<Instant>,
    stepped_at: Option<Instant>,
    retry_at: Option<Instant>,
    /// Actions that failed one after the other.
    failures: u32,
    /// Somebody took our lines out in the midst of an attack: until that is over, it is their decision.
    yielded: bool,
    /// Trips within the last hour.
    trips: VecDeque<Instant>,
    told: Told,
}

impl Controller {
    pub fn new(dwell: Dwell) -> Self {
        Self {
            dwell,
            state: State::Normal,
            hogged_since: None,
            not_hogged_at: None,
            calm_since: None,
            blind_since: None,
            stepped_at: None,
            retry_at: None,
            failures: 0,
            yielded: false,
            trips: VecDeque::new(),
            told: Told::default(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Takes the next verdict in. A plan is a request: the state follows only through [`Controller::settle`].
    pub fn step(&mut self, now: Instant, verdict: &Verdict, gate: &Gate) -> Step {
        self.watch(now, verdict.kind);
        if lasted(self.calm_since, now, self.clear_dwell()) {
            self.yielded = false;
            self.told.forget();
        }
        let mut step = Step {
            plan: Plan::Nothing,
            transition: None,
            refusal: None,
        };
        let waits = self.waits(now);
        match self.state {
            State::Normal if lasted(self.hogged_since, now, self.trip_dwell(verdict)) && !waits => {
                match self.refusal(gate) {
                    None => {
                        step.plan = Plan::Trip {
                            reasons: verdict.reasons.clone(),
                        }
                    }
                    Some(why) if self.told.is_news(&why.key, now) => step.refusal = Some(why.sentence),
                    Some(_) => {}
                }
            }
            State::Normal => {}
            State::Stressed if self.calm_since.is_some() => {
                step.transition = Some(self.go(State::Recovering, verdict.reasons.clone()));
            }
            State::Recovering if self.calm_since.is_none() && self.blind_since.is_none() => {
                step.transition = Some(self.go(State::Stressed, verdict.reasons.clone()));
            }
            State::Stressed | State::Recovering => {
                if let Some(reason) = self.lets_go(now).filter(|_| !waits) {
                    let mut reasons = vec![reason];
                    reasons.extend(verdict.reasons.iter().cloned());
                    step.plan = Plan::Clear { reasons };
                }
            }
        }
        step
    }

    /// What became of a plan. A success moves the state, a failure waits a while before the next try.
    pub fn settle(&mut self, now: Instant, act: Act, done: bool, reasons: Vec<String>) -> Option<Transition> {
        if !done {
            self.failed(now);
            return None;
        }
        self.try_again();
        self.hogged_since = None;
        self.calm_since = None;
        match act {
            Act::Trip => {
                self.told.forget();
                self.forget_old_trips(now);
                self.trips.push_back(now);
                Some(self.go(State::Stressed, reasons))
            }
            Act::Clear => Some(self.go(State::Normal, reasons)),
        }
    }

    /// The edit did not take, and was rolled back.
    pub fn lost(&mut self, now: Instant, reason: String) -> Option<Transition> {
        self.failed(now);
        (self.state != State::Normal).then(|| self.go(State::Normal, vec![reason]))
    }

    /// Since when the slots have been hogged: the last look that did not find it, and the first that did.
    pub fn crossing(&self) -> Option<(Instant, Instant)> {
        let since = self.hogged_since?;
        Some((self.not_hogged_at.unwrap_or(since), since))
    }

    /// Somebody else has decided against our edit. It is not put back while what it was for lasts: that would be a
    /// fight over the file.
    pub fn yielded(&mut self, reason: String) -> Option<Transition> {
        self.yielded = true;
        self.hogged_since = None;
        self.calm_since = None;
        (self.state != State::Normal).then(|| self.go(State::Normal, vec![reason]))
    }

    /// What made an action fail may be over: the next one need not wait.
    pub fn try_again(&mut self) {
        self.retry_at = None;
        self.failures = 0;
    }

    /// An action failed; the next try waits.
    pub fn failed(&mut self, now: Instant) {
        self.retry_at = Some(now + RETRY_AFTER * 2u32.pow(self.failures.min(MAX_RETRY_DOUBLINGS)));
        self.failures = self.failures.saturating_add(1);
    }

    /// Whether the next try has to wait.
    pub fn waits(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| now < at)
    }

    /// How long hogged has to last: patient on a slow ramp, and never longer than a quarter of the time that is left
    /// until the last slot is gone. Below saturation is the time to act.
    fn trip_dwell(&self, verdict: &Verdict) -> Duration {
        verdict
            .full_in
            .map_or(self.dwell.trip, |left| self.dwell.trip.min(left / 4))
    }

    /// How long the calm has to last this time.
    pub fn clear_dwell(&self) -> Duration {
        let relapses = u32::try_from(self.trips.len().saturating_sub(1)).unwrap_or(u32::MAX);
        self.dwell.clear * 2u32.pow(relapses.min(MAX_DOUBLINGS))
    }

    fn watch(&mut self, now: Instant, kind: VerdictKind) {
        // Nobody looked for so long (the daemon was stopped, or starved): what held before it need not have lasted.
        if self
            .stepped_at
            .is_some_and(|at| now.saturating_duration_since(at) > STALE_AFTER)
        {
            self.hogged_since = None;
            self.calm_since = None;
        }
        self.stepped_at = Some(now);
        let keep = |since: Option<Instant>, holds: bool| holds.then(|| since.unwrap_or(now));
        if kind != VerdictKind::Hogged {
            self.not_hogged_at = Some(now);
        }
        self.hogged_since = keep(self.hogged_since, kind == VerdictKind::Hogged);
        self.calm_since = keep(self.calm_since, kind == VerdictKind::Calm);
        self.blind_since = keep(self.blind_since, kind == VerdictKind::Unknown);
    }

    fn refusal(&self, gate: &Gate) -> Option<Refusal> {
        if gate.native_stress {
            let sentence = "master has switched its own stress mode on already, there is nothing to toggle";
            return Some(Refusal {
                key: "native".into(),
                sentence: sentence.into(),
            });
        }
        if let Err(why) = &gate.actionable {
            return Some(Refusal {
                key: why.clone(),
                sentence: why.clone(),
            });
        }
        if self.yielded {
            let sentence = format!(
                "somebody else has taken our lines out of master.cf, so stress mode stays off until it has been calm for {} s",
                self.clear_dwell().as_secs()
            );
            return Some(Refusal {
                key: "yielded".into(),
                sentence,
            });
        }
        gate.budget.as_ref().err().map(|why| Refusal {
            key: BUDGET.into(),
            sentence: why.clone(),
        })
    }

    fn lets_go(&self, now: Instant) -> Option<String> {
        let dwell = self.clear_dwell();
        if lasted(self.calm_since, now, dwell) {
            Some(format!(
                "all signals have been below their clear thresholds for {} s",
                dwell.as_secs()
            ))
        } else if lasted(self.blind_since, now, BLIND_LETS_GO) {
            Some(format!(
                "nothing has been known of the service for {} s",
                BLIND_LETS_GO.as_secs()
            ))
        } else {
            None
        }
    }

    fn go(&mut self, to: State, reasons: Vec<String>) -> Transition {
        let from = std::mem::replace(&mut self.state, to);
        Transition { from, to, reasons }
    }

    fn forget_old_trips(&mut self, now: Instant) {
        while self
            .trips
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= RELAPSE_WITHIN)
        {
            self.trips.pop_front();
        }
    }
}

struct Refusal {
    /// What tells one reason from the next.
    key: String,
    sentence: String,
}

fn lasted(since: Option<Instant>, now: Instant, dwell: Duration) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) >= dwell)
}

#[cfg(test)]
mod tests;
