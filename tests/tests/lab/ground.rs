//! The lab itself: what the other tests stand on. None of these needs the daemon.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sentinel_lab::attackers::{Arrival, Attack, Manner};
use sentinel_lab::clock::{wait_for, wait_until};
use sentinel_lab::senders::{Outcome, Tally, Traffic, Upload, greeting_quantile};
use sentinel_lab::{Lab, master_cf};

use crate::PATIENCE;

#[test]
fn a_legitimate_sender_delivers() {
    let lab = Lab::new().unwrap();
    let senders = lab
        .senders(Traffic {
            sessions: Some(8),
            ..Traffic::new(20.0)
        })
        .unwrap();
    wait_until("eight sessions", PATIENCE, || Ok(senders.so_far().len() == 8)).unwrap();
    let sessions = senders.stop().unwrap();
    assert_eq!(
        Tally::of(&sessions),
        Tally {
            tried: 8,
            delivered: 8,
            ..Tally::default()
        },
        "{sessions:?}"
    );
    assert!(greeting_quantile(&sessions, 1.0).is_some());
    wait_until("eight deliveries in the mail log", PATIENCE, || {
        Ok(lab.postfix.log_count("status=sent") == 8)
    })
    .unwrap();
}

#[test]
fn silent_attackers_hold_every_slot_and_the_rest_queues() {
    let lab = Lab::builder().maxproc(5).start().unwrap();
    let attackers = lab
        .attack(Attack::silent(Arrival::Evenly {
            count: 8,
            within: Duration::from_millis(400),
        }))
        .unwrap();
    wait_until("five of eight attackers to hold a slot", PATIENCE, || {
        let toll = attackers.toll();
        Ok(toll.holding == 5 && toll.standing == 8)
    })
    .unwrap();

    let port = lab.sockets().unwrap();
    assert_eq!((port.held, port.queued, port.depth), (5, 3, 3), "{port:?}");
    // master_listen.c: the larger of maxproc and default_process_limit.
    assert_eq!(port.backlog, 100);
    assert_eq!(lab.postfix.smtpds().unwrap().len(), 5);

    let holds = attackers.stop().unwrap();
    assert_eq!(
        holds.iter().filter(|hold| hold.dropped).count(),
        0,
        "nobody was dropped, all left: {holds:?}"
    );
    wait_until("the slots to be free again", PATIENCE, || {
        let port = lab.sockets()?;
        Ok(port.held == 0 && port.depth == 0)
    })
    .unwrap();
}

#[test]
fn a_flood_ends_legitimate_mail_on_plain_postfix() {
    // Two slots and an impatient sender: the outage that the sentinel is for, in miniature.
    let lab = Lab::builder()
        .maxproc(2)
        .main_cf("smtpd_timeout = 300s")
        .start()
        .unwrap();
    let attackers = lab
        .attack(Attack::silent(Arrival::Evenly {
            count: 4,
            within: Duration::from_millis(200),
        }))
        .unwrap();
    wait_until("both slots to be held", PATIENCE, || {
        Ok(attackers.toll().holding == 2)
    })
    .unwrap();
    let traffic = Traffic {
        sessions: Some(3),
        patience: Duration::from_secs(2),
        ..Traffic::new(20.0)
    };
    let senders = lab.senders(traffic).unwrap();
    wait_until("three sessions", PATIENCE, || Ok(senders.so_far().len() == 3)).unwrap();
    for session in senders.stop().unwrap() {
        assert_eq!(session.outcome, Outcome::NoGreeting);
    }
}

#[test]
fn attackers_with_noop_are_greeted_and_come_back_when_dropped() {
    // One junk command is one too many here, so the second NOOP ends the session.
    let lab = Lab::builder()
        .main_cf("smtpd_junk_command_limit = 1\nsmtpd_error_sleep_time = 0")
        .start()
        .unwrap();
    let attack = Attack {
        reconnect: Some(Duration::from_millis(100)),
        manner: Manner::Repeat {
            command: "NOOP\r\n",
            every: Duration::from_millis(50),
        },
        ..Attack::silent(Arrival::Evenly {
            count: 1,
            within: Duration::ZERO,
        })
    };
    let attackers = lab.attack(attack).unwrap();
    wait_until("the attacker to be dropped twice", PATIENCE, || {
        Ok(attackers.toll().dropped >= 2)
    })
    .unwrap();
    let toll = attackers.toll();
    assert!(toll.greeted >= 2 && toll.connections >= 2, "{toll:?}");
}

