//! The course of a run: labs are set up, all loads of a profile begin at the same instant, the attack comes and goes, and
//! what was seen is handed to the measuring.
//!
//! ```text
//! start      attack                                    end of the measured time     end
//!   | calm     | window: its sessions are measured       | tail: load as before       | letting go
//! ```
//! The tail is there so that no measured session meets a load that is ending; the attack lasts until the last sender is done.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::measure;
use super::profiles::{Begin, Profile};
use super::report::{Attackers as Seen, Daemon as Did, LettingGo, Run, Slow};
use super::sampler::{Sample, Sampler};
use super::scenarios::Scenario;
use crate::Lab;
use crate::attackers::{Attackers, Hold, Toll};
use crate::clock::now;
use crate::senders::{Senders, Session};
use crate::sentinel::{Daemon, Sentinel};

/// How long everything lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    pub calm: Duration,
    pub window: Duration,
    pub tail: Duration,
    /// Of the senders, for a greeting.
    pub patience: Duration,
    /// How long the end of stress mode is waited for after the attack.
    pub letting_go: Option<Duration>,
}

impl Phases {
    /// Those of the measurement that the design rests on; `window` as the profile has it unless told otherwise.
    pub fn full(window: Duration) -> Self {
        Self {
            calm: Duration::from_secs(20),
            window,
            tail: Duration::from_secs(35),
            patience: Duration::from_secs(30),
            // Two minutes are promised, and what comes late is to be seen as late.
            letting_go: Some(Duration::from_secs(180)),
        }
    }

    /// For the shape only: built-in stress does not get to its recovery, and senders are less patient.
    pub fn quick(window: Option<Duration>) -> Self {
        Self {
            calm: Duration::from_secs(6),
            window: window.unwrap_or(Duration::from_secs(60)),
            tail: Duration::from_secs(12),
            patience: Duration::from_secs(10),
            letting_go: None,
        }
    }
}

/// Runs scenarios at the same time, on the same load.
///
/// # Errors
/// One of them could not be set up or measured, or left master.cf other than it was; then none counts.
pub fn side_by_side(
    profile: &Profile,
    scenarios: &[Scenario],
    phases: &Phases,
    seed: u64,
) -> Result<Vec<Run>> {
    thread::scope(|scope| {
        let (ready, all_ready) = channel();
        let (mut gos, mut workers) = (Vec::new(), Vec::new());
        for scenario in scenarios {
            let (go, gate) = channel();
            let gate = Gate {
                ready: ready.clone(),
                go: gate,
            };
            gos.push(go);
            workers.push(scope.spawn(move || perform(profile, scenario, phases, seed, gate)));
        }
        drop(ready);
        // One whose set-up fails drops its gate unused, and this ends short; without a go, the others end too.
        if all_ready.iter().count() == scenarios.len() {
            let start = now();
            for go in &gos {
                let _ = go.send(start);
            }
        }
        drop(gos);
        let results = workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a run panicked"))?);
        let results: Vec<_> = results.collect();
        // The one that failed by itself tells more than those that waited for it in vain.
        let own = |result: &Result<Run>| matches!(result, Err(error) if !error.is::<NoStart>());
        match results.iter().position(own) {
            Some(failed) => results.into_iter().nth(failed).into_iter().collect(),
            None => results.into_iter().collect(),
        }
    })
}

/// Holds a run that is set up until all are.
struct Gate {
    ready: Sender<()>,
    go: Receiver<Instant>,
}

#[derive(Debug, thiserror::Error)]
#[error("a run beside this one could not be set up")]
struct NoStart;

impl Gate {
    fn wait(self) -> Result<Instant> {
        let _ = self.ready.send(());
        drop(self.ready);
        self.go.recv().map_err(|_| NoStart.into())
    }
}

fn perform(profile: &Profile, scenario: &Scenario, phases: &Phases, seed: u64, gate: Gate) -> Result<Run> {
    let lab = scenario.lab(profile)?;
    let original = lab.postfix.master_cf()?;
    let sentinel = scenario.sentinel(&lab)?;
    let daemon = sentinel.as_ref().map(Sentinel::start).transpose()?;
    let start = gate.wait()?;
    let sampler = Sampler::start(&lab, original.clone(), scenario.is_behind_postscreen())?;

    let mut load = Load::new(&lab, profile, phases, seed);
    load.play(start)?;
    let witnessed = load.end()?;
    let did = match (&sentinel, &daemon) {
        (Some(sentinel), Some(daemon)) => Some(what_it_did(sentinel, daemon)?),
        _ => None,
    };
    let reloads = lab.postfix.reloads();
    let samples = sampler.stop()?;

    let did = did
        .map(|(trips, sheds)| -> Result<_> {
            Ok(Did {
                trips,
                sheds,
                letting_go: wait_letting_go(&lab, profile, phases, &original)?,
            })
        })
        .transpose()?;
    if let Some(daemon) = daemon {
        daemon.terminate()?;
    }
    ensure!(
        lab.postfix.master_cf()? == original,
        "{} with {}: master.cf is not byte for byte what it was",
        profile.name,
        scenario.name
    );
    let attack = start + phases.calm;
    Ok(witnessed.report(scenario, reloads, did, attack, attack + phases.window, &samples))
}

