//! Least privilege: what the running daemon has left, what each capability is for, and its whole work under the shipped
//! unit file. The unit is read by the lab, so a line in it that breaks the daemon breaks a test here.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::wait_until;
use sentinel_lab::senders::Traffic;
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use sentinel_lab::unit::{self, Unit};
use smtp_sentinel::controller::State;
use smtp_sentinel::privileges::{Capabilities, Capability, Circumstances, NEEDS, kept};
use smtp_sentinel::status::ProbeState;

use crate::PATIENCE;

/// Below it nothing that a unit needs is missing, above it something was opened; docs/privileges.md names it.
const EXPOSURE_AT_MOST: f64 = 2.9;

const SLOTS: u32 = 40;

/// Enough to trip, and so far from the last slot that master's own stress mode stays off: it would last for a quarter of
/// an hour, and there would be nothing to toggle.
fn flood(lab: &Lab) -> Attackers {
    lab.attack(Attack::flood(30)).unwrap()
}

/// Trip, shed, clear, trip, and the orderly end while stress is on. Mail keeps coming, so that there are new smtpd
/// processes for a reload to be verified by.
fn does_its_work(lab: &Lab, daemon: Daemon<'_>) {
    let _senders = lab.senders(Traffic::new(2.0)).unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let attackers = flood(lab);
    daemon.wait_state(State::Stressed).unwrap();
    assert_ne!(lab.postfix.master_cf().unwrap(), original);
    wait_until("a connection to be closed (SOCK_DESTROY)", PATIENCE, || {
        let closed = daemon.metrics()?.sum("smtp_sentinel_shed_connections_total", &[]);
        Ok(closed.is_some_and(|closed| closed > 0.0))
    })
    .unwrap();
    attackers.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    let reloads = |count| {
        wait_until(&format!("reload {count}"), PATIENCE, || {
            Ok(lab.postfix.reloads() == count)
        })
        .unwrap();
    };
    reloads(2);

    let _attackers = flood(lab);
    daemon.wait_state(State::Stressed).unwrap();
    reloads(3);
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    reloads(4);
}

/// The lines of /proc/PID/task/TID/status by name, of every thread.
fn threads(daemon: &Daemon<'_>) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    tasks
        .map(|task| {
            let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let pairs = text.lines().filter_map(|line| line.split_once(':'));
            pairs
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect()
        })
        .collect()
}

/// `bounding`: what a program that root starts could have, if it were not for no_new_privs.
fn assert_confined(daemon: &Daemon<'_>, expected: Capabilities, bounding: Capabilities) {
    let threads = threads(daemon);
    assert!(threads.len() >= 2, "the engine and the front");
    for thread in &threads {
        for (set, wanted) in [
            ("CapEff", expected),
            ("CapPrm", expected),
            ("CapBnd", bounding),
            ("CapInh", Capabilities::NONE),
            ("CapAmb", Capabilities::NONE),
        ] {
            let has = u64::from_str_radix(&thread[set], 16).unwrap();
            assert_eq!(has, wanted.bits(), "{set} of {}: {has:x}", thread["Name"]);
        }
        assert_eq!(thread["NoNewPrivs"], "1");
    }
    let names: Vec<_> = NEEDS
        .iter()
        .filter(|need| expected.has(need.capability))
        .map(|need| need.capability.name())
        .collect();
    assert_eq!(daemon.status().unwrap().capabilities, names);
}

/// Every probe that this machine gives to root, the daemon has: they are loaded before the drop.
fn assert_probes_as_for_root(sentinel: &Sentinel, daemon: &Daemon<'_>) {
    let answer = sentinel.ask(&["check", "--json"]).unwrap();
    let document: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let findings = document["findings"].as_array().unwrap();
    let probes = daemon.status().unwrap().probes;
    assert!(
        probes.iter().any(|probe| probe.state == ProbeState::Ok),
        "{probes:?}"
    );
    for probe in probes {
        let subject = format!("probe {}", probe.name);
        let finding = findings
            .iter()
            .find(|finding| finding["subject"] == subject)
            .unwrap();
        assert_eq!(
            probe.state == ProbeState::Ok,
            finding["ok"] == "yes",
            "{probe:?} and {finding}"
        );
    }
}

