//! Looks at the server's side five times a second while a run lasts, without a process of its own where it can: the kernel's
//! /proc and master.cf are all that it reads, so that every scenario is seen by the same eyes.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{Lab, clock};

const EVERY: Duration = Duration::from_millis(200);
/// private/smtpd is looked at less often: only `ss` tells, and a fork has its price.
const PASS_EVERY: Duration = Duration::from_secs(1);

/// The server at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) at: Instant,
    /// Accept queue of port 25.
    pub(super) depth: u32,
    /// Queue of private/smtpd; `None` without postscreen.
    pub(super) pass_queue: Option<u32>,
    /// Connections to port 25 that were accepted and are not closed.
    pub(super) accepted: u32,
    /// ListenOverflows since the namespace was made.
    pub(super) overflows: u64,
    /// master.cf is not what it was at the start.
    pub(super) edited: bool,
}

impl Sample {
    /// The longer of the queues.
    pub(super) fn queue(&self) -> u32 {
        self.depth.max(self.pass_queue.unwrap_or_default())
    }
}

/// A running sampler. It ends when it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Sample>>>>,
}

impl Sampler {
    /// `original` is master.cf as nobody has edited it.
    pub(super) fn start(lab: &Lab, original: Vec<u8>, behind_postscreen: bool) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let master_cf = lab.postfix.master_cf_path();
        let thread = lab.server().spawn("sampler", move || {
            let mut samples: Vec<Sample> = Vec::new();
            let mut pass = None;
            let mut pass_due = clock::now();
            while !stopped.load(Ordering::Relaxed) {
                let at = clock::now();
                if behind_postscreen && at >= pass_due {
                    pass_due = at + PASS_EVERY;
                    pass = Some(pass_queue()?);
                }
                // Between an edit's rename and our look there may be no file for a moment; the last look stands then.
                let last = samples.last().is_some_and(|last| last.edited);
                let (depth, accepted) = port_25(&fs::read_to_string("/proc/thread-self/net/tcp")?)?;
                samples.push(Sample {
                    at,
                    depth,
                    pass_queue: pass,
                    accepted,
                    overflows: overflows(&fs::read_to_string("/proc/thread-self/net/netstat")?)?,
                    edited: fs::read(&master_cf).map_or(last, |bytes| bytes != original),
                });
                std::thread::sleep(EVERY);
            }
            Ok(samples)
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// # Errors
    /// A look failed.
    pub(super) fn stop(mut self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a sampler is stopped once")?;
        thread.join().ok().context("the sampler panicked")?
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Accept queue, and accepted connections, of port 25 in /proc/net/tcp. Of a listener, `rx_queue` is the accept queue; a
/// connection that nobody has accepted yet has no inode (net/ipv4/tcp_ipv4.c, get_tcp4_sock()).
fn port_25(table: &str) -> Result<(u32, u32)> {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    const LISTEN: &str = "0A";
    let mut depth = None;
    let mut accepted = 0;
    for line in table.lines().skip(1) {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [_, local, _, state, queues, _, _, _, _, inode, ..] = columns[..] else {
            continue;
        };
        if !local.ends_with(":0019") {
            continue;
        }
        match state {
            LISTEN => {
                let queue = queues.split_once(':').context("no queues in /proc/net/tcp")?.1;
                let queue = u32::from_str_radix(queue, 16).context("no number in /proc/net/tcp")?;
                depth = Some(depth.unwrap_or(0) + queue);
            }
            ESTABLISHED | CLOSE_WAIT if inode != "0" => accepted += 1,
            _ => {}
        }
    }
    Ok((depth.context("nobody listens on port 25")?, accepted))
}

/// ListenOverflows in /proc/net/netstat: a line of names and a line of numbers for each group.
fn overflows(netstat: &str) -> Result<u64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next(), lines.next());
    let (names, numbers) = names.zip(numbers).context("no TcpExt in /proc/net/netstat")?;
    let number = names
        .split(' ')
        .zip(numbers.split(' '))
        .find_map(|(name, number)| (name == "ListenOverflows").then_some(number));
    let number = number.context("no ListenOverflows in /proc/net/netstat")?;
    number.parse().context("no number in /proc/net/netstat")
}

/// Connections that wait in private/smtpd. Must be called inside the server's namespace, which has no other Postfix.
fn pass_queue() -> Result<u32> {
    let output = Command::new("ss")
        .arg("-Hxl")
        .output()
        .context("running ss (iproute2)")?;
    ensure!(
        output.status.success(),
        "ss: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(pass_queue_of(&String::from_utf8_lossy(&output.stdout)))
}

/// A reload takes the socket away for a moment; nobody waits in it then.
fn pass_queue_of(listeners: &str) -> u32 {
    listeners
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|columns| columns.get(4).is_some_and(|path| path.ends_with("private/smtpd")))
        .filter_map(|columns| columns.get(2)?.parse::<u32>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_tells_its_queue_and_an_accepted_connection_has_an_inode() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:0019 00000000:0000 0A 00000000:0000000C 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
            1: 0100007F:1F90 00000000:0000 0A 00000000:00000007 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n\
            2: 01004C0A:0019 0701004D:A001 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 20 4 30 10 -1\n\
            3: 01004C0A:0019 0701004D:A002 08 00000000:00000000 00:00000000 00000000     0        0 4714 1 0 20 4 30 10 -1\n\
            4: 01004C0A:0019 0701004D:A003 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1\n\
            5: 01004C0A:0019 0701004D:A004 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0\n";
        assert_eq!(port_25(table).unwrap(), (12, 2));
        assert!(
            port_25("  sl\n").is_err(),
            "no listener is no queue, not an empty one"
        );
    }

    #[test]
    fn overflows_are_found_by_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 23 24\n\
                       IpExt: InNoRoutes\nIpExt: 0\n";
        assert_eq!(overflows(netstat).unwrap(), 23);
        assert!(overflows("IpExt: InNoRoutes\nIpExt: 0\n").is_err());
    }

    #[test]
    fn the_queue_behind_postscreen_is_found_by_its_path() {
        let listeners = "u_str LISTEN 0      100    public/cleanup 123 * 0\n\
                         u_str LISTEN 17     100    private/smtpd 124 * 0\n\
                         u_str LISTEN 3      100    private/smtpd.old 125 * 0\n";
        assert_eq!(pass_queue_of(listeners), 17);
        assert_eq!(pass_queue_of(""), 0);
    }
}
