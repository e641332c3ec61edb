//! Connections that the kernel dropped because an accept queue was full.
//!
//! ListenOverflows of /proc/PID/net/netstat: exact, but for the whole network namespace of that process, and late:
//! the queue is full before the first one is counted. The probe "overflow" counts the same by listener, where the kernel
//! lets it; this stands in where it does not.

use std::fs::File;
use std::io::{self, Read as _};

/// Longer than the file is, so that it is read at once and not in the small pieces in which an unknown length is felt for.
const ROOM: usize = 16 * 1024;

/// No kernel has that many counters.
const LIMIT: u64 = 1 << 20;

/// ListenOverflows of the network namespace of process `pid`, since that namespace began.
pub fn listen_overflows(pid: i32) -> io::Result<u64> {
    let mut text = String::with_capacity(ROOM);
    File::open(format!("/proc/{pid}/net/netstat"))?
        .take(LIMIT)
        .read_to_string(&mut text)?;
    parse(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no TcpExt ListenOverflows in netstat"))
}

/// The file has pairs of lines: the names, then the values in the same order (net/ipv4/proc.c, netstat_seq_show).
fn parse(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let index = names.split(' ').position(|name| name == "ListenOverflows")?;
    values.split(' ').nth(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_stands_below_its_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 42 43\nIpExt: A B C\nIpExt: 7 8 9\n";
        assert_eq!(parse(text), Some(42));
        assert_eq!(parse("TcpExt: ListenOverflows\n"), None);
        assert_eq!(parse("TcpExt: Other\nTcpExt: 1\n"), None);
    }

    #[test]
    fn this_kernel_has_it() {
        listen_overflows(1).unwrap();
    }
}
