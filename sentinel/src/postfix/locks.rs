//! Idle smtpd processes, as the kernel's lock table shows them.
//!
//! Every daemon of a service with maxproc other than 1 opens `$queue_directory/pid/TYPE.NAME`, and while it is idle it
//! holds that file's flock, or waits for it: one holds it and waits for a client, the others queue behind it. It lets
//! go right after accept() (Postfix src/master/single_server.c). So who neither holds nor waits is busy, or younger
//! than a few milliseconds.

use std::collections::HashSet;
use std::fs;
use std::io;

use super::{Master, ServiceId};

/// The pids that hold or wait for the lock of a service: its idle processes. Only those that are also children of this
/// master count, which the caller knows; a lock of some other program must not be taken for one.
///
/// Says nothing true about a service with maxproc 1, which uses no lock, though a file of an earlier maxproc may lie
/// there: do not ask (see [`super::services::WatchedService::lock_tells_idle`]). Not found: no process of the service
/// has ever run.
pub fn idle_by_lock(master: &Master, id: &ServiceId) -> io::Result<HashSet<i32>> {
    if id.name.contains('/') || id.kind.contains('/') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{id} cannot name a lock file"),
        ));
    }
    let lock = master
        .queue_dir
        .join("pid")
        .join(format!("{}.{}", id.kind, id.name));
    let file = master.root.stat(&lock)?;
    let device = (rustix::fs::major(file.st_dev), rustix::fs::minor(file.st_dev));
    Ok(parse_locks(
        &fs::read_to_string("/proc/locks")?,
        device,
        file.st_ino,
    ))
}

/// The holder and the waiters of the flock on one file.
///
/// The device is that of the superblock, in hex; btrfs and overlayfs report another one in stat(2). So where no lock
/// at all is on this very device, the inode number alone has to do.
fn parse_locks(text: &str, device: (u32, u32), inode: u64) -> HashSet<i32> {
    let locks: Vec<Lock> = text
        .lines()
        .filter_map(parse_lock)
        .filter(|lock| lock.inode == inode)
        .collect();
    let exact = locks.iter().any(|lock| lock.device == device);
    // Pid 0 or -1: a process outside of our pid namespace.
    locks
        .iter()
        .filter(|l| l.pid > 0 && (!exact || l.device == device))
        .map(|l| l.pid)
        .collect()
}

struct Lock {
    pid: i32,
    device: (u32, u32),
    inode: u64,
}

/// `1: FLOCK  ADVISORY  WRITE 14661 fe:00:10117473 0 EOF`, with `->` after the number for one who waits.
fn parse_lock(line: &str) -> Option<Lock> {
    let mut words = line
        .split_ascii_whitespace()
        .skip(1)
        .skip_while(|&word| word == "->");
    if (words.next()?, words.next()?, words.next()?) != ("FLOCK", "ADVISORY", "WRITE") {
        return None;
    }
    let pid = words.next()?.parse().ok()?;
    let mut file = words.next()?.split(':');
    let mut hex = || u32::from_str_radix(file.next()?, 16).ok();
    let device = (hex()?, hex()?);
    Some(Lock {
        pid,
        device,
        inode: file.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 50 fe:10:77 0 EOF
2: FLOCK  ADVISORY  WRITE 51 fe:10:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 52 fe:10:77 0 EOF
2:  -> FLOCK  ADVISORY  WRITE 53 fe:10:77 0 EOF
3: FLOCK  ADVISORY  WRITE 54 fe:10:770 0 EOF
4: FLOCK  ADVISORY  WRITE 55 00:2a:77 0 EOF
5: FLOCK  ADVISORY  READ 56 fe:10:77 0 EOF
6: FLOCK  ADVISORY  WRITE 0 fe:10:77 0 EOF
7: OFDLCK ADVISORY  WRITE -1 fe:10:77 0 EOF
";

    #[test]
    fn holder_and_waiters_are_idle() {
        assert_eq!(parse_locks(LOCKS, (0xfe, 0x10), 77), HashSet::from([51, 52, 53]));
        assert_eq!(parse_locks(LOCKS, (0, 0x2a), 77), HashSet::from([55]));
        assert!(parse_locks(LOCKS, (0xfe, 0x10), 78).is_empty());
    }

    #[test]
    fn a_device_that_stat_reports_otherwise_leaves_the_inode() {
        assert_eq!(parse_locks(LOCKS, (0, 99), 770), HashSet::from([54]));
    }

    #[test]
    fn the_kernel_agrees() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pid")).unwrap();
        let file = fs::File::create(dir.path().join("pid/inet.smtp")).unwrap();
        let master = Master {
            pid: 1,
            start_time: 1,
            root: super::super::Root::Own,
            config_dir: dir.path().into(),
            queue_dir: dir.path().into(),
            daemon_dir: dir.path().into(),
            netns: 1,
        };
        let id = ServiceId {
            name: "smtp".into(),
            kind: "inet".into(),
        };
        assert!(idle_by_lock(&master, &id).unwrap().is_empty());
        rustix::fs::flock(file.as_fd(), rustix::fs::FlockOperation::LockExclusive).unwrap();
        let own_pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(idle_by_lock(&master, &id).unwrap(), HashSet::from([own_pid]));
        let missing = idle_by_lock(
            &master,
            &ServiceId {
                name: "25".into(),
                ..id
            },
        );
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
