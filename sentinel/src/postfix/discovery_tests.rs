use std::os::unix::fs::symlink;

use super::*;

/// A /proc whose processes share one mount namespace, and a Postfix in the same temporary directory.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for dir in ["proc/self/ns", "sbin", "other", "etc/a", "etc/b", "spool"] {
            fs::create_dir_all(tree.path(dir)).unwrap();
        }
        for file in ["sbin/master", "sbin/smtpd", "other/master"] {
            fs::write(tree.path(file), "").unwrap();
        }
        symlink("mnt:[1]", tree.path("proc/self/ns/mnt")).unwrap();
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A master as `postfix start` leaves it, leader of its session, with `change` applied to its directory.
    fn process(&self, pid: i32, ppid: i32, session: i32, change: impl Fn(&Path)) {
        let dir = self.path(&format!("proc/{pid}"));
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("comm"), "master\n").unwrap();
        let zeros = "0 ".repeat(30);
        let stat = format!(
            "{pid} (master) S {ppid} {pid} {session} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid}5 {zeros}\n"
        );
        fs::write(dir.join("stat"), stat).unwrap();
        fs::write(dir.join("status"), "Name:\tmaster\nUid:\t0\t105\t0\t105\n").unwrap();
        fs::write(dir.join("cmdline"), "/x/master\0-w\0").unwrap();
        fs::write(
            dir.join("environ"),
            format!("MAIL_CONFIG={}\0", self.path("etc/a").display()),
        )
        .unwrap();
        symlink(self.path("sbin/master"), dir.join("exe")).unwrap();
        symlink(self.path("spool"), dir.join("cwd")).unwrap();
        symlink("mnt:[1]", dir.join("ns/mnt")).unwrap();
        symlink("net:[4026531840]", dir.join("ns/net")).unwrap();
        change(&dir);
    }

    fn survey(&self, filter: &[PathBuf]) -> Survey {
        self.survey_in(&Scope {
            config_dirs: filter.to_vec(),
            ..Scope::default()
        })
    }

    fn survey_in(&self, scope: &Scope) -> Survey {
        survey_at(&self.path("proc"), scope).unwrap()
    }
}

fn relink(target: &Path, link: PathBuf) {
    fs::remove_file(&link).unwrap();
    symlink(target, link).unwrap();
}

/// A file that nobody may read, root neither (kernel/sysctl: it can only be written).
const CLOSED: &str = "/proc/sys/vm/compact_memory";

#[test]
fn what_we_may_not_look_into_is_counted_and_told_once() {
    let tree = Tree::new();
    tree.process(10, 1, 10, |_| {});
    let survey = tree.survey(&[]);
    assert_eq!((survey.masters.len(), survey.unseen), (1, Unseen::default()));
    for pid in 11..14 {
        tree.process(pid, 1, pid, |dir| relink(Path::new(CLOSED), dir.join("environ")));
    }
    let survey = tree.survey(&[]);
    assert_eq!((survey.masters.len(), survey.ignored.len()), (1, 0));
    assert_eq!(survey.unseen.count, 3);
    let reason = survey.unseen.reason;
    assert!(
        reason.contains("11/environ") && reason.contains("denied"),
        "{reason}"
    );
}

#[test]
fn a_master_is_found_with_all_its_places() {
    let tree = Tree::new();
    tree.process(10, 1, 10, |_| {});
    let survey = tree.survey(&[]);
    assert_eq!(survey.ignored, []);
    let [master] = &survey.masters[..] else {
        panic!("{survey:?}")
    };
    assert_eq!(
        (master.pid, master.start_time, master.netns),
        (10, 105, 4_026_531_840)
    );
    assert_eq!(master.config_dir, fs::canonicalize(tree.path("etc/a")).unwrap());
    assert_eq!(
        (&master.queue_dir, &master.daemon_dir),
        (&tree.path("spool"), &tree.path("sbin"))
    );
}

#[test]
fn what_only_looks_like_a_master_is_none() {
    let tree = Tree::new();
    tree.process(10, 1, 10, |_| {});
    tree.process(11, 10, 10, |_| {});
    tree.process(12, 10, 12, |_| {});
    tree.process(13, 1, 9, |_| {});
    tree.process(14, 1, 14, |dir| {
        relink(&tree.path("other/master"), dir.join("exe"))
    });
    tree.process(15, 1, 15, |dir| fs::write(dir.join("comm"), "smtpd\n").unwrap());
    let survey = tree.survey(&[]);
    assert_eq!(survey.masters.iter().map(|m| m.pid).collect::<Vec<_>>(), [10]);
    assert_eq!(survey.ignored, []);
}

