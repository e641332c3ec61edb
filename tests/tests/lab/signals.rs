//! What the daemon says of a real Postfix, held against the kernel's `ss` and the clients' own clocks. It only observes
//! here, so that nothing that it does changes what it measures.

use std::process::{Command, Stdio};
use std::time::Duration;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Arrival, Attack};
use sentinel_lab::clock::{wait_for, wait_until};
use sentinel_lab::senders::Traffic;
use sentinel_lab::sentinel::{Daemon, Sentinel};
use smtp_sentinel::status::Service;

use crate::{PATIENCE, observe};

/// Waits until the daemon counts the clients of the lab's listener: what comes before is not in the counts.
fn wait_watched(daemon: &Daemon<'_>) -> Service {
    let counted = |service: &Service| {
        service.busy.is_some()
            && service.accept_queue.is_some()
            && service.listeners.iter().any(|listener| listener.counts.is_some())
    };
    let found = daemon.wait_service(
        "smtp/inet to be watched and its clients counted",
        PATIENCE,
        counted,
    );
    found.unwrap_or_else(|error| panic!("{error:#}"))
}

/// One number of /metrics; an absent series is an error and no 0.
fn metric(daemon: &Daemon<'_>, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    let sum = daemon.metrics()?.sum(&format!("smtp_sentinel_{name}"), labels);
    sum.ok_or_else(|| anyhow::anyhow!("/metrics has no {name} {labels:?}"))
}