/// What the documentation says of this kernel: it lets maps be read without CAP_BPF.
fn documented() -> Capabilities {
    kept(Circumstances::default(), false)
}

#[test]
fn root_gives_up_all_but_what_is_documented_and_works_on() {
    let lab = Lab::builder().maxproc(SLOTS).start().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    // Of this machine's root, which may lack some itself.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let own = Capabilities::from_bits(u64::from_str_radix(own.trim(), 16).unwrap());
    let left = documented().and(own);
    assert_confined(&daemon, left, left);
    assert_probes_as_for_root(&sentinel, &daemon);
    let log = sentinel.log();
    assert!(log.contains("capabilities kept: CAP_SYS_PTRACE"), "{log}");
    does_its_work(&lab, daemon);
}

/// A lab whose daemon runs under the unit file.
struct Staged {
    lab: Lab,
    sentinel: Sentinel,
    notify: UnixDatagram,
    files: Vec<PathBuf>,
}

impl Staged {
    fn new(files: Vec<PathBuf>, beside_postfix: bool) -> Self {
        let lab = Lab::builder().maxproc(SLOTS).start().unwrap();
        let settings = Settings {
            beside_postfix,
            ..Settings::default()
        };
        let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
        // As StateDirectory= and RuntimeDirectory= make them.
        for (directory, mode) in [(sentinel.state_dir(), 0o700), (sentinel.runtime_dir(), 0o755)] {
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
        }
        let notify = UnixDatagram::bind(lab.base().join("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            lab,
            sentinel,
            notify,
            files,
        }
    }

    /// What stands before the program.
    fn wrapper(&self) -> Vec<String> {
        let mut words = self.sentinel.beside_postfix();
        words.extend([
            "env".to_owned(),
            format!("NOTIFY_SOCKET={}", self.lab.base().join("notify").display()),
            // Signs of life every half a second, so that the test need not wait for one. Soon nobody reads them, and
            // that must not hold up the daemon either.
            "WATCHDOG_USEC=2000000".to_owned(),
            env!("CARGO_BIN_EXE_unit").to_owned(),
        ]);
        for file in &self.files {
            words.extend(["--file".to_owned(), file.display().to_string()]);
        }
        for (path, instead) in [
            ("/etc/postfix", self.lab.postfix.config_dir()),
            ("/var/lib/smtp-sentinel", self.sentinel.state_dir()),
            ("/run/smtp-sentinel", self.sentinel.runtime_dir()),
        ] {
            words.extend(["--instead".to_owned(), format!("{path}={}", instead.display())]);
        }
        for path in [self.lab.base(), self.sentinel.program()] {
            words.extend(["--expose".to_owned(), path.display().to_string()]);
        }
        words.push("--".to_owned());
        words
    }

    fn start(&self) -> Daemon<'_> {
        let wrapper = self.wrapper();
        let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
        self.sentinel
            .start_under(&wrapper)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// What a shell command under the unit comes to: exit code 0, and what it says.
    fn shell(&self, script: &str) -> (bool, String) {
        let wrapper = self.wrapper();
        let output = Command::new("env")
            .args(&wrapper)
            .args(["sh", "-c", script])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap();
        let words = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&words).into_owned(),
        )
    }

    fn wait_told(&self, what: &str) {
        let mut buffer = [0; 256];
        wait_until(
            &format!("the service manager to be told {what}"),
            PATIENCE,
            || {
                let length = self.notify.recv(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer[..length])
                    .lines()
                    .any(|line| line == what))
            },
        )
        .unwrap();
    }
}

