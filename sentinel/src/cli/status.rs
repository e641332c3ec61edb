//! `status`: what is going on now. Asks the running daemon and prints what it says; measures nothing itself.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use super::check::TO_BE_SEEN;
use super::plain::{bar, printable, table};
use super::{Code, ConfigFile, Failure, print};
use crate::control;
use crate::controller::State;
use crate::status::{Instance, Kubernetes, KubernetesState, Mode, ProbeState, Report, Service, Unseen};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args) -> Result<Code, Failure> {
    let config = args.file.load()?;
    let raw = control::status(&config.paths.control_socket())?;
    if args.json {
        // As it came: a newer daemon may say more than this command knows.
        print(&format!("{}\n", raw.get()))?;
        return Ok(Code::Done);
    }
    let report: Report = serde_json::from_str(raw.get()).map_err(|error| {
        Failure::new(
            Code::No,
            format!("the daemon is of another version ({error}); restart it, or use --json"),
        )
    })?;
    print(&text(&report))?;
    Ok(Code::Done)
}

/// For an operator at 3 a.m.: the worst first to the eye, the reasons in full, what is not known said so.
fn text(report: &Report) -> String {
    let mut out = String::new();
    let mode = match report.mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe: it decides and edits nothing",
        Mode::DryRun => "dry-run: it decides and changes nothing",
    };
    let _ = writeln!(out, "smtp-sentinel {}, mode {mode}", printable(&report.version));
    if report.instances.is_empty() {
        let _ = writeln!(out, "\nno running Postfix is watched; see smtp-sentinel check");
    }
    for instance in &report.instances {
        out.push('\n');
        heading(&mut out, instance);
        for service in &instance.services {
            of_service(&mut out, service);
        }
    }
    if let Some(Unseen { count, reason }) = &report.unseen {
        let _ = writeln!(
            out,
            "\nnot looked into, and may be Postfix: {count} processes called master; {}\n  -> {}",
            printable(reason),
            TO_BE_SEEN
        );
    }
    if !report.capabilities.is_empty() {
        let _ = writeln!(
            out,
            "\ncapabilities kept: {}",
            printable(&report.capabilities.join(" "))
        );
    }
    if let Some(cluster) = &report.kubernetes {
        of_cluster(&mut out, cluster);
    }
    let trouble: Vec<_> = report
        .probes
        .iter()
        .filter(|probe| probe.state != ProbeState::Ok)
        .collect();
    if trouble.is_empty() {
        let _ = writeln!(out, "\nprobes: all {} ok", report.probes.len());
        return out;
    }
    let _ = writeln!(
        out,
        "\nprobes: {} of {} not ok",
        trouble.len(),
        report.probes.len()
    );
    let rows: Vec<_> = trouble
        .iter()
        .map(|probe| {
            let state = match probe.state {
                ProbeState::Ok => "ok",
                ProbeState::Fallback => "fallback",
                ProbeState::Unsupported => "unsupported",
                ProbeState::Broken => "broken",
            };
            (
                printable(&probe.name),
                format!("{state}: {}", printable(&probe.reason)),
            )
        })
        .collect();
    table(
        &mut out,
        2,
        &rows
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect::<Vec<_>>(),
    );
    out
}

fn of_cluster(out: &mut String, cluster: &Kubernetes) {
    let state = match cluster.state {
        KubernetesState::Ok => "ok",
        KubernetesState::Stale => "stale",
        KubernetesState::Unavailable => "unavailable",
    };
    let _ = write!(out, "\nKubernetes API: {state}, {} pods known", cluster.pods);
    if !cluster.reason.is_empty() {
        let _ = write!(out, "; {}", printable(&cluster.reason));
    }
    out.push('\n');
}

fn heading(out: &mut String, instance: &Instance) {
    let version = instance
        .postfix_version
        .as_deref()
        .unwrap_or("of unknown version");
    let _ = write!(
        out,
        "{}  Postfix {}, master {}",
        printable(&instance.id),
        printable(version),
        instance.master_pid
    );
    if let Some(container) = &instance.container {
        for (what, value) in [("host name", &container.hostname), ("pod", &container.pod_uid)] {
            if let Some(value) = value {
                let _ = write!(out, ", {what} {}", printable(value));
            }
        }
    } else if instance.config_dir != instance.id {
        let _ = write!(out, ", {}", printable(&instance.config_dir));
    }
    out.push('\n');
    if let Some(pod) = &instance.pod {
        let names = [&pod.namespace, &pod.name, &pod.container];
        let names: Vec<_> = names.into_iter().flatten().map(|name| printable(name)).collect();
        let name = if names.is_empty() {
            "not named".to_owned()
        } else {
            names.join("/")
        };
        let _ = writeln!(
            out,
            "  pod {name}, mode {} by {}",
            printable(&pod.mode),
            printable(&pod.reason)
        );
    }
    if !instance.actionable {
        let _ = writeln!(out, "  watched, not touched: {}", printable(&instance.reason));
    }
}

