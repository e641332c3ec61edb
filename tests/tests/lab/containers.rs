//! Postfix in containers: what is in one is found, edited, reloaded and given back there and nowhere else; what must not be
//! changed is watched; and who makes things up in a container changes nothing for the others. The containers are built by
//! hand (mount, pid, uts, ipc and network namespaces, a root of their own), so that no image and no runtime is needed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Arrival, Attack, Attackers};
use sentinel_lab::clock::{wait_for, wait_until};
use sentinel_lab::container::{Container, Mount};
use sentinel_lab::senders::Traffic;
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use smtp_sentinel::controller::State;
use smtp_sentinel::status::Instance;

use crate::{PATIENCE, smtp};

const SLOTS: u32 = 20;

fn boxed(container: &Container) -> Lab {
    Lab::builder()
        .maxproc(SLOTS)
        .container(container)
        .start()
        .unwrap()
}

/// Watches these containers, and nothing else of this machine.
fn sentinel(base: &Path, containers: &[&Container], more: &str) -> Sentinel {
    let cgroups: Vec<&str> = containers.iter().map(|one| one.parent.as_str()).collect();
    let settings = Settings {
        discovery: format!("containers = true\ncgroups = {cgroups:?}\n{more}"),
        ..Settings::default()
    };
    Sentinel::install_for(base, &[base.join("no-such-postfix")], &settings).unwrap()
}

/// Enough to trip, and not so many that master's own stress mode goes on, with which there is nothing to toggle.
fn flood(lab: &Lab) -> Attackers {
    lab.attack(Attack::flood(15)).unwrap()
}

fn instance_of(daemon: &Daemon<'_>, container: &Container) -> Option<Instance> {
    let mut instances = daemon.status().unwrap().instances.into_iter();
    instances.find(|one| {
        one.container
            .as_ref()
            .is_some_and(|its| its.name == container.short_id())
    })
}

fn wait_instance(daemon: &Daemon<'_>, container: &Container, wanted: impl Fn(&Instance) -> bool) -> Instance {
    let what = format!("the Postfix of {} to be as wanted", container.hostname);
    let mut last = None;
    wait_for(&what, PATIENCE, || {
        last = instance_of(daemon, container);
        Ok(last.clone().filter(&wanted))
    })
    .unwrap_or_else(|error| panic!("{error:#}; last seen as {last:#?}"))
}

fn wait_state(daemon: &Daemon<'_>, container: &Container, state: State) {
    wait_instance(daemon, container, |one| {
        smtp(one).is_some_and(|service| service.state == state)
    });
}

fn reloads(lab: &Lab, count: usize) {
    wait_until(&format!("reload {count}"), PATIENCE, || {
        Ok(lab.postfix.reloads() == count)
    })
    .unwrap();
}

#[test]
fn a_flood_in_one_container_is_answered_in_there_and_nowhere_else() {
    let (web, other) = (
        Container::new("web-0", Mount::None),
        Container::new("web-1", Mount::None),
    );
    let (lab, bystander) = (boxed(&web), boxed(&other));
    let file = lab.postfix.master_cf_path();
    chown(&file, Some(1234), Some(4321)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    let attribute = |path: &Path| {
        let output = Command::new("getfattr")
            .args(["--only-values", "-n", "user.note"])
            .arg(path)
            .output();
        output.map(|output| output.stdout).unwrap_or_default()
    };
    let _ = Command::new("setfattr")
        .args(["-n", "user.note", "-v", "hers"])
        .arg(&file)
        .status();
    let note = attribute(&file);
    let known = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.uid(), meta.gid(), meta.mode(), attribute(path))
    };
    let (original, untouched) = (
        lab.postfix.master_cf().unwrap(),
        bystander.postfix.master_cf().unwrap(),
    );

    let home = tempfile::tempdir().unwrap();
    let sentinel = sentinel(home.path(), &[&web, &other], "");
    let daemon = sentinel.start().unwrap();
    let _senders = lab.senders(Traffic::new(2.0)).unwrap();
    for container in [&web, &other] {
        let instance = wait_instance(&daemon, container, |one| one.actionable && smtp(one).is_some());
        assert_eq!(instance.id, format!("{}:/lab/config", container.short_id()));
        assert_eq!(instance.config_dir, "/lab/config", "as it is called in there");
        let hostname = instance.container.unwrap().hostname;
        assert_eq!(hostname.as_deref(), Some(container.hostname.as_str()));
    }

    let attackers = flood(&lab);
    wait_state(&daemon, &web, State::Stressed);
    let edited = lab.postfix.master_cf().unwrap();
    assert_eq!(
        edited.len() - original.len(),
        added(&original, &edited),
        "only our lines"
    );
    assert_eq!(known(&file), (1234, 4321, 0o100_640, note.clone()));
    reloads(&lab, 1);
    lab.postfix
        .wait_youngest("in stress", PATIENCE, |one| {
            one.stress_of_master_cf() == Some("yes")
        })
        .unwrap();

    attackers.stop().unwrap();
    wait_state(&daemon, &web, State::Normal);
    reloads(&lab, 2);
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(known(&file), (1234, 4321, 0o100_640, note));

    assert_eq!(bystander.postfix.master_cf().unwrap(), untouched);
    assert_eq!(bystander.postfix.reloads(), 0);
    let acted_on: Vec<_> = sentinel
        .history()
        .unwrap()
        .into_iter()
        .filter(|entry| entry.kind == "action" || entry.kind == "transition")
        .filter_map(|entry| entry.instance)
        .collect();
    let name = format!("{}:/lab/config", web.short_id());
    assert!(
        !acted_on.is_empty() && acted_on.iter().all(|one| *one == name),
        "{acted_on:?}"
    );
    let scrape = daemon.metrics().unwrap();
    let labels = [
        ("instance", name.as_str()),
        ("hostname", "web-0"),
        ("container", web.short_id()),
    ];
    assert_eq!(scrape.sum("smtp_sentinel_container_info", &labels), Some(1.0));
    assert_eq!(scrape.sum("smtp_sentinel_actionable", &labels[..1]), Some(1.0));
}

