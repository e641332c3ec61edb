//! Which metrics the files of `deploy/` speak of, and which ones a daemon serves.

use std::collections::BTreeSet;

const PREFIX: &str = "smtp_sentinel";

/// The names with our prefix in a text, whatever its language. Names of recording rules have a colon.
pub fn spoken_of(text: &str) -> BTreeSet<String> {
    let name = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let words = text.split(|character| !name(character));
    let ours = words.filter(|word| {
        word.strip_prefix(PREFIX)
            .is_some_and(|rest| rest.starts_with(['_', ':']))
    });
    ours.map(|word| word.trim_end_matches(':').to_owned()).collect()
}

/// The names that series can have, out of the TYPE lines of an exposition in the format 0.0.4; they are there also when a
/// family has no series yet.
pub fn served(exposition: &str) -> BTreeSet<String> {
    let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .filter_map(|line| line.split_once(' '))
        .flat_map(|(name, kind)| match kind {
            "histogram" => ["_bucket", "_sum", "_count"]
                .map(|part| format!("{name}{part}"))
                .to_vec(),
            _ => vec![name.to_owned()],
        })
        .collect()
}

/// The names that the rules of a rule file record.
pub fn recorded(rules: &str) -> BTreeSet<String> {
    let lines = rules
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- record: "));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn names_are_found_in_expressions() {
        let text = "rate(smtp_sentinel_a_total{x=\"y\"}[5m]) / smtp_sentinel:a:ratio > 1 # smtp-sentinel smtp_sentinels";
        assert_eq!(
            spoken_of(text),
            set(&["smtp_sentinel_a_total", "smtp_sentinel:a:ratio"])
        );
    }

    #[test]
    fn types_give_the_names_of_series() {
        let text = "# HELP a_total b c\n# TYPE a_total counter\n# TYPE h_seconds histogram\nx 1\n";
        assert_eq!(
            served(text),
            set(&["a_total", "h_seconds_bucket", "h_seconds_sum", "h_seconds_count"])
        );
    }

    #[test]
    fn records_are_found() {
        assert_eq!(
            recorded("  - record: a:b\n    expr: c\n  - alert: D\n"),
            set(&["a:b"])
        );
    }
}
