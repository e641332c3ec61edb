//! What is left, and what one smtpd takes: a few small files of /proc and of the control groups that the master is in.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::Current as _;
use procfs::process::Process as Proc;

use super::{Machine, Memory, Process};

const CGROUPS: &str = "/sys/fs/cgroup";

/// The largest of these processes; `None` when none of them is there any more.
pub fn of_processes(pids: impl IntoIterator<Item = i32>) -> Option<Process> {
    pids.into_iter().filter_map(of_process).reduce(|a, b| Process {
        memory: a.memory.max(b.memory),
        files: a.files.max(b.files),
    })
}

fn of_process(pid: i32) -> Option<Process> {
    /// Where its files may not be looked at: smtpd has some 20 to 30 open.
    const FILES: u64 = 32;
    let process = Proc::new(pid).ok()?;
    // What it shares with other smtpd (program, libraries) is there already.
    let kib = process.status().ok()?.rssanon?;
    Some(Process {
        memory: kib << 10,
        files: process.fd_count().map_or(FILES, |count| count as u64),
    })
}

/// What is left for the master with this pid.
///
/// # Errors
/// /proc does not tell how much memory there is.
pub fn measure(master: i32) -> Result<Machine, String> {
    let unknown = |error: procfs::ProcError| format!("how much memory is free is not known: {error}");
    let meminfo = procfs::Meminfo::current().map_err(unknown)?;
    let mut memory = Memory {
        available: meminfo.mem_available.unwrap_or(meminfo.mem_free),
        total: meminfo.mem_total,
    };
    let mut processes = tasks_left();
    for group in groups(master) {
        let number = |name: &str| number(&group.join(name));
        if let (Some(most), Some(used)) = (number("memory.max"), number("memory.current")) {
            // What is used holds page cache too, which gives way: memory.stat tells how much of it lies idle.
            let idle = inactive_file(&group).unwrap_or(0);
            memory.available = memory
                .available
                .min(most.saturating_sub(used.saturating_sub(idle)));
            memory.total = memory.total.min(most);
        }
        if let (Some(most), Some(used)) = (number("pids.max"), number("pids.current")) {
            let left = most.saturating_sub(used);
            processes = Some(processes.map_or(left, |before| before.min(left)));
        }
    }
    Ok(Machine {
        memory,
        processes,
        files: files_left(),
    })
}

/// The control group of a process, and all above it. Empty where there is no cgroup2, or where it lies out of sight.
fn groups(pid: i32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let Some(path) = path.filter(|path| !path.split('/').any(|part| part == "..")) else {
        return Vec::new();
    };
    let root = Path::new(CGROUPS);
    let unified = root.join("unified");
    let root = if unified.is_dir() { &unified } else { root };
    let group = root.join(path);
    group
        .ancestors()
        .take_while(|group| group.starts_with(root))
        .map(Path::to_owned)
        .collect()
}

/// `None`: there is no such file, or it says "max".
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn inactive_file(group: &Path) -> Option<u64> {
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "))?;
    line.trim().parse().ok()
}

/// Threads that the machine may still start.
fn tasks_left() -> Option<u64> {
    let most = number(Path::new("/proc/sys/kernel/threads-max"))?;
    let most = most.min(number(Path::new("/proc/sys/kernel/pid_max")).unwrap_or(u64::MAX));
    let now = procfs::LoadAverage::current().ok()?.max;
    Some(most.saturating_sub(u64::from(now)))
}

/// Of the machine; smtpd's own limit is not reached by more processes.
fn files_left() -> Option<u64> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let (used, _, most) = (
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
    );
    Some(most.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_files_and_the_machine_has_some_left() {
        let own = of_processes([i32::try_from(std::process::id()).unwrap()]).unwrap();
        assert!(own.memory > 0 && own.files > 0, "{own:?}");
        assert_eq!(of_processes([-1]), None);
        let machine = measure(1).unwrap();
        assert!(machine.memory.available > 0 && machine.memory.total >= machine.memory.available);
        assert_ne!(machine.processes, Some(0));
    }

    #[test]
    fn the_word_max_is_no_number() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids.max");
        fs::write(&file, "max\n").unwrap();
        assert_eq!(number(&file), None);
        fs::write(&file, "17\n").unwrap();
        assert_eq!(number(&file), Some(17));
    }
}