#[test]
fn what_we_may_not_or_must_not_touch_is_said() {
    let tree = Tree::new();
    tree.process(10, 1, 10, |dir| relink(Path::new("mnt:[2]"), dir.join("ns/mnt")));
    tree.process(11, 1, 11, |dir| {
        fs::write(dir.join("status"), "Uid:\t1000\t0\t0\t0\n").unwrap()
    });
    tree.process(12, 1, 12, |dir| {
        fs::write(dir.join("environ"), "MAIL_CONFIG=/nowhere/at/all\0").unwrap()
    });
    let survey = tree.survey(&[]);
    assert_eq!(survey.masters, []);
    let reasons: Vec<&str> = survey.ignored.iter().map(|i| i.reason.as_str()).collect();
    assert!(reasons[0].contains("mount namespace"), "{reasons:?}");
    assert!(reasons[1].contains("not run as root"), "{reasons:?}");
    assert!(reasons[2].contains("/nowhere/at/all"), "{reasons:?}");
}

#[test]
fn another_mount_namespace_with_the_same_files_is_no_container() {
    let tree = Tree::new();
    let apart = |root: PathBuf| {
        move |dir: &Path| {
            relink(Path::new("mnt:[2]"), dir.join("ns/mnt"));
            symlink(&root, dir.join("root")).unwrap();
        }
    };
    tree.process(10, 1, 10, apart("/".into()));
    tree.process(11, 1, 11, apart(tree.path("spool")));
    let survey = tree.survey(&[]);
    assert_eq!(survey.masters.iter().map(|m| m.pid).collect::<Vec<_>>(), [10]);
    assert!(survey.ignored[0].reason.contains("container"), "{survey:?}");
}

#[test]
fn directories_that_only_have_the_same_name_are_told_apart() {
    let tree = Tree::new();
    tree.process(10, 1, 10, |_| {});
    let [master] = &tree.survey(&[]).masters[..] else {
        panic!()
    };
    same_files(Path::new("/"), master).unwrap();
    // A root in which the path leads elsewhere, by a link that would be ours if it were followed from our root.
    let root = tree.path("root");
    let fake = root.join(master.config_dir.strip_prefix("/").unwrap());
    fs::create_dir_all(fake.parent().unwrap()).unwrap();
    symlink(&master.config_dir, &fake).unwrap();
    let refused = same_files(&root, master).unwrap_err();
    assert!(refused.contains("mount namespace"), "{refused}");
    fs::remove_file(&fake).unwrap();
    fs::create_dir(&fake).unwrap();
    let refused = same_files(&root, master).unwrap_err();
    assert!(refused.contains("another directory"), "{refused}");
}

#[test]
fn an_upgraded_one_and_one_without_a_session_are_masters() {
    let tree = Tree::new();
    let deleted = format!("{} (deleted)", tree.path("sbin/master").display());
    tree.process(10, 1, 10, |dir| relink(Path::new(&deleted), dir.join("exe")));
    tree.process(11, 1, 0, |dir| {
        fs::write(dir.join("cmdline"), "/x/master\0-d\0").unwrap()
    });
    assert_eq!(tree.survey(&[]).masters.len(), 2);
}

#[test]
fn the_filter_follows_symlinks() {
    let tree = Tree::new();
    tree.process(10, 1, 10, |_| {});
    symlink(tree.path("etc/a"), tree.path("etc/link")).unwrap();
    assert_eq!(tree.survey(&[tree.path("etc/link")]).masters.len(), 1);
    let survey = tree.survey(&[tree.path("etc/b")]);
    assert_eq!((survey.masters.len(), survey.ignored.len()), (0, 1));
}

