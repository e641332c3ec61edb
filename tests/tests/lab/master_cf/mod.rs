//! Our reading of master.cf against Postfix's own, of the machine and of four Debian suites: what postconf(1) sees before
//! and after our edit, and whether master(8) lives where we say that it does.

mod agree;
mod corpus;
mod disabled;
mod fate;
mod random;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use sentinel_lab::judge::Judge;
use smtp_sentinel::postfix::endpoint::Names;

/// Every Postfix at hand: those of the suites, oldest first, and the machine's own.
static JUDGES: LazyLock<Vec<Judge>> = LazyLock::new(|| {
    let mut judges = Judge::of_all_suites().unwrap();
    judges.push(Judge::of_this_machine().unwrap());
    judges
});

/// Masters and postconfs that run side by side: a master is idle for most of its second.
const AT_ONCE: usize = 16;

/// Runs `check` on every item, many at a time; the first panic is the test's.
fn for_each<T: Sync>(items: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(item);
                }
            });
        }
    });
}

/// The names that the daemon goes by.
fn names() -> Names {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    Names::from_files(&read("/etc/services"), &read("/etc/hosts"))
}
