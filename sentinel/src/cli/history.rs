//! `history`: every transition and action. Reads the journal itself, so it answers without a daemon too.

use serde::Serialize;

use super::plain::printable;
use super::{Code, ConfigFile, Failure, print, print_json};
use crate::actuator::{HistoryEntry, read_history};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the entries as one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args) -> Result<Code, Failure> {
    let config = args.file.load()?;
    let entries = read_history(&config.paths.state_dir)?;
    if args.json {
        print_json(&entries)?;
        return Ok(Code::Done);
    }
    let text: String = entries.iter().map(line).collect();
    print(if text.is_empty() {
        "nothing has been done yet\n"
    } else {
        &text
    })?;
    Ok(Code::Done)
}

/// `2026-03-01T02:03:04Z  /etc/postfix smtp/inet  transition normal -> stressed, done: reason; reason`
fn line(entry: &HistoryEntry) -> String {
    // To the second: what is finer is in the JSON.
    let mut line = format!("{:.0}", entry.time);
    let place: Vec<_> = [&entry.instance, &entry.service]
        .into_iter()
        .flatten()
        .map(|name| printable(name))
        .collect();
    if !place.is_empty() {
        line = format!("{line}  {}", place.join(" "));
    }
    line = format!("{line}  {}", word(&entry.kind));
    if let Some(action) = &entry.action {
        line = format!("{line} {}", word(action));
    }
    match (&entry.from, &entry.to) {
        (Some(from), Some(to)) => line = format!("{line} {} -> {}", word(from), word(to)),
        (None, Some(to)) => line = format!("{line} -> {}", word(to)),
        (Some(from), None) => line = format!("{line} {} ->", word(from)),
        (None, None) => {}
    }
    if let Some(outcome) = &entry.outcome {
        line = format!("{line}, {}", word(outcome));
    }
    if !entry.reasons.is_empty() {
        line = format!("{line}: {}", printable(&entry.reasons.join("; ")));
    }
    line + "\n"
}

/// The word that the JSON has for it: one vocabulary for people and scripts.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actuator::{Action, Kind, Outcome};
    use crate::controller::State;

    #[test]
    fn an_entry_is_one_readable_line() {
        let time = "2026-03-01T02:03:04.987Z".parse().unwrap();
        let transition = HistoryEntry {
            instance: Some("/etc/postfix".to_owned()),
            service: Some("smtp/inet".to_owned()),
            from: Some(State::Normal),
            to: Some(State::Stressed),
            reasons: vec![
                "93 of 100 slots are busy".to_owned(),
                "80 clients\nare silent".to_owned(),
            ],
            ..HistoryEntry::new(time, Kind::Transition)
        };
        assert_eq!(
            line(&transition),
            "2026-03-01T02:03:04Z  /etc/postfix smtp/inet  transition normal -> stressed: \
             93 of 100 slots are busy; 80 clients\\nare silent\n"
        );
        let action = HistoryEntry {
            instance: Some("/etc/postfix".to_owned()),
            action: Some(Action::Reload),
            outcome: Some(Outcome::DryRun),
            ..HistoryEntry::new(time, Kind::Action)
        };
        assert_eq!(
            line(&action),
            "2026-03-01T02:03:04Z  /etc/postfix  action reload, dry run\n"
        );
        assert_eq!(
            line(&HistoryEntry::new(time, Kind::OutsideEdit)),
            "2026-03-01T02:03:04Z  outside edit\n"
        );
    }
}
