//! docs/soak.md: one row a part, of the last run of each.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::tally::Outcome;

const BEGIN: &str = "<!-- made by `cargo xtask soak`: begin -->\n";
const END: &str = "<!-- made by `cargo xtask soak`: end -->";
const HEAD: &str = "| part | what | minutes | counted | result | machine |\n|---|---|---|---|---|---|\n";

/// What came of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The first cell, which tells rows apart.
    part: String,
    line: String,
}

impl Row {
    pub(super) fn new(part: &str, what: &str, minutes: u64, outcome: &Outcome, machine: &str) -> Self {
        let result = if outcome.tally.failed == 0 {
            "nothing found"
        } else {
            "**FAILED**"
        };
        let counted = outcome.counts.join("; ").replace('|', "/");
        Self {
            part: part.to_owned(),
            line: format!("| {part} | {what} | {minutes} | {counted} | {result} | {machine} |"),
        }
    }

    /// A row of a table that was written before.
    fn read(line: &str) -> Option<Self> {
        let part = line.strip_prefix("| ")?.split(" | ").next()?;
        (part != "part").then(|| Self {
            part: part.to_owned(),
            line: line.to_owned(),
        })
    }
}

pub(super) fn render(rows: &[Row]) -> String {
    let lines: Vec<&str> = rows.iter().map(|row| row.line.as_str()).collect();
    format!("{HEAD}{}\n", lines.join("\n"))
}

/// Puts `rows` in the place of those of the same parts; the rows of parts that did not run now stay.
///
/// # Errors
/// The file cannot be read or written, or has lost its markers.
pub(super) fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let text = replace(&text, rows).with_context(|| format!("{} has lost its markers", path.display()))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn replace(text: &str, rows: &[Row]) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let mut all: Vec<Row> = old.lines().filter_map(Row::read).collect();
    for row in rows {
        match all.iter_mut().find(|old| old.part == row.part) {
            Some(old) => *old = row.clone(),
            None => all.push(row.clone()),
        }
    }
    Some(format!("{before}{BEGIN}{}{END}{after}", render(&all)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;

    fn row(part: &str, count: &str, tally: Tally) -> Row {
        let outcome = Outcome {
            tally,
            counts: vec![count.to_owned()],
        };
        Row::new(part, "words", 5, &outcome, "2 processors, Linux 6.1")
    }

    #[test]
    fn a_run_of_one_part_leaves_the_rows_of_the_others() {
        let empty = format!("a\n{BEGIN}{END}\nb\n");
        let both = [
            row("fuzz", "9 inputs", Tally::default()),
            row("masters", "7 files", Tally::default()),
        ];
        let text = replace(&empty, &both).unwrap();
        assert_eq!(text, format!("a\n{BEGIN}{}{END}\nb\n", render(&both)));
        let text = replace(&text, &[row("fuzz", "10 inputs", Tally::FAILURE)]).unwrap();
        assert!(
            text.contains(
                "| fuzz | words | 5 | 10 inputs | **FAILED** | 2 processors, Linux 6.1 |\n\
                 | masters | words | 5 | 7 files | nothing found | 2 processors, Linux 6.1 |\n"
            ),
            "{text}"
        );
        assert_eq!(replace("no markers", &both), None);
    }
}