#[test]
fn ten_queued_clients_read_as_ten_and_those_that_leave_are_counted_once() {
    let lab = Lab::builder().maxproc(2).start().unwrap();
    let sentinel = Sentinel::install_with(&lab, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    wait_watched(&daemon);

    let mut holders = [lab.connect(1).unwrap(), lab.connect(2).unwrap()];
    for holder in &mut holders {
        assert!(holder.read_line().unwrap().0.starts_with("220 "));
    }
    let mut queued: Vec<_> = (11..=20).map(|host| lab.connect(host).unwrap()).collect();
    let service = daemon
        .wait_service("an accept queue of ten", PATIENCE, |service| {
            service.accept_queue.is_some_and(|queue| queue.depth == 10)
        })
        .unwrap();
    let queue = service.accept_queue.unwrap();
    let port = lab.sockets().unwrap();
    assert_eq!((port.depth, port.backlog), (10, 100), "what ss says: {port:?}");
    assert_eq!((queue.high_water, queue.limit), (10, port.backlog), "{queue:?}");
    for (name, value) in [("depth", 10.0), ("high_water", 10.0), ("limit", 100.0)] {
        assert_eq!(
            metric(&daemon, &format!("accept_queue_{name}"), &[]).unwrap(),
            value,
            "{name}"
        );
    }

    queued.pop().unwrap().reset().unwrap();
    queued.pop().unwrap().close();
    queued.pop().unwrap().close();
    let early = |phase| metric(&daemon, "early_disconnects_total", &[("phase", phase)]);
    wait_until(
        "three early disconnects",
        PATIENCE,
        || Ok(early("queued")? == 3.0),
    )
    .unwrap();

    // They are accepted in their turn like the others; that must not count them again, in this phase or the other.
    drop(holders);
    for mut client in queued {
        assert!(client.read_line().unwrap().0.starts_with("220 "));
    }
    wait_until("all slots to be free", PATIENCE, || {
        let port = lab.sockets()?;
        Ok(port.held == 0 && port.depth == 0)
    })
    .unwrap();
    let service = daemon
        .wait_service("an empty accept queue", PATIENCE, |service| {
            service.busy == Some(0) && service.accept_queue.is_some_and(|queue| queue.depth == 0)
        })
        .unwrap();
    assert_eq!(
        service.accept_queue.unwrap().high_water,
        10,
        "the mark outlasts the queue"
    );
    assert_eq!(early("queued").unwrap(), 3.0);
    assert_eq!(early("before_greeting").unwrap(), 0.0);
    assert_eq!(metric(&daemon, "connections_total", &[]).unwrap(), 12.0);
}

#[test]
fn a_client_that_leaves_after_accept_and_before_the_greeting_is_told_apart() {
    let lab = Lab::builder().greeting_delay(5).start().unwrap();
    let sentinel = Sentinel::install_with(&lab, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    wait_watched(&daemon);
    let client = lab.connect(1).unwrap();
    wait_until("an smtpd to take the client", PATIENCE, || {
        Ok(lab.sockets()?.held == 1)
    })
    .unwrap();
    client.reset().unwrap();
    let early = |phase| metric(&daemon, "early_disconnects_total", &[("phase", phase)]);
    wait_until("one early disconnect", PATIENCE, || {
        Ok(early("before_greeting")? == 1.0)
    })
    .unwrap();
    assert_eq!(early("queued").unwrap(), 0.0);
}

#[test]
fn the_greeting_histogram_agrees_with_the_clients_clocks() {
    let lab = Lab::builder().greeting_delay(1).start().unwrap();
    let sentinel = Sentinel::install_with(&lab, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    wait_watched(&daemon);

    // One session at a time pairs each of the client's times with its own part of the sum. The median of the differences
    // stands for them: a client that a busy machine woke late is the machine's fault.
    let mut differences = Vec::new();
    let mut before = 0.0;
    for host in 1..=7_u8 {
        let mut client = lab.connect(host).unwrap();
        let (_, by_client) = client.read_line().unwrap();
        let sum = wait_for("the greeting to be counted", PATIENCE, || {
            let count = metric(&daemon, "greeting_seconds_count", &[])?;
            let sum = metric(&daemon, "greeting_seconds_sum", &[])?;
            Ok((count == f64::from(host)).then_some(sum))
        })
        .unwrap();
        differences.push((by_client.as_secs_f64() - (sum - before)).abs());
        before = sum;
    }
    differences.sort_by(f64::total_cmp);
    assert!(
        differences[3] <= 0.010,
        "seconds between the clocks: {differences:?}"
    );
    assert_eq!(
        metric(&daemon, "greeting_seconds_bucket", &[("le", "0.524288")]).unwrap(),
        0.0
    );
    assert_eq!(
        metric(&daemon, "greeting_seconds_bucket", &[("le", "+Inf")]).unwrap(),
        7.0
    );
}

#[test]
fn busy_is_what_attackers_hold_while_the_process_count_lags() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install_with(&lab, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    let attackers = lab
        .attack(Attack::silent(Arrival::Evenly {
            count: 7,
            within: Duration::from_millis(700),
        }))
        .unwrap();
    wait_until("seven attackers to hold a slot", PATIENCE, || {
        Ok(attackers.toll().holding == 7)
    })
    .unwrap();
    assert_eq!(lab.sockets().unwrap().held, 7);
    let service = daemon
        .wait_service("seven busy", PATIENCE, |service| service.busy == Some(7))
        .unwrap();
    assert_eq!(service.limit, Some(20));
    assert_eq!(service.pressure, Some(7.0 / 20.0));
    assert_eq!(metric(&daemon, "processes", &[("state", "busy")]).unwrap(), 7.0);

    attackers.stop().unwrap();
    let service = daemon
        .wait_service("none busy", PATIENCE, |service| service.busy == Some(0))
        .unwrap();
    // Idle ones stay for max_idle, 100 s: the bare count would still say 7.
    assert!(service.processes >= Some(7), "{:?}", service.processes);
    assert_eq!(service.pressure, Some(0.0));
}

#[test]
fn status_and_metrics_and_ss_tell_the_same_story_at_rest() {
    // More slots than default_process_limit, so that the backlog is not the usual 100.
    let lab = Lab::builder().maxproc(150).start().unwrap();
    let sentinel = Sentinel::install_with(&lab, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    let service = wait_watched(&daemon);
    let queue = service.accept_queue.unwrap();
    let port = lab.sockets().unwrap();
    assert_eq!((queue.depth, queue.limit), (port.depth, port.backlog));
    assert_eq!(port.backlog, 150);
    assert_eq!(service.busy, Some(port.held));
    assert_eq!(
        metric(&daemon, "accept_queue_depth", &[]).unwrap(),
        f64::from(port.depth)
    );
    assert_eq!(
        metric(&daemon, "accept_queue_limit", &[]).unwrap(),
        f64::from(port.backlog)
    );
    assert_eq!(metric(&daemon, "process_limit", &[]).unwrap(), 150.0);
    assert_eq!(metric(&daemon, "state", &[("state", "normal")]).unwrap(), 1.0);

    let (code, body) = sentinel.get("/api/v1/status").unwrap();
    assert_eq!(code, 200);
    let served: smtp_sentinel::status::Report = serde_json::from_str(&body).unwrap();
    let asked = daemon.status().unwrap();
    assert_eq!(served.instances[0].master_pid, lab.postfix.master_pid());
    assert_eq!(served.instances[0].config_dir, asked.instances[0].config_dir);
    for probe in &asked.probes {
        let up = metric(&daemon, "probe_up", &[("probe", &probe.name)]).unwrap();
        assert_eq!(
            up == 1.0,
            probe.state == smtp_sentinel::status::ProbeState::Ok,
            "{probe:?}"
        );
    }
    assert_eq!(sentinel.get("/healthz").unwrap().0, 200);
}

#[test]
fn promtool_takes_the_metrics() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install_with(&lab, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    wait_watched(&daemon);
    let senders = lab
        .senders(Traffic {
            sessions: Some(5),
            ..Traffic::new(20.0)
        })
        .unwrap();
    // Families without a series would be checked for nothing.
    wait_until("greetings to be counted", PATIENCE, || {
        Ok(daemon.metrics()?.sum("smtp_sentinel_greeting_seconds_count", &[]) == Some(5.0))
    })
    .unwrap();
    senders.stop().unwrap();

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is in PATH; `cargo xtask test` puts it there");
    let text = daemon.metrics_text().unwrap();
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{words}\n{text}");
}

#[test]
fn slow_greetings_of_our_own_are_no_attack() {
    // Three seconds in each slot before the greeting, as with slow DNS: all slots busy, and nobody to blame but ourselves.
    let lab = Lab::builder().maxproc(5).greeting_delay(3).start().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let senders = lab.senders(Traffic::new(4.0)).unwrap();
    daemon
        .wait_service("slow greetings to be recognized", PATIENCE, |service| {
            service.verdict.kind == "slow_greeting"
        })
        .unwrap();
    // And the sentinel stays out of it for as long as several of its dwells.
    wait_until("thirty sessions", PATIENCE, || Ok(senders.so_far().len() >= 30)).unwrap();
    assert_eq!(lab.postfix.reloads(), 0);
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
}