#[test]
fn under_the_unit_file_it_does_its_whole_work() {
    let staged = Staged::new(vec![unit::shipped()], true);
    let daemon = staged.start();
    staged.wait_told("READY=1");
    staged.wait_told("WATCHDOG=1");
    let unit = Unit::read(&[unit::shipped()]).unwrap();
    let given = Capabilities::from_bits(unit.capability_set().unwrap());
    // To narrow the bounding set takes CAP_SETPCAP, which the unit does not give.
    assert_confined(&daemon, documented().and(given), given);
    for thread in threads(&daemon) {
        assert_eq!(thread["Seccomp"], "2", "a filter is in force");
    }
    assert_probes_as_for_root(&staged.sentinel, &daemon);
    let taken = memory(&daemon);
    let limit = unit.last("MemoryMax").unwrap().strip_suffix('M').unwrap();
    let limit = limit.parse::<u64>().unwrap() << 20;
    assert!(taken < limit / 2, "{taken} of {limit} bytes before any load");

    does_its_work(&staged.lab, daemon);
}

#[test]
fn the_service_manager_is_told_when_it_stops() {
    let staged = Staged::new(vec![unit::shipped()], true);
    let daemon = staged.start();
    staged.wait_told("READY=1");
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    staged.wait_told("STOPPING=1");
}

/// Resident at its highest, and the BPF maps, which a cgroup counts too.
fn memory(daemon: &Daemon<'_>) -> u64 {
    let status = &threads(daemon)[0];
    let resident: u64 = status["VmHWM"].trim_end_matches(" kB").parse().unwrap();
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid())).unwrap();
    let maps: u64 = infos
        .filter_map(|info| fs::read_to_string(info.unwrap().path()).ok())
        .filter_map(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("memlock:"))?;
            line.trim().parse::<u64>().ok()
        })
        .sum();
    assert!(maps > 0, "there are maps");
    (resident << 10) + maps
}

#[test]
fn what_the_unit_forbids_fails() {
    let staged = Staged::new(vec![unit::shipped()], true);
    let config = staged.lab.postfix.config_dir();
    let config = config.display();
    // The controls first: the same kind of thing where it is allowed.
    for allowed in [
        &format!("touch {config}/trial && rm {config}/trial"),
        "touch /tmp/trial && test $(ls /tmp | grep -c trial) = 1",
        "true </dev/null && ls /proc/1/stat && ls /sys/kernel/btf/vmlinux",
    ] {
        let (done, words) = staged.shell(allowed);
        assert!(done, "{allowed}: {words}");
    }
    let base = staged.lab.base().display();
    for (forbidden, because) in [
        (format!("touch {base}/trial"), "Read-only file system"),
        ("touch /usr/trial".to_owned(), "Read-only file system"),
        (
            "echo >/proc/sys/kernel/domainname".to_owned(),
            "Read-only file system",
        ),
        (
            format!("touch {config}/t; chmod u+s {config}/t"),
            "Operation not permitted",
        ),
        ("unshare --net true".to_owned(), "Operation not permitted"),
        (
            format!(
                "nsenter --net=/proc/{}/ns/net true",
                staged.lab.postfix.master_pid()
            ),
            "Operation not permitted",
        ),
        ("mount -t tmpfs none /tmp".to_owned(), "permi"),
        ("chroot / true".to_owned(), "Operation not permitted"),
        ("setpriv --reuid 65534 true".to_owned(), "Operation not permitted"),
        (
            "nice -n -5 true 2>&1 && nice -n -5 nice | grep -qx -- -5 || { echo kept; false; }".to_owned(),
            "kept",
        ),
    ] {
        let (done, words) = staged.shell(&forbidden);
        assert!(!done && words.contains(because), "{forbidden}: {words}");
    }
    // The machine's own /tmp is out of sight.
    let visible = tempfile_in_tmp();
    let (done, words) = staged.shell(&format!("test -e {}", visible.display()));
    fs::remove_dir(&visible).unwrap();
    assert!(!done, "{words}");
}