#[test]
fn an_attacker_that_drips_outlives_silent_ones() {
    let lab = Lab::builder()
        .main_cf("smtpd_timeout = 4s\nsmtpd_per_request_deadline = no")
        .start()
        .unwrap();
    let one = Arrival::Evenly {
        count: 1,
        within: Duration::ZERO,
    };
    let drip = Attack {
        manner: Manner::Drip {
            every: Duration::from_millis(100),
        },
        ..Attack::silent(one)
    };
    let silent = Attack {
        reconnect: Some(Duration::ZERO),
        ..Attack::silent(one)
    };
    let (dripping, silent) = (lab.attack(drip).unwrap(), lab.attack(silent).unwrap());
    // The first one's timeout may have begun before the other's.
    wait_until("the silent attacker to be dropped twice", PATIENCE, || {
        Ok(silent.toll().dropped >= 2)
    })
    .unwrap();
    assert_eq!(dripping.toll().holding, 1, "{:?}", dripping.toll());
    drop(dripping);
    wait_until("the end of the unfinished message", PATIENCE, || {
        Ok(lab.postfix.log_count("lost connection after DATA") == 1)
    })
    .unwrap();
}

#[test]
fn a_scan_leaves_at_once_from_the_network_that_it_is_told() {
    let lab = Lab::new().unwrap();
    let attack = Attack {
        manner: Manner::Leave,
        network: Some(200),
        ..Attack::silent(Arrival::Evenly {
            count: 5,
            within: Duration::from_millis(100),
        })
    };
    let scan = lab.attack(attack).unwrap();
    wait_until("five connections to be over", PATIENCE, || {
        let toll = scan.toll();
        Ok(toll.connections == 5 && toll.standing == 0)
    })
    .unwrap();
    assert_eq!(scan.toll().dropped, 0, "they left by themselves");
    wait_until("five lost connections in the log", PATIENCE, || {
        Ok(lab
            .postfix
            .log_count("lost connection after CONNECT from unknown[10.77.200.")
            == 5)
    })
    .unwrap();
}

#[test]
fn an_upload_takes_the_time_of_its_line_and_arrives() {
    let lab = Lab::new().unwrap();
    let senders = lab
        .senders(Traffic {
            sessions: Some(1),
            upload: Some(Upload {
                bytes: 40_000,
                bytes_per_second: 40_000,
            }),
            ..Traffic::new(20.0)
        })
        .unwrap();
    wait_until("the session", PATIENCE, || Ok(senders.so_far().len() == 1)).unwrap();
    let session = senders.stop().unwrap()[0];
    assert_eq!(session.outcome, Outcome::Delivered);
    let took = session.ended - session.started;
    assert!(took >= Duration::from_millis(900), "{took:?}");
    wait_until("the message in the queue", PATIENCE, || {
        let log = lab.postfix.log();
        let size = log
            .split("size=")
            .nth(1)
            .and_then(|rest| rest.split(',').next()?.parse::<u32>().ok());
        Ok(size.is_some_and(|size| size >= 40_000))
    })
    .unwrap();
}

#[test]
fn a_scripted_client_leaves_as_it_is_told_to() {
    let lab = Lab::new().unwrap();
    let mut client = lab.connect(1).unwrap();
    let (greeting, _) = client.read_line().unwrap();
    assert!(greeting.starts_with("220 mx.lab.invalid"), "{greeting}");
    client.half_close().unwrap();
    client.wait_dropped().unwrap();

    let mut client = lab.connect(2).unwrap();
    client.read_line().unwrap();
    client.close();
    let mut client = lab.connect(3).unwrap();
    client.read_line().unwrap();
    client.reset().unwrap();
    for host in 1..=3 {
        let line = format!("lost connection after CONNECT from unknown[10.77.0.{host}]");
        wait_until(&line, PATIENCE, || Ok(lab.postfix.log_count(&line) == 1)).unwrap();
    }
}

#[test]
fn the_greeting_can_be_slow() {
    let lab = Lab::builder().greeting_delay(1).start().unwrap();
    let mut client = lab.connect(1).unwrap();
    let (greeting, latency) = client.read_line().unwrap();
    assert!(greeting.starts_with("220 "), "{greeting}");
    assert!(latency >= Duration::from_millis(990), "{latency:?}");
}