/// Trips, and sheds where this daemon counts such.
fn what_it_did(sentinel: &Sentinel, daemon: &Daemon<'_>) -> Result<(usize, Option<u64>)> {
    let history = sentinel.history()?;
    let trips = history
        .iter()
        .filter(|entry| entry.is_transition_to("stressed") && entry.from.as_deref() == Some("normal"))
        .count();
    let sheds = daemon.metrics()?.sum("smtp_sentinel_shed_connections_total", &[]);
    Ok((trips, sheds.map(|sheds| sheds as u64)))
}

/// The attack is over and legitimate mail goes on: when is master.cf what it was?
fn wait_letting_go(lab: &Lab, profile: &Profile, phases: &Phases, original: &[u8]) -> Result<LettingGo> {
    const POLL: Duration = Duration::from_millis(100);
    if lab.postfix.master_cf()? == original {
        return Ok(LettingGo::Nothing);
    }
    let Some(patience) = phases.letting_go else {
        return Ok(LettingGo::NotAwaited);
    };
    let over = now();
    let calm = profile.parties.iter().filter(|party| party.begin == Begin::Calm);
    let _senders: Vec<_> = calm
        .map(|party| lab.senders(party.traffic.clone()))
        .collect::<Result<_>>()?;
    while over.elapsed() < patience {
        if lab.postfix.master_cf()? == original {
            return Ok(LettingGo::AfterS(over.elapsed().as_secs_f64()));
        }
        thread::sleep(POLL);
    }
    Ok(LettingGo::NotWithinS(patience.as_secs_f64()))
}

/// A change of the load, by its time since the start of the attack; what has no time is there from the calm on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cue {
    at: Option<Duration>,
    what: Change,
}

/// By number in the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Senders(usize),
    Attack(usize),
    Retreat(usize),
}

/// All changes up to `end`, in order.
fn cues(profile: &Profile, window: Duration, end: Duration) -> Vec<Cue> {
    let mut cues = Vec::new();
    for (number, party) in profile.parties.iter().enumerate() {
        cues.push(Cue {
            at: party.begin.after(window),
            what: Change::Senders(number),
        });
    }
    for (number, assault) in profile.assaults.iter().enumerate() {
        let mut at = assault.begin.after(window).unwrap_or_default();
        cues.push(Cue {
            at: Some(at),
            what: Change::Attack(number),
        });
        let Some((on, off)) = assault.pulse else { continue };
        while at + on < end {
            cues.push(Cue {
                at: Some(at + on),
                what: Change::Retreat(number),
            });
            at += on + off;
            cues.push(Cue {
                at: Some(at),
                what: Change::Attack(number),
            });
        }
    }
    cues.retain(|cue| cue.at.is_none_or(|at| at < end));
    cues.sort();
    cues
}

/// The load of a profile on one lab.
struct Load<'a> {
    lab: &'a Lab,
    profile: &'a Profile,
    phases: &'a Phases,
    seed: u64,
    senders: Vec<(usize, Senders)>,
    attackers: Vec<(usize, Attackers)>,
    holds: Vec<Hold>,
}

impl<'a> Load<'a> {
    fn new(lab: &'a Lab, profile: &'a Profile, phases: &'a Phases, seed: u64) -> Self {
        Self {
            lab,
            profile,
            phases,
            seed,
            senders: Vec::new(),
            attackers: Vec::new(),
            holds: Vec::new(),
        }
    }

    /// Returns when the tail is over, with all loads still on.
    fn play(&mut self, start: Instant) -> Result<()> {
        let attack = start + self.phases.calm;
        let end = self.phases.window + self.phases.tail;
        for (turn, cue) in cues(self.profile, self.phases.window, end)
            .into_iter()
            .enumerate()
        {
            let due = cue.at.map_or(start, |at| attack + at);
            thread::sleep(due.saturating_duration_since(now()));
            // Every part has a seed of its own, and the same one in every scenario.
            self.change(cue.what, self.seed.wrapping_add(1 + turn as u64))?;
        }
        thread::sleep((attack + end).saturating_duration_since(now()));
        Ok(())
    }

