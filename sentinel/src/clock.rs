//! The only place that reads time. Everywhere else an instant is an argument, so that replay and tests own it.

use std::time::Instant;

use jiff::Timestamp;

/// One reading of both clocks: the monotonic one decides, the wall clock is only written down for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic; every interval and every age is measured on it, so a jump of the wall clock changes nothing.
    pub mono: Instant,
    /// Wall clock, for the journal and for messages.
    pub wall: Timestamp,
}

/// Reads both clocks.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn now() -> Now {
    Now {
        mono: Instant::now(),
        wall: Timestamp::now(),
    }
}

/// Clock ticks since boot, on the clock of a process's start time (/proc/PID/stat field 22).
pub fn boot_ticks() -> std::io::Result<u64> {
    use procfs::Current as _;
    let uptime = procfs::Uptime::current().map_err(std::io::Error::other)?;
    // Two decimals in the file, and 100 ticks a second: nothing is lost but the float's own dust.
    Ok((uptime.uptime * procfs::ticks_per_second() as f64).round() as u64)
}

/// A moment of the wall clock, as of a file, on the same clock. One before the boot is 0.
pub fn ticks_at(moment: Timestamp) -> std::io::Result<u64> {
    let age = now().wall.duration_since(moment).as_millis();
    let ticks = age * i128::from(procfs::ticks_per_second()) / 1000;
    let at = i128::from(boot_ticks()?) - ticks;
    Ok(u64::try_from(at).unwrap_or(0))
}
