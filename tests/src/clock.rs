//! The lab's clock, and waiting on conditions. Load runs in real time against a real Postfix, so time cannot be an
//! argument here; it is read in this one place all the same.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at. Short against every latency that a test measures, long against the cost of a look
/// at /proc on a busy machine.
const POLL: Duration = Duration::from_millis(50);

#[expect(
    clippy::disallowed_methods,
    reason = "test support: the load runs in real time"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Polls until `look` finds what it looks for. Tests wait on conditions with it and never sleep for a guessed time.
///
/// # Errors
/// `patience` is over; the message says what was awaited. An error of `look` itself ends the wait at once.
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// [`wait_for`] for a plain condition.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, patience, || Ok(holds()?.then_some(())))
}
