//! Who is watched when there are more masters than may be: pure.
//!
//! Whoever can start processes in a container can start a thousand that look like a master. So the host's own masters
//! come first, then the oldest of each container, then the second of each; a thousand fakes in one container take the
//! place of each other, and of no real one elsewhere.

use std::collections::HashMap;

use super::Master;

/// The masters to watch, at most `limit` of them, and those that are passed over.
pub fn choose(mut masters: Vec<Master>, limit: usize) -> (Vec<Master>, Vec<Master>) {
    // A fake that comes after the real one stands behind it.
    masters.sort_by_key(|master| (master.start_time, master.pid));
    let mut taken: HashMap<String, usize> = HashMap::new();
    let mut ranked: Vec<(usize, Master)> = masters
        .into_iter()
        .map(|master| match master.root.container() {
            None => (0, master),
            Some(container) => {
                let rank = taken.entry(container.group.clone()).or_insert(0);
                *rank += 1;
                (*rank, master)
            }
        })
        .collect();
    // Stable: within a rank the oldest first, so that nobody who is watched is displaced by his equal.
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut masters: Vec<Master> = ranked.into_iter().map(|(_, master)| master).collect();
    let over = masters.split_off(limit.min(masters.len()));
    (masters, over)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::super::root::{Container, Root};
    use super::*;

    fn master(pid: i32, group: Option<&str>) -> Master {
        let root = group.map_or(Root::Own, |group| {
            let fd = File::open("/").unwrap().into();
            Root::Container(Arc::new(
                Container::new(fd, format!("{group}/{pid}"), group.into(), None, 1).unwrap(),
            ))
        });
        Master {
            pid,
            start_time: u64::from(pid.unsigned_abs()),
            root,
            config_dir: "/etc/postfix".into(),
            queue_dir: "/q".into(),
            daemon_dir: "/d".into(),
            netns: 1,
        }
    }

    #[test]
    fn a_thousand_fakes_crowd_out_nobody() {
        let fakes = (100..1100).map(|pid| master(pid, Some("hostile")));
        let late = [
            master(2000, Some("web")),
            master(2001, Some("mx")),
            master(2002, None),
        ];
        let (watched, over) = choose(fakes.chain(late).collect(), 8);
        let pids: Vec<i32> = watched.iter().map(|one| one.pid).collect();
        assert_eq!(pids, [2002, 100, 2000, 2001, 101, 102, 103, 104]);
        assert_eq!(over.len(), 1003 - 8);
    }

    #[test]
    fn below_the_limit_nobody_is_left_out() {
        let all: Vec<Master> = (1..5).map(|pid| master(pid, Some("one"))).collect();
        assert_eq!(choose(all.clone(), 4), (all, vec![]));
    }
}
