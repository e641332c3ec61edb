//! docs/kernels.md: the part that is made of the runs.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Run;
use super::report::{Fact, Report};

const BEGIN: &str = "<!-- made by `cargo xtask kernels`: begin -->";
const END: &str = "<!-- made by `cargo xtask kernels`: end -->";

/// Puts `table` in the place of the one that is there.
pub(crate) fn write(path: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let text = replace(&text, table).with_context(|| format!("{} has lost its markers", path.display()))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn replace(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// One column a kernel.
pub(crate) fn render(runs: &[Run]) -> String {
    let mut table = String::new();
    let mut row = |first: &str, cell: &dyn Fn(&Run) -> String| {
        let cells: Vec<String> = runs.iter().map(cell).collect();
        let _ = writeln!(table, "| {first} | {} |", cells.join(" | "));
    };
    row("kernel", &|run| run.report.release.clone());
    row("---", &|_| "---".to_owned());
    row("Debian", &|run| format!("{} {}", run.suite, run.version));
    for probe in names(runs, |report| report.probes.keys()) {
        row(&format!("probe {probe}"), &|run| probe_cell(&run.report, probe));
    }
    for fact in names(runs, |report| report.facts.keys()) {
        row(fact, &|run| {
            run.report.facts.get(fact).map_or("-".to_owned(), fact_cell)
        });
    }
    for scenario in names(runs, |report| report.scenarios.keys()) {
        row(&scenario_words(scenario), &|run| scenario_cell(run, scenario));
    }
    table
}

fn names<'a, I: Iterator<Item = &'a String>>(
    runs: &'a [Run],
    of: impl Fn(&'a Report) -> I,
) -> BTreeSet<&'a String> {
    runs.iter().flat_map(|run| of(&run.report)).collect()
}

fn probe_cell(report: &Report, probe: &str) -> String {
    match report.probes.get(probe) {
        Some(health) if health.well => health.detail.replace("loaded, attached and tried", "yes"),
        Some(health) => format!("no: {}", health.detail.replace('|', "/")),
        None => "-".to_owned(),
    }
}

/// The two numbers were compared in the guest; here they are for people.
fn fact_cell(fact: &Fact) -> String {
    let sign = if fact.ours == fact.kernel { "=" } else { "/" };
    format!("{} {sign} {}", fact.ours, fact.kernel)
}

fn scenario_cell(run: &Run, scenario: &str) -> String {
    let absent = run
        .kernel
        .absent
        .iter()
        .find(|absent| absent.scenario == scenario);
    match (run.report.scenarios.get(scenario), absent) {
        (Some(true), _) => "yes".to_owned(),
        (Some(false), _) => "**NO**".to_owned(),
        (None, Some(absent)) => absent.reason.to_owned(),
        (None, None) => "-".to_owned(),
    }
}

/// `queue::a_full_queue_holds_one_more` as people write it.
fn scenario_words(scenario: &str) -> String {
    scenario.replacen("::", ": ", 1).replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::super::KERNELS;
    use super::super::report::tests::GUEST;
    use super::*;

    #[test]
    fn the_table_has_a_column_a_kernel_and_says_what_failed() {
        let run = |kernel| Run {
            kernel: &KERNELS[kernel],
            suite: "bullseye",
            version: "5.10.223-1".to_owned(),
            report: Report::parse(GUEST).unwrap(),
        };
        let table = render(&[run(0), run(1)]);
        assert!(table.starts_with("| kernel | 5.10.0-32-amd64 | 5.10.0-32-amd64 |\n| --- | --- | --- |\n"));
        assert!(table.contains("| probe overflow | no: netstat | no: netstat |"));
        assert!(table.contains("| depth | 10 = 10 | 10 = 10 |"));
        assert!(table.contains("| queue: two | **NO** | **NO** |"));
    }

    #[test]
    fn only_what_lies_between_the_markers_is_replaced() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(
            replace(&text, "new\n").unwrap(),
            format!("a\n{BEGIN}\nnew\n{END}\nb\n")
        );
        assert_eq!(replace("a\n", "new\n"), None);
    }
}
