//! What the texts for people have in common. Names come from the system and from files of others, so nothing of them
//! may reach the terminal as a control character.

use std::fmt::Write;

use crate::terminal::push_printable;

/// `text` with everything escaped that a terminal would obey or reorder.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_printable(&mut out, c);
    }
    out
}

/// Twenty characters for 0 to 1. Ends full only at 1, and empty only at 0: the ends are what matters.
pub(super) fn bar(part: f64) -> String {
    const WIDTH: usize = 20;
    let part = if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) };
    let filled = match part {
        0.0 => 0,
        1.0 => WIDTH,
        _ => ((part * WIDTH as f64).round() as usize).clamp(1, WIDTH - 1),
    };
    format!("[{}{}]", "#".repeat(filled), "-".repeat(WIDTH - filled))
}

/// Two columns, the second behind the widest of the first; lines are indented by `indent`.
pub(super) fn table(out: &mut String, indent: usize, rows: &[(&str, String)]) {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    for (name, value) in rows {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{:indent$}{name:<width$}  {value}", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        assert_eq!(printable("/etc/é \"x\""), "/etc/é \"x\"");
        assert_eq!(
            printable("a\u{1b}[2J\r\nb\u{202e}"),
            "a\\u{1b}[2J\\r\\nb\\u{202e}"
        );
    }

    #[test]
    fn the_bar_is_full_only_at_one() {
        assert_eq!(bar(0.0), format!("[{}]", "-".repeat(20)));
        assert_eq!(bar(0.001), format!("[#{}]", "-".repeat(19)));
        assert_eq!(bar(0.999), format!("[{}-]", "#".repeat(19)));
        assert_eq!(bar(1.0), format!("[{}]", "#".repeat(20)));
        assert_eq!(bar(f64::NAN), bar(0.0));
        assert_eq!(bar(7.0), bar(1.0));
    }
}