fn of_service(out: &mut String, service: &Service) {
    let state = match service.state {
        State::Normal => "normal",
        State::Stressed => "STRESSED",
        State::Recovering => "RECOVERING",
    };
    let _ = writeln!(out, "  {}  {state}", printable(&service.label()));
    let mut rows = Vec::new();
    if !service.actionable {
        rows.push(("not touched", printable(&service.reason)));
    }
    if let Some(pressure) = service.pressure {
        rows.push(("pressure", format!("{} {:.0} %", bar(pressure), pressure * 100.0)));
    }
    if service.busy.is_some() || service.processes.is_some() || service.limit.is_some() {
        let [busy, processes, limit] = [service.busy, service.processes, service.limit].map(or_unknown);
        rows.push((
            "processes",
            format!("{busy} busy of {limit}, {processes} running"),
        ));
    }
    if let (Some(own), Some(limit)) = (service.own_limit, service.limit) {
        let text = format!("maxproc is {limit} for now, and {own} again after it");
        rows.push(("headroom", text));
    }
    if let Some(queue) = service.accept_queue {
        let text = format!(
            "{} of {}, high water {}",
            queue.depth, queue.limit, queue.high_water
        );
        rows.push(("accept queue", text));
    }
    if let Some(greeting) = service.greeting_ms {
        rows.push((
            "greeting",
            format!("p50 {}, p99 {}", millis(greeting.p50), millis(greeting.p99)),
        ));
    }
    if let Some(early) = service.early_disconnects_per_s {
        rows.push(("left early", format!("{early:.1}/s before the greeting")));
    }
    if service.native_stress == Some(true) {
        rows.push((
            "native stress",
            "on: the master's own stress mode is in force".to_owned(),
        ));
    }
    if let Some(order) = &service.order {
        rows.push(("override", printable(&order.to_string())));
    }
    let reasons = service
        .verdict
        .reasons
        .iter()
        .map(|reason| printable(reason))
        .collect::<Vec<_>>()
        .join("; ");
    let kind = printable(&service.verdict.kind);
    rows.push((
        "verdict",
        if reasons.is_empty() {
            kind
        } else {
            format!("{kind}: {reasons}")
        },
    ));
    rows.extend(
        unknown(&service.unavailable)
            .into_iter()
            .map(|text| ("not known", text)),
    );
    table(out, 4, &rows);
}

/// One line a reason: most often one cause hides several values.
fn unknown(unavailable: &BTreeMap<String, String>) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, reason) in unavailable {
        by_reason.entry(reason).or_default().push(name);
    }
    let line = |(reason, names): (&str, Vec<&str>)| printable(&format!("{}: {reason}", names.join(", ")));
    by_reason.into_iter().map(line).collect()
}

fn or_unknown(value: Option<impl Display>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

fn millis(ms: f64) -> String {
    match ms {
        _ if ms < 10.0 => format!("{ms:.1} ms"),
        _ if ms < 10_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.0} s", ms / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::report;

    #[test]
    fn it_reads_as_an_operator_needs_it() {
        let mut report = report();
        report.instances.truncate(1);
        assert_eq!(
            text(&report),
            "\
smtp-sentinel 0.1.0, mode enforce

/etc/postfix  Postfix 3.7.11, master 4711
  smtp/inet  STRESSED
    pressure      [###################-] 93 %
    processes     93 busy of 100, 95 running
    accept queue  17 of 100, high water 42
    greeting      p50 1.5 ms, p99 870 ms
    left early    4.2/s before the greeting
    verdict       hogged: 93 of 100 slots are busy; 80 clients are silent
  smtpd/pass  normal
    not touched  main.cf:3: an administrator's own -o stress= is law
    processes    ? busy of ?, 0 running
    verdict      unknown
    not known    limit, pressure: the kernel has no counts for a listener behind postscreen

capabilities kept: CAP_SYS_PTRACE CAP_NET_ADMIN

Kubernetes API: stale, 3 pods known; connection refused

probes: 1 of 2 not ok
  greeting  unsupported: no cgroup2 mount; greeting latency is not measured
"
        );
    }

    #[test]
    fn hostile_names_do_not_reach_the_terminal() {
        let text = text(&report());
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
        assert!(text.contains("b\\c\"\\n\\u{1b}[31md"), "{text}");
    }

    #[test]
    fn what_could_not_be_looked_into_is_said_with_what_it_takes() {
        let report = Report {
            unseen: Some(Unseen {
                count: 2,
                reason: "/proc/7/environ: Permission\u{1b} denied".to_owned(),
            }),
            ..Report::default()
        };
        let text = text(&report);
        assert!(text.contains("2 processes called master"), "{text}");
        assert!(
            text.contains("\\u{1b} denied\n  -> as root it takes CAP_SYS_PTRACE"),
            "{text}"
        );
    }

    #[test]
    fn nothing_to_watch_is_said() {
        assert!(text(&Report::default()).contains("no running Postfix is watched"));
    }
}