    fn change(&mut self, what: Change, seed: u64) -> Result<()> {
        match what {
            Change::Senders(number) => {
                let mut traffic = self.profile.parties[number].traffic.clone();
                traffic.patience = self.phases.patience;
                traffic.seed = seed;
                self.senders.push((number, self.lab.senders(traffic)?));
            }
            Change::Attack(number) => {
                let mut attack = self.profile.assaults[number].attack.clone();
                attack.seed = seed;
                self.attackers.push((number, self.lab.attack(attack)?));
            }
            Change::Retreat(number) => {
                let position = self.attackers.iter().position(|(one, _)| *one == number);
                if let Some(position) = position {
                    self.holds.extend(self.attackers.swap_remove(position).1.stop()?);
                }
            }
        }
        Ok(())
    }

    /// Ends the senders, each with its last session done, and the attackers after them.
    fn end(mut self) -> Result<Witnessed> {
        // The slow ones first: what goes on beside their last sessions is to be the load that they are measured in.
        self.senders
            .sort_by_key(|(number, _)| !self.profile.parties[*number].slow);
        let mut witnessed = Witnessed::default();
        for (number, senders) in self.senders {
            let party = &self.profile.parties[number];
            let sessions = senders.stop()?;
            if party.slow {
                witnessed.slow.push((party.name, sessions));
            } else {
                witnessed.legitimate.extend(sessions);
            }
        }
        for (_, attackers) in self.attackers {
            self.holds.extend(attackers.stop()?);
        }
        witnessed.toll = Toll::of(&self.holds);
        Ok(witnessed)
    }
}

/// What the clients wrote down.
#[derive(Debug, Default)]
struct Witnessed {
    legitimate: Vec<Session>,
    slow: Vec<(&'static str, Vec<Session>)>,
    toll: Toll,
}

impl Witnessed {
    fn report(
        &self,
        scenario: &Scenario,
        reloads: usize,
        daemon: Option<Did>,
        attack: Instant,
        end: Instant,
        samples: &[Sample],
    ) -> Run {
        let measured = |session: &&Session| session.started >= attack && session.started < end;
        let legitimate = self.legitimate.iter().filter(measured);
        let calm = self.legitimate.iter().filter(|session| session.started < attack);
        let slow = self.slow.iter().map(|(kind, sessions)| Slow {
            kind: (*kind).to_owned(),
            crowd: measure::crowd(sessions.iter().filter(measured)),
        });
        let attacked: Vec<_> = samples.iter().filter(|sample| sample.at >= attack).collect();
        let overflows = |sample: Option<&&Sample>| sample.map_or(0, |sample| sample.overflows);
        Run {
            scenario: scenario.name.to_owned(),
            calm: measure::crowd(calm),
            recovery: measure::recovery(legitimate.clone(), measure::saturation(samples, attack), end),
            legitimate: measure::crowd(legitimate),
            slow: slow.collect(),
            overflows: overflows(attacked.last()) - overflows(attacked.first()),
            queue_max: attacked.iter().map(|sample| sample.depth).max().unwrap_or(0),
            pass_queue_max: attacked.iter().filter_map(|sample| sample.pass_queue).max(),
            reloads,
            attackers: Seen {
                connections: self.toll.connections,
                greeted: self.toll.greeted,
                dropped: self.toll.dropped,
            },
            daemon,
            seconds: measure::seconds(&self.legitimate, samples, attack),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::profiles;

    fn named(name: &str) -> Profile {
        let mut all = profiles::all().into_iter();
        all.find(|profile| profile.name == name).expect("a profile")
    }

    fn at(seconds: u64, what: Change) -> Cue {
        Cue {
            at: Some(Duration::from_secs(seconds)),
            what,
        }
    }

    #[test]
    fn a_pulse_comes_and_goes_to_the_end() {
        let seconds = Duration::from_secs;
        let cues = cues(&named("pulse"), seconds(60), seconds(70));
        let senders = Cue {
            at: None,
            what: Change::Senders(0),
        };
        let (attack, retreat) = (Change::Attack(0), Change::Retreat(0));
        assert_eq!(
            cues,
            [
                senders,
                at(0, attack),
                at(20, retreat),
                at(40, attack),
                at(60, retreat)
            ]
        );
    }

    #[test]
    fn a_part_from_halfway_begins_in_the_middle_of_the_window() {
        let mut profile = named("surge");
        profile.parties[1].begin = Begin::Halfway;
        let cues = cues(&profile, Duration::from_secs(60), Duration::from_secs(70));
        assert_eq!(cues.last(), Some(&at(30, Change::Senders(1))));
    }

    #[test]
    fn a_run_that_cannot_be_set_up_holds_no_other_one_up() {
        let (ready, all_ready) = channel();
        let (go, gate) = channel();
        let failed = Gate {
            ready: ready.clone(),
            go: channel().1,
        };
        drop(failed);
        let waiting = thread::spawn(move || Gate { ready, go: gate }.wait());
        assert_eq!(all_ready.iter().count(), 1);
        drop(go);
        assert!(waiting.join().unwrap().unwrap_err().is::<NoStart>());
    }
}
