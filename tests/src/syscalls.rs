//! The system calls of a program's main thread, counted by way of ptrace(2): all of them, and no other program is needed for
//! it. The thread is stopped at each, so that this counts and never times.

use std::fs;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Follows the main thread of a child of this process until it has gone to sleep `sleeps` times more, and returns the calls,
/// by number, that it made before each. A sleep is futex(2), as threads wait for each other, with a time limit or without.
/// Reading a clock is no call on most machines, and is left out on the others.
///
/// # Errors
/// It may not be traced, or ends meanwhile.
pub fn before_each_sleep(pid: u32, sleeps: usize) -> Result<Vec<Vec<i64>>> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).context("tracing the daemon")?;
    ptrace::interrupt(pid)?;
    let mut found = Vec::new();
    // What was made before the first sleep is part of something that began before.
    let mut begun = false;
    let mut calls = Vec::new();
    loop {
        let mut deliver: Option<Signal> = None;
        match waitpid(pid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceSyscall(_) => match entered(pid)? {
                None => {}
                Some(libc::SYS_futex) => {
                    let before = std::mem::take(&mut calls);
                    if begun {
                        found.push(before);
                    }
                    begun = true;
                }
                // The sleep that the tracing itself has interrupted.
                Some(libc::SYS_restart_syscall | libc::SYS_clock_gettime) => {}
                Some(call) => calls.push(call),
            },
            WaitStatus::PtraceEvent(..) => {}
            WaitStatus::Stopped(_, signal) => deliver = Some(signal),
            other => bail!("the daemon ended while its calls were counted: {other:?}"),
        }
        if found.len() == sleeps {
            ptrace::detach(pid, deliver)?;
            return Ok(found);
        }
        ptrace::syscall(pid, deliver)?;
    }
}

/// The number of the call that the stopped thread is about to make; `None` when it comes back from one.
fn entered(pid: Pid) -> Result<Option<i64>> {
    if ptrace::syscall_info(pid)?.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // The number is in that answer too, but in a union.
    let text = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    let number = text.split(' ').next().and_then(|number| number.parse().ok());
    Ok(Some(
        number.with_context(|| format!("/proc/{pid}/syscall: {text}"))?,
    ))
}
