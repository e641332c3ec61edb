//! Text of others on its way to a terminal, a log or the API of the cluster: nothing in it may be obeyed.

/// Puts `c` behind `out`, escaped if a terminal would obey or reorder by it.
pub(crate) fn push_printable(out: &mut String, c: char) {
    // The bidirectional controls are no control characters to Unicode, but they make a line read as another.
    let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || reorders {
        out.extend(c.escape_default());
    } else {
        out.push(c);
    }
}
