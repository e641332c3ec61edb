//! What a process uses, as /proc has it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// Of one process, with all of its threads, those that have ended too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Duration,
    pub resident_bytes: u64,
    pub descriptors: usize,
    pub threads: u64,
}

impl Usage {
    /// # Errors
    /// The process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may have blanks in it; field 3 follows.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let field = |number: usize| -> Result<u64> {
            let text = fields.get(number - 3).context("/proc/PID/stat is short")?;
            text.parse()
                .with_context(|| format!("field {number} of /proc/{pid}/stat: {text}"))
        };
        let threads = field(20)?;
        // To the nanosecond; that of stat is in clock ticks, of which an idle daemon takes a few a minute.
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?;
        Ok(Self {
            cpu: Duration::from(clock.now()?),
            resident_bytes: resident(pid)?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads,
        })
    }
}

/// VmRSS; that of stat is kept per CPU and is off by up to some hundred kilobytes.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("no VmRSS")?;
    Ok(kib * 1024)
}