/// Bytes of the lines in `new` that `old` does not have; all of `old` must be there.
fn added(old: &[u8], new: &[u8]) -> usize {
    let mut rest = new.split_inclusive(|&byte| byte == b'\n');
    let mut added = 0;
    for wanted in old.split_inclusive(|&byte| byte == b'\n') {
        for line in rest.by_ref() {
            if line == wanted {
                break;
            }
            let text = String::from_utf8_lossy(line);
            assert!(
                text.contains("smtp-sentinel") || text.trim() == "-o stress=yes",
                "{text}"
            );
            added += line.len();
        }
    }
    added
}

/// The lines of a master's mountinfo that are about its master.cf or what it lies in.
fn mounts(lab: &Lab) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", lab.postfix.master_pid())).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|at| at == "/" || at.starts_with("/lab"))
        })
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

/// All bytes of a directory by name, links as links.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn what_is_mounted_in_a_container_is_watched_and_left_alone() {
    let variants = [
        (Mount::Bound, "mount of its own"),
        (Mount::BoundReadOnly, "mount of its own"),
        (Mount::ConfigMap, "mount of its own"),
        (Mount::ReadOnlyRoot, "Read-only file system"),
    ];
    let labs: Vec<_> = variants
        .iter()
        .map(|(mount, reason)| {
            let container = Container::new("web", *mount);
            (boxed(&container), container, *reason)
        })
        .collect();
    let state = |lab: &Lab| {
        let root = lab.base().join("mounted");
        (mounts(lab), contents(&root), contents(&lab.postfix.config_dir()))
    };
    let before: Vec<_> = labs.iter().map(|(lab, ..)| state(lab)).collect();
    let home = tempfile::tempdir().unwrap();
    let containers: Vec<&Container> = labs.iter().map(|(_, container, _)| container).collect();
    let sentinel = sentinel(home.path(), &containers, "");
    let daemon = sentinel.start().unwrap();
    for (_, container, reason) in &labs {
        let instance = wait_instance(&daemon, container, |one| !one.actionable && smtp(one).is_some());
        assert!(
            instance.reason.contains(reason),
            "{:?}: {}",
            container.mount,
            instance.reason
        );
        assert_eq!(
            smtp(&instance).unwrap().limit,
            Some(SLOTS),
            "it is read all the same"
        );
        let labels = [("instance", instance.id.as_str())];
        wait_until("the metric that says so", PATIENCE, || {
            Ok(daemon.metrics()?.sum("smtp_sentinel_actionable", &labels) == Some(0.0))
        })
        .unwrap();
    }

    // One after the other would be long: all are flooded at once, to the last slot, so that masters' own stress mode goes
    // on, and with it the shedding of those that came before.
    let floods: Vec<_> = labs
        .iter()
        .map(|(lab, ..)| {
            lab.attack(Attack::silent(Arrival::Evenly {
                count: 40,
                within: Duration::from_secs(1),
            }))
            .unwrap()
        })
        .collect();
    for (_, container, _) in &labs {
        let instance = format!("{}:/lab/config", container.short_id());
        let labels = [("instance", instance.as_str())];
        wait_until(
            "connections to be closed by the limits of stress mode",
            PATIENCE,
            || {
                let closed = daemon
                    .metrics()?
                    .sum("smtp_sentinel_shed_connections_total", &labels);
                Ok(closed.is_some_and(|closed| closed > 0.0))
            },
        )
        .unwrap();
    }
    for flood in floods {
        flood.stop().unwrap();
    }
    let after: Vec<_> = labs.iter().map(|(lab, ..)| state(lab)).collect();
    assert_eq!(after, before);
    for (lab, ..) in &labs {
        assert_eq!(lab.postfix.reloads(), 0);
    }
}