/// A root with a Postfix in it, and a process of it in another mount namespace.
fn contained(tree: &Tree, pid: i32, cgroup: &str, change: impl Fn(&Path)) {
    let root = tree.path("box");
    for dir in ["usr/sbin", "etc/postfix", "etc/other", "spool"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["usr/sbin/master", "usr/sbin/smtpd"] {
        fs::write(root.join(file), "").unwrap();
    }
    fs::write(root.join("etc/hostname"), "web-0\n").unwrap();
    tree.process(pid, 1, pid, |dir| {
        relink(Path::new("mnt:[2]"), dir.join("ns/mnt"));
        relink(&root.join("usr/sbin/master"), dir.join("exe"));
        relink(&root.join("spool"), dir.join("cwd"));
        symlink(&root, dir.join("root")).unwrap();
        fs::write(dir.join("environ"), "").unwrap();
        fs::write(dir.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        fs::write(dir.join("uid_map"), "0 0 4294967295\n").unwrap();
        change(dir);
    });
}

const ID: &str = "3f2a9c1b4d5e6f708192a3b4c5d6e7f83f2a9c1b4d5e6f708192a3b4c5d6e7f8";

fn with_containers(cgroups: &[&str]) -> Scope {
    Scope {
        containers: true,
        cgroups: cgroups.iter().map(|&text| text.to_owned()).collect(),
        ..Scope::default()
    }
}

#[test]
fn a_master_in_a_container_is_found_below_its_root() {
    let tree = Tree::new();
    contained(&tree, 10, &format!("/docker/{ID}"), |_| {});
    assert!(tree.survey(&[]).ignored[0].reason.contains("container"));
    let survey = tree.survey_in(&with_containers(&[]));
    assert_eq!(survey.ignored, []);
    let [master] = &survey.masters[..] else {
        panic!("{survey:?}")
    };
    assert_eq!(master.home().name(), "3f2a9c1b4d5e:/etc/postfix");
    assert_eq!(master.queue_dir, Path::new("/spool"), "as it is called in there");
    assert_eq!(
        master.daemon_dir,
        tree.path("box/usr/sbin"),
        "as it is called out here"
    );
    let container = master.root.container().unwrap();
    assert_eq!(container.hostname.as_deref(), Some("web-0"));
    assert_eq!(container.mount_namespace, 2);
    let elsewhere = tree.survey_in(&with_containers(&["kubepods"]));
    assert!(elsewhere.masters.is_empty());
    assert!(elsewhere.ignored[0].reason.contains("cgroups"), "{elsewhere:?}");
}

#[test]
fn root_of_its_own_users_is_root_enough_and_nobody_else() {
    let tree = Tree::new();
    let user = |uid: &str, map: &str| {
        let (uid, map) = (format!("Uid:\t{uid}\t0\t0\t0\n"), map.to_owned());
        move |dir: &Path| {
            fs::write(dir.join("status"), &uid).unwrap();
            fs::write(dir.join("uid_map"), &map).unwrap();
        }
    };
    let mapped = "         0     100000      65536\n";
    contained(&tree, 10, "/a/b", user("100000", mapped));
    contained(&tree, 11, "/a/b", user("100105", mapped));
    contained(&tree, 12, "/a/b", user("0", mapped));
    contained(&tree, 13, "/a/b", user("0", ""));
    let survey = tree.survey_in(&with_containers(&[]));
    let pids: Vec<i32> = survey.masters.iter().map(|one| one.pid).collect();
    assert_eq!(pids, [10], "{survey:?}");
}

#[test]
fn an_environment_that_points_elsewhere_points_to_nothing_of_ours() {
    let tree = Tree::new();
    let environ = |value: String| move |dir: &Path| fs::write(dir.join("environ"), &value).unwrap();
    let ours = format!("MAIL_CONFIG={}\0", tree.path("etc/a").display());
    contained(&tree, 10, "/a/b", environ(ours));
    contained(
        &tree,
        11,
        "/a/c",
        environ("MAIL_CONFIG=/../../../../etc\0".into()),
    );
    for master in tree.survey_in(&with_containers(&[])).masters {
        assert_ne!(master.root, Root::Own);
        assert!(
            master
                .root
                .read(&master.config_dir.join("master.cf"), 100)
                .is_err()
        );
        assert!(master.root.open_dir(&master.config_dir).is_err());
    }
}

#[test]
fn of_a_thousand_fakes_in_one_container_a_few_are_looked_at() {
    let tree = Tree::new();
    for pid in 100..1100 {
        // Groups that the container made below its own.
        contained(&tree, pid, &format!("/docker/{ID}/g{pid}"), |_| {});
    }
    contained(&tree, 5000, "/docker/another", |_| {});
    let survey = tree.survey_in(&with_containers(&[]));
    assert_eq!(survey.masters.len(), LOOKED_AT + 1);
    assert_eq!(survey.masters.last().map(|one| one.pid), Some(5000));
    assert!(survey.ignored.len() < LOOKED_AT);
}

#[test]
fn without_an_smtpd_beside_it_a_master_in_a_container_is_none() {
    let tree = Tree::new();
    contained(&tree, 10, "/a/b", |_| {});
    fs::remove_file(tree.path("box/usr/sbin/smtpd")).unwrap();
    // One on the host does not count.
    symlink(tree.path("sbin/smtpd"), tree.path("box/usr/sbin/smtpd")).unwrap();
    assert!(tree.survey_in(&with_containers(&[])).masters.is_empty());
}

#[test]
fn what_a_process_has_open_are_its_sockets_and_nothing_else() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    let inode = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    use std::os::fd::AsFd as _;
    let (ours, other) = (inode(listener.as_fd()), inode(file.as_fd()));
    let pid = i32::try_from(std::process::id()).unwrap();
    let open = socket_inodes(pid).unwrap();
    assert!(open.contains(&ours) && !open.contains(&other), "{open:?}");
    drop(listener);
    assert!(!socket_inodes(pid).unwrap().contains(&ours));
    assert!(socket_inodes(i32::MAX).is_err());
}

#[test]
fn only_the_very_link_of_a_socket_is_one() {
    assert_eq!(socket_inode(b"socket:[4711]"), Some(4711));
    for other in [
        &b"pipe:[4711]"[..],
        b"socket:[4711",
        b"socket:[x]",
        b"/socket:[4711]",
        b"",
    ] {
        assert_eq!(socket_inode(other), None);
    }
}

#[test]
fn alive_is_about_one_process_not_a_pid() {
    let own_pid = i32::try_from(std::process::id()).unwrap();
    let start_time = stat(Path::new("/proc"), own_pid).unwrap().starttime;
    let path = PathBuf::new;
    let master = Master {
        pid: own_pid,
        start_time,
        root: Root::Own,
        config_dir: path(),
        queue_dir: path(),
        daemon_dir: path(),
        netns: 1,
    };
    assert!(alive(&master));
    assert!(!alive(&Master {
        start_time: start_time + 1,
        ..master
    }));
}