#[test]
fn postfix_takes_a_weathered_master_cf_and_reloads_on_a_hangup() {
    let lab = Lab::builder().master_cf(master_cf::weathered(7)).start().unwrap();
    let mut client = lab.connect(1).unwrap();
    assert!(client.read_line().unwrap().0.starts_with("220 mx.lab.invalid"));
    let smtpd = lab
        .postfix
        .wait_youngest("calm", PATIENCE, |one| one.stress() == Some(""))
        .unwrap();

    let stressed = String::from_utf8(lab.postfix.master_cf().unwrap())
        .unwrap()
        .replacen("smtpd\n", "smtpd\n  -o stress=yes\n", 1);
    std::fs::write(lab.postfix.master_cf_path(), stressed).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(lab.postfix.master_pid()),
        nix::sys::signal::Signal::SIGHUP,
    )
    .unwrap();
    wait_until("the reload", PATIENCE, || Ok(lab.postfix.reloads() == 1)).unwrap();
    client.close();
    let younger = wait_for("an smtpd in stress", PATIENCE, || {
        lab.connect(2)?.read_line()?;
        Ok(lab
            .postfix
            .smtpds()?
            .pop()
            .filter(|smtpd| smtpd.stress() == Some("yes")))
    })
    .unwrap();
    assert!(younger.generation > smtpd.generation);
    assert_eq!(
        (smtpd.stress_of_master_cf(), younger.stress_of_master_cf()),
        (None, Some("yes"))
    );
}

#[test]
fn a_read_only_master_cf_can_be_neither_written_nor_replaced() {
    let lab = Lab::builder().read_only_master_cf().start().unwrap();
    let mut client = lab.connect(1).unwrap();
    assert!(client.read_line().unwrap().0.starts_with("220 "));
    let path = lab.postfix.master_cf_path();
    let mounts = format!("--mount=/proc/{}/ns/mnt", lab.postfix.master_pid());
    let refused = |script: &str| {
        let output = Command::new("nsenter")
            .arg(&mounts)
            .args(["sh", "-c", script, "sh"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{script}: {output:?}");
    };
    refused("echo >> $1");
    refused("cp $1 $1.new && mv -f $1.new $1");
    assert_eq!(lab.postfix.master_cf().unwrap(), master_cf::plain(20).as_bytes());
}

#[test]
fn labs_run_side_by_side() {
    let (one, other) = (Lab::new().unwrap(), Lab::new().unwrap());
    let mut client = one.connect(1).unwrap();
    assert!(client.read_line().unwrap().0.starts_with("220 "));
    assert_eq!(one.sockets().unwrap().held, 1);
    assert_eq!(other.sockets().unwrap().held, 0);
}

#[test]
fn nothing_is_left_when_a_test_panics() {
    let (send, receive) = std::sync::mpsc::channel();
    let failed = std::thread::spawn(move || {
        let lab = Lab::new().unwrap();
        send.send(Traces::of(&lab)).unwrap();
        panic!("on purpose: what follows on standard error is what a failed test shows");
    })
    .join();
    assert!(failed.is_err());
    let traces = receive.recv().unwrap();
    assert!(traces.any().is_none(), "left behind: {:?}", traces.any());
}

#[test]
fn nothing_is_left_when_the_process_is_killed() {
    // The process that is killed is this test, started once more.
    const VICTIM: &str = "SENTINEL_LAB_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        run_a_lab_for_good();
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "ground::nothing_is_left_when_the_process_is_killed",
            "--nocapture",
        ])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find(|line| line.starts_with("lab "))
        .unwrap();
    let mut words = line.split(' ').skip(1);
    let master_pid = words.next().unwrap().parse().unwrap();
    let traces = Traces {
        master_pid,
        base: words.next().unwrap().into(),
    };
    assert!(traces.any().is_some());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("everything to be gone", PATIENCE, || Ok(traces.any().is_none())).unwrap();
}

fn run_a_lab_for_good() -> ! {
    let lab = Lab::new().expect("the victim's lab starts");
    let _attackers = lab
        .attack(Attack::silent(Arrival::PerSecond(50.0)))
        .expect("its attackers start");
    wait_until("smtpd to be there", PATIENCE, || {
        Ok(!lab.postfix.smtpds()?.is_empty())
    })
    .expect("they are served");
    println!("\nlab {} {}", lab.postfix.master_pid(), lab.base().display());
    loop {
        std::thread::park();
    }
}

/// What a lab could leave behind.
#[derive(Debug)]
struct Traces {
    master_pid: i32,
    base: PathBuf,
}

impl Traces {
    fn of(lab: &Lab) -> Self {
        Self {
            master_pid: lab.postfix.master_pid(),
            base: lab.base().to_owned(),
        }
    }

    /// The first thing that is still there: the directory, or any process of master's session. The namespaces need no look:
    /// without a process and a descriptor the kernel has none.
    fn any(&self) -> Option<PathBuf> {
        if self.base.exists() {
            return Some(self.base.clone());
        }
        let processes = std::fs::read_dir("/proc")
            .expect("/proc is mounted")
            .filter_map(|entry| Some(entry.ok()?.path()));
        processes
            .filter(|path| session(path) == Some(self.master_pid))
            .find(|path| path.is_dir())
    }
}

/// The session of a process that is more than a zombie.
fn session(proc: &Path) -> Option<i32> {
    let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(2)?.parse().ok()
}
