//! What a run says, as it is stored: JSON with units in the names. `null` is "there was none", never "not looked at".

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

/// All scenarios of one profile, on the same load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub profile: String,
    pub about: String,
    pub maxproc: u32,
    pub machine: Machine,
    pub seed: u64,
    /// Scenarios that ran at the same time.
    pub jobs: usize,
    /// The measured time.
    pub window_s: f64,
    /// A sender without a greeting by then gives up.
    pub patience_s: f64,
    pub runs: Vec<Run>,
    pub not_run: Vec<NotRun>,
}

impl Outcome {
    /// The run of a scenario.
    pub fn run(&self, scenario: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.scenario == scenario)
    }
}

/// A scenario that was asked for and could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotRun {
    pub scenario: String,
    pub reason: String,
}

/// What the figures were measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub processors: usize,
    pub processor: String,
    pub memory_mib: u64,
    pub kernel: String,
    pub postfix: String,
}

impl Machine {
    /// This one. What cannot be read is "unknown": it is a caption, and no reason to lose a run.
    pub fn this() -> Self {
        let unknown = || "unknown".to_owned();
        let line = |file: &str, name: &str| {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = line("/proc/meminfo", "MemTotal");
        let kibibytes = memory.and_then(|memory| memory.split(' ').next()?.parse::<u64>().ok());
        let postconf = std::process::Command::new("postconf")
            .args(["-h", "-d", "mail_version"])
            .output()
            .ok();
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            processor: line("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            memory_mib: kibibytes.unwrap_or_default() / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            postfix: postconf.map_or_else(unknown, |output| {
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            }),
        }
    }
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub scenario: String,
    /// Sessions that began before the attack.
    pub calm: Crowd,
    /// Sessions that began in the measured time, without the slow ones.
    pub legitimate: Crowd,
    /// Honest but slow senders that began in the measured time, by kind.
    pub slow: Vec<Slow>,
    pub recovery: Recovery,
    /// ListenOverflows of the server's network namespace in the attack.
    pub overflows: u64,
    /// The longest accept queue that was seen.
    pub queue_max: u32,
    /// The longest queue of private/smtpd that was seen; `null` without postscreen.
    pub pass_queue_max: Option<u32>,
    /// Reloads of Postfix in the attack, by its log.
    pub reloads: usize,
    pub attackers: Attackers,
    /// `null` in a scenario without.
    pub daemon: Option<Daemon>,
    pub seconds: Vec<Second>,
}

/// Sessions, and how long they waited for a greeting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Crowd {
    pub tried: usize,
    pub delivered: usize,
    pub no_greeting: usize,
    /// A reply that was not the wanted one.
    pub refused: usize,
    /// The connection was lost, or stood still for as long as the sender's patience.
    pub dropped: usize,
    /// What became of those that were not delivered, in words such as "421 at EHLO".
    pub losses: BTreeMap<String, usize>,
    /// From the start of the connect to the greeting; `null` when that session was never greeted.
    pub greeting_p50_ms: Option<f64>,
    pub greeting_p90_ms: Option<f64>,
    pub greeting_p99_ms: Option<f64>,
}

impl Crowd {
    /// Delivered of tried; 1 when nothing was tried.
    pub fn share(&self) -> f64 {
        if self.tried == 0 {
            1.0
        } else {
            self.delivered as f64 / self.tried as f64
        }
    }

    pub fn lost(&self) -> usize {
        self.tried - self.delivered
    }
}

/// Slow but honest senders of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slow {
    pub kind: String,
    pub crowd: Crowd,
}

/// How long legitimate mail was held up. Recovery counts from saturation (five in a queue) to the time from which on at
/// least 90 % of the sessions that begin in any five seconds are greeted within 10 s and delivered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// The queue never got so long.
    NotSaturated,
    AfterS(f64),
    NotWithinRun,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attackers {
    pub connections: usize,
    pub greeted: usize,
    pub dropped: usize,
}

/// What the sentinel did in the attack, by its own history and metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Daemon {
    pub trips: usize,
    /// `null` when this daemon has no such metric.
    pub sheds: Option<u64>,
    pub letting_go: LettingGo,
}

/// How long stress mode outlasts the attack.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LettingGo {
    /// master.cf was already what it was before.
    Nothing,
    /// The run did not wait for it.
    NotAwaited,
    AfterS(f64),
    NotWithinS(f64),
}

/// One second of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Since the start of the attack; negative in the calm.
    pub at_s: i64,
    /// How long each session that began in it waited for its greeting; `null` for ever.
    pub waits_ms: Vec<Option<f64>>,
    /// Sessions that ended in it with their message delivered.
    pub delivered: usize,
    /// Longest accept queue (behind postscreen: or queue of private/smtpd).
    pub queue: u32,
    /// Most connections that Postfix had accepted and not closed.
    pub accepted: u32,
    /// The sentinel's edit was in master.cf.
    pub stress: bool,
}