fn tempfile_in_tmp() -> PathBuf {
    let directory = PathBuf::from(format!("/tmp/sentinel-lab-visible-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    directory
}

#[test]
fn a_postfix_in_another_network_namespace_takes_the_drop_in() {
    let staged = Staged::new(vec![unit::shipped()], false);
    let daemon = staged.start();
    let service = daemon
        .wait_service("smtp/inet to be found", PATIENCE, |_| true)
        .unwrap();
    // Said, with what is missing, and nothing is made up.
    assert!(service.accept_queue.is_none(), "{service:?}");
    let why = &service.unavailable["accept_queue"];
    assert!(why.contains("network namespace"), "{why}");
    assert_eq!(daemon.terminate().unwrap(), Some(0));

    let files = vec![unit::shipped(), unit::shipped_for_other_networks()];
    let staged = Staged::new(files.clone(), false);
    let daemon = staged.start();
    let given = Capabilities::from_bits(Unit::read(&files).unwrap().capability_set().unwrap());
    assert_confined(&daemon, documented().and(given), given);
    does_its_work(&staged.lab, daemon);
}

/// `check --json` of a daemon with all of root but `without`: exit code, and the finding about that capability.
fn check_without(sentinel: &Sentinel, without: Capability) -> (Option<i32>, serde_json::Value) {
    let set = format!("-{}", without.name().trim_start_matches("CAP_").to_lowercase());
    let answer = sentinel
        .ask_under(&["setpriv", "--bounding-set", &set], &["check", "--json"])
        .unwrap();
    let document: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let findings = document["findings"].as_array().unwrap();
    let finding = findings
        .iter()
        .find(|finding| finding["subject"] == format!("capability {}", without.name()));
    (answer.code, finding.unwrap().clone())
}

#[test]
fn check_says_of_each_capability_what_is_lost_without_it() {
    let lab = Lab::new().unwrap();
    let settings = Settings {
        act: "mode = \"enforce\"\nreload = \"command\"".to_owned(),
        ..Settings::default()
    };
    let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
    for need in &NEEDS {
        let (code, finding) = check_without(&sentinel, need.capability);
        let detail = finding["detail"].as_str().unwrap();
        // Not asked for in this lab: a low port, an old kernel. And CAP_SYS_ADMIN stands in for those of BPF.
        if matches!(
            need.capability,
            Capability::NetBindService | Capability::SysResource
        ) {
            assert!(detail.contains("not needed here"), "{detail}");
        } else if !matches!(need.capability, Capability::Bpf | Capability::Perfmon) {
            assert!(
                detail.contains("missing") && detail.contains(need.without),
                "{detail}"
            );
            assert_eq!(
                code,
                Some(i32::from(need.vital)),
                "{}: {finding}",
                need.capability.name()
            );
        }
    }
}

#[test]
fn without_ptrace_no_postfix_is_found_and_without_net_admin_no_greeting_latency() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel
        .start_under(&["setpriv", "--bounding-set", "-sys_ptrace"])
        .unwrap();
    assert!(daemon.status().unwrap().instances.is_empty());
    daemon.terminate().unwrap();

    let daemon = sentinel
        .start_under(&["setpriv", "--bounding-set", "-net_admin,-sys_admin"])
        .unwrap();
    let report = daemon.status().unwrap();
    let greeting = report
        .probes
        .iter()
        .find(|probe| probe.name == "greeting")
        .unwrap();
    assert_eq!(greeting.state, ProbeState::Unsupported);
    assert!(greeting.reason.contains("CAP_NET_ADMIN"), "{greeting:?}");
    daemon.terminate().unwrap();
}

/// Each of the three is needed for a master.cf that is not root's, and for that alone.
#[test]
fn a_master_cf_of_another_user_takes_three_capabilities_or_is_left_alone() {
    let (owner, group) = (65534, 65534);
    for without in ["-chown", "-fowner", "-dac_override,-dac_read_search"] {
        let lab = Lab::builder().maxproc(SLOTS).start().unwrap();
        let path = lab.postfix.master_cf_path();
        chown(&path, Some(owner), Some(group)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let original = lab.postfix.master_cf().unwrap();
        let sentinel = Sentinel::install(&lab).unwrap();
        let daemon = sentinel
            .start_under(&["setpriv", "--bounding-set", without])
            .unwrap();
        let _attackers = flood(&lab);
        wait_until("the daemon to say that it cannot", PATIENCE, || {
            let failed = sentinel
                .history()?
                .iter()
                .any(|entry| entry.outcome.as_deref() == Some("failed"));
            let report = daemon.status()?;
            let beforehand = report
                .instances
                .iter()
                .any(|instance| !instance.actionable && instance.reason.contains("master.cf"));
            Ok(failed || beforehand)
        })
        .unwrap_or_else(|error| panic!("{without}: {error:#}"));
        assert_eq!(daemon.terminate().unwrap(), Some(0));
        assert_eq!(lab.postfix.master_cf().unwrap(), original, "{without}");
        assert_eq!(lab.postfix.reloads(), 0, "{without}");
        assert!(!path.with_extension("cf.tmp").exists(), "{without}");
    }
}

#[test]
fn a_foreign_user_is_turned_away_by_the_socket_and_by_the_daemon() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    daemon
        .wait_service("the first report", PATIENCE, |_| true)
        .unwrap();
    for directory in [
        lab.base(),
        &sentinel.runtime_dir(),
        sentinel.config().parent().unwrap(),
    ] {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
    let socket = sentinel.runtime_dir().join("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // A copy that everybody may run: the build directory may be root's own.
    let program = lab.base().join("smtp-sentinel");
    fs::copy(sentinel.program(), &program).unwrap();
    let ask = || {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&program)
            .args(["status", "--config"])
            .arg(sentinel.config())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, words) = ask();
    assert_eq!(code, Some(77), "{words}");
    // Whoever opens the socket to all has not let them in.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    // Several times: an answer that is lost to a reset is lost now and then only.
    for _ in 0..10 {
        let (code, words) = ask();
        assert_eq!(code, Some(77), "{words}");
        assert!(words.contains("user 65534 may not ask"), "{words}");
    }
}

#[test]
fn the_units_exposure_is_what_the_documentation_says() {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(unit::shipped())
        .output()
        .expect("systemd-analyze; `cargo xtask setup` installs it");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.contains("Overall exposure level"));
    let line = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let score: f64 = line
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap();
    assert!(score <= EXPOSURE_AT_MOST, "{line}\n{text}");
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/privileges.md");
    let docs = fs::read_to_string(docs).unwrap();
    assert!(docs.contains(&format!("at most {EXPOSURE_AT_MOST:.1}")));
}

/// From another mount namespace a rename over a bind-mounted file succeeds, and takes the mount away without a word.
#[test]
fn a_mount_over_master_cf_in_postfixs_own_mount_namespace_is_left_in_place() {
    let lab = Lab::builder().read_only_master_cf().start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let mounts = || fs::read_to_string(format!("/proc/{}/mountinfo", lab.postfix.master_pid())).unwrap();
    let path = lab.postfix.master_cf_path();
    assert!(mounts().contains(path.to_str().unwrap()));
    let sentinel = Sentinel::install(&lab).unwrap();
    let answer = sentinel.ask(&["check"]).unwrap();
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(answer.stdout.contains("a mount of its own"), "{answer:?}");

    let daemon = sentinel.start().unwrap();
    let _attackers = flood(&lab);
    wait_until("the slots to be held", PATIENCE, || {
        Ok(lab.postfix.smtpds()?.len() >= 15)
    })
    .unwrap();
    assert!(daemon.status().unwrap().instances.is_empty());
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert!(
        mounts().contains(path.to_str().unwrap()),
        "the mount is still there"
    );
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
}
