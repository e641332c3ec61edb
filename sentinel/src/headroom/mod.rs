//! How many more slots a machine bears: what one smtpd takes, what is left, and what stays in reserve.
//!
//! [`measure()`] looks; [`target()`] decides and is pure. Changing master.cf is the actuator's, and when to do it the
//! controller's.

mod measure;

pub use measure::{measure, of_processes};

/// Of all memory, this part stays free, for whatever else grows in an attack.
const RESERVE_PART: u64 = 10;
/// And never less than this, in bytes.
const RESERVE: u64 = 128 << 20;

/// What a process costs the kernel besides its own pages: page tables, stacks, sockets and their buffers. Bytes.
const KERNEL_SIDE: u64 = 1 << 20;

/// A session at work has more than its smtpd: a cleanup(8), and a part of what delivers. Each new slot is counted as so
/// many processes of its kind.
const PROCESSES_PER_SLOT: u64 = 2;

/// Of the processes and files that are left, this part stays.
const LEFT_PART: u64 = 4;

/// What a machine has left for one service. Bytes and counts; an error says why it is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub memory: Memory,
    /// Processes that may still be started; `None` where nothing limits them.
    pub processes: Option<u64>,
    /// Files that may still be opened; `None` where nothing limits them.
    pub files: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Free for new processes: the least of the machine and of the control groups that the master is in.
    pub available: u64,
    /// The same, when nothing runs.
    pub total: u64,
}

/// One smtpd: the largest that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Pages that it shares with nobody. Bytes.
    pub memory: u64,
    pub files: u64,
}

/// How far maxproc may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub maxproc: u32,
    /// What keeps it below what was asked for; empty when nothing does.
    pub bound_by: String,
}

/// maxproc times `factor`, as far as the machine bears it; an error says what leaves no room at all.
///
/// # Errors
/// Not one slot more can be had.
pub fn target(maxproc: u32, factor: f64, process: Process, machine: &Machine) -> Result<Target, String> {
    let wanted = (f64::from(maxproc) * factor) as u32;
    let extra = u64::from(wanted.saturating_sub(maxproc));
    if extra == 0 {
        return Err("the factor gives not one slot more".to_owned());
    }
    let reserve = (machine.memory.total / RESERVE_PART).max(RESERVE);
    let each = PROCESSES_PER_SLOT * (process.memory + KERNEL_SIDE);
    let by_memory = machine.memory.available.saturating_sub(reserve) / each;
    let keep = |left: u64| left - left / LEFT_PART;
    let by_processes = machine.processes.map(|left| keep(left) / PROCESSES_PER_SLOT);
    let by_files = machine
        .files
        .map(|left| keep(left) / (PROCESSES_PER_SLOT * process.files.max(1)));
    let mib = |bytes: u64| bytes >> 20;
    let memory = || {
        format!(
            "memory: {} MiB are free, {} MiB of them stay, and a slot takes {} MiB",
            mib(machine.memory.available),
            mib(reserve),
            mib(each)
        )
    };
    let bounds = [
        (Some(by_memory), memory()),
        (by_processes, "the process limit".to_owned()),
        (by_files, "the limit of open files".to_owned()),
    ];
    let tightest = bounds
        .into_iter()
        .filter_map(|(slots, what)| Some((slots?, what)))
        .min_by_key(|(slots, _)| *slots);
    match tightest {
        Some((0, what)) => Err(format!("no room for more slots by {what}")),
        Some((slots, what)) if slots < extra => Ok(Target {
            maxproc: maxproc + u32::try_from(slots).unwrap_or(u32::MAX - maxproc),
            bound_by: what,
        }),
        _ => Ok(Target {
            maxproc: wanted,
            bound_by: String::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMTPD: Process = Process {
        memory: 4 << 20,
        files: 20,
    };

    fn machine(available_mib: u64) -> Machine {
        Machine {
            memory: Memory {
                available: available_mib << 20,
                total: 2048 << 20,
            },
            processes: None,
            files: None,
        }
    }

    #[test]
    fn what_was_asked_for_where_there_is_room() {
        let target = target(20, 4.0, SMTPD, &machine(2000)).unwrap();
        assert_eq!((target.maxproc, target.bound_by.as_str()), (80, ""));
    }

    #[test]
    fn memory_bounds_it_and_the_reserve_stays() {
        // 204 MiB stay of 2048, and a slot takes 10.
        let bound = target(20, 4.0, SMTPD, &machine(304)).unwrap();
        assert_eq!(bound.maxproc, 29);
        assert!(bound.bound_by.contains("304 MiB"), "{bound:?}");
        assert!(
            target(20, 4.0, SMTPD, &machine(204))
                .unwrap_err()
                .contains("memory")
        );
    }

    #[test]
    fn processes_and_files_bound_it() {
        let few = Machine {
            processes: Some(40),
            ..machine(2000)
        };
        assert_eq!(target(20, 4.0, SMTPD, &few).unwrap().maxproc, 35);
        let few = Machine {
            files: Some(400),
            ..machine(2000)
        };
        assert_eq!(target(20, 4.0, SMTPD, &few).unwrap().maxproc, 27);
    }

    #[test]
    fn a_factor_of_one_is_none() {
        target(20, 1.0, SMTPD, &machine(2000)).unwrap_err();
        target(3, 1.3, SMTPD, &machine(2000)).unwrap_err();
    }

    proptest! {
        #[test]
        fn never_less_than_there_was_nor_more_than_was_asked_for_or_fits(
            maxproc in 1u32..1000, factor in 1.0f64..16.0, available in 0u64..1 << 36, total in 0u64..1 << 37,
            processes in proptest::option::of(0u64..100_000), memory in 0u64..1 << 28,
        ) {
            let machine = Machine { memory: Memory { available, total }, processes, files: None };
            let process = Process { memory, files: 20 };
            if let Ok(target) = target(maxproc, factor, process, &machine) {
                prop_assert!(target.maxproc > maxproc);
                prop_assert!(f64::from(target.maxproc) <= f64::from(maxproc) * factor);
                let extra = u64::from(target.maxproc - maxproc);
                prop_assert!(extra * memory <= available);
                prop_assert!(processes.is_none_or(|left| extra <= left));
            }
        }
    }
}