#[test]
fn a_container_that_is_replaced_is_followed() {
    let first = Container::new("web-0", Mount::None);
    let mut lab = boxed(&first);
    let original = lab.postfix.master_cf().unwrap();
    // The same pod with a new container, as Kubernetes restarts it: another id, another root, none of our lines.
    let second = Container {
        parent: first.parent.clone(),
        ..Container::new("web-0", Mount::None)
    };
    let home = tempfile::tempdir().unwrap();
    let sentinel = sentinel(home.path(), &[&first], "");
    let daemon = sentinel.start().unwrap();
    let attackers = flood(&lab);
    wait_state(&daemon, &first, State::Stressed);
    attackers.stop().unwrap();

    let builder = Lab::builder().maxproc(SLOTS).container(&second);
    lab.replace_container(builder).unwrap();
    wait_instance(&daemon, &second, |one| {
        smtp(one).is_some_and(|service| service.state == State::Normal)
    });
    // Without mail no new smtpd is started, and a reload takes half a minute to be believed.
    let _senders = lab.senders(Traffic::new(2.0)).unwrap();
    let attackers = flood(&lab);
    wait_state(&daemon, &second, State::Stressed);
    assert_ne!(lab.postfix.master_cf().unwrap(), original);
    attackers.stop().unwrap();
    wait_state(&daemon, &second, State::Normal);
    assert_eq!(lab.postfix.master_cf().unwrap(), original);

    wait_until("the first to be forgotten", PATIENCE, || {
        Ok(instance_of(&daemon, &first).is_none())
    })
    .unwrap();
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    let history = sentinel.history().unwrap();
    assert!(
        history
            .iter()
            .any(|entry| entry.kind == "restore" && entry.tells("the container is gone")),
        "{history:#?}"
    );
    let answer = sentinel.ask(&["restore"]).unwrap();
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

#[test]
fn what_a_killed_daemon_left_in_a_container_is_taken_out() {
    let container = Container::new("web-0", Mount::None);
    let lab = boxed(&container);
    let original = lab.postfix.master_cf().unwrap();
    let home = tempfile::tempdir().unwrap();
    let sentinel = sentinel(home.path(), &[&container], "");
    let daemon = sentinel.start().unwrap();
    let _attackers = flood(&lab);
    wait_state(&daemon, &container, State::Stressed);
    reloads(&lab, 1);
    daemon.kill().unwrap();
    assert_ne!(lab.postfix.master_cf().unwrap(), original);
    let answer = sentinel.ask(&["restore"]).unwrap();
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    reloads(&lab, 2);
}

/// Processes that look like masters, in a mount namespace and a cgroup of their own. They end with their standard input.
struct Fakes {
    shell: Child,
    cgroup: PathBuf,
    _root: tempfile::TempDir,
}

impl Fakes {
    /// Each leads a session, is called master, and runs a file `master` beside an `smtpd`, in a root that is not ours.
    const SCRIPT: &'static str = r#"
echo $$ >"$2/cgroup.procs" || exit
exec unshare --mount --pid --propagation private --fork --kill-child sh -c '
    mount --bind "$1" "$1" && mount --rbind /usr "$1/usr" && mount --rbind /dev "$1/dev" &&
    mount -t proc proc "$1/proc" && cd "$1" && pivot_root . old || exit
    exec chroot . /bin/sh -c "for _ in \$(seq $2); do setsid /fake/master 1000 & done; echo up; read -r _" ' sh "$1" "$3"
"#;

    fn start(container: &Container, count: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["usr", "dev", "proc", "old", "fake", "etc/postfix"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        for link in ["bin", "lib", "lib64"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(link)) {
                std::os::unix::fs::symlink(target, root.path().join(link)).unwrap();
            }
        }
        fs::copy("/usr/bin/sleep", root.path().join("fake/master")).unwrap();
        fs::write(root.path().join("fake/smtpd"), "").unwrap();
        fs::write(
            root.path().join("etc/postfix/main.cf"),
            "compatibility_level = 3.6\n",
        )
        .unwrap();
        fs::write(
            root.path().join("etc/postfix/master.cf"),
            "smtp inet n - n - 20 smtpd\n",
        )
        .unwrap();
        let cgroup = container.make_cgroup().unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", Self::SCRIPT, "sh"])
            .args([root.path(), &cgroup])
            .arg(count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = shell.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        assert_eq!(line, "up\n");
        Self {
            shell,
            cgroup,
            _root: root,
        }
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        // The shell is the first process of its pid namespace, and takes all others with it.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(parent) = self.cgroup.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

#[test]
fn fakes_by_the_hundred_crowd_out_no_real_one() {
    let (hostile, honest) = (
        Container::new("hostile", Mount::None),
        Container::new("web-0", Mount::None),
    );
    // First, so that they are the older ones.
    let _fakes = Fakes::start(&hostile, 200);
    let home = tempfile::tempdir().unwrap();
    let sentinel = sentinel(home.path(), &[&hostile, &honest], "max_instances = 2");
    let daemon = sentinel.start().unwrap();
    wait_instance(&daemon, &hostile, |_| true);
    let lab = boxed(&honest);
    wait_instance(&daemon, &honest, |one| one.actionable && smtp(one).is_some());
    assert!(daemon.status().unwrap().instances.len() <= 2);
    let _attackers = flood(&lab);
    wait_state(&daemon, &honest, State::Stressed);
    reloads(&lab, 1);
}
