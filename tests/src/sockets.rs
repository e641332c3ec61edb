//! What the kernel's own `ss` says of port 25: the yardstick that the sentinel is held against.

use anyhow::{Context, Result};

use crate::netns::Namespace;

/// The sockets of port 25 at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Established and accepted: an smtpd holds each.
    pub held: u32,
    /// Established and still in the accept queue.
    pub queued: u32,
    /// Recv-Q of the listening socket: all of the accept queue, also those whose client has left.
    pub depth: u32,
    /// Send-Q of the listening socket: the backlog.
    pub backlog: u32,
}

impl Port {
    pub(crate) fn read(namespace: &Namespace) -> Result<Self> {
        let listening = namespace.output("ss", &["-Hltn", "sport = :25"])?;
        let mut columns = listening.split_whitespace().skip(1);
        let mut number = || {
            columns
                .next()
                .and_then(|text| text.parse().ok())
                .context("ss shows no listener on port 25")
        };
        let (depth, backlog) = (number()?, number()?);

        // A socket that waits in the accept queue has no inode yet; ss prints `ino:0`.
        let established = namespace.output("ss", &["-Htne", "state", "established", "sport = :25"])?;
        let accepted = |line: &&str| {
            line.split_whitespace()
                .any(|word| word.strip_prefix("ino:").is_some_and(|inode| inode != "0"))
        };
        let held = u32::try_from(established.lines().filter(accepted).count())?;
        let all = u32::try_from(established.lines().count())?;
        Ok(Self {
            held,
            queued: all - held,
            depth,
            backlog,
        })
    }
}
