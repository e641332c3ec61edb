//! Logical lines of main.cf and master.cf, over bytes, with the place of every physical line kept.
//!
//! The rules are those of Postfix src/util/readlline.c readllines(): a line that starts with white space continues
//! the logical line before it; blank lines and comment lines are skipped wherever they stand and end nothing; what
//! follows a NUL in a logical line is not seen by the C string functions that read it. Knows nothing about fields.

use std::ops::Range;

/// isspace() in the C locale: what starts a continuation line and makes a line blank. Fields are separated by fewer
/// characters, see [`is_blank`].
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// CHARS_SPACE of Postfix src/util/sys_defs.h: what separates fields.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// One physical line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// 1 for the first.
    pub(super) number: usize,
    /// Without the line feed; a carriage return before it counts as content (to Postfix it is white space).
    pub(super) content: Range<usize>,
    /// Where the next line begins: past the line feed, or the end of the file.
    pub(super) end: usize,
}

/// The physical lines of a file; text after the last line feed is a line too.
pub(super) fn physical(bytes: &[u8]) -> impl Iterator<Item = Line> + '_ {
    let mut start = 0;
    bytes
        .split_inclusive(|&b| b == b'\n')
        .enumerate()
        .map(move |(index, line)| {
            let end = start + line.len();
            let content = start..end - usize::from(line.ends_with(b"\n"));
            start = end;
            Line {
                number: index + 1,
                content,
                end,
            }
        })
}

/// A logical line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logical {
    /// Its physical lines that carry content, in order; never empty.
    pub(super) lines: Vec<Line>,
    /// The content put together, cut at the first NUL.
    pub(super) text: Vec<u8>,
    /// Some line has a NUL.
    pub(super) nul: bool,
    /// Begins with white space, as only the first logical line of a file can: Postfix warns and ignores it.
    pub(super) ignored: bool,
}

impl Logical {
    pub(super) fn first(&self) -> &Line {
        &self.lines[0]
    }

    pub(super) fn last(&self) -> &Line {
        &self.lines[self.lines.len() - 1]
    }
}

/// The logical lines of a file.
pub(super) fn logical(bytes: &[u8]) -> Vec<Logical> {
    let mut all: Vec<Vec<Line>> = Vec::new();
    for line in physical(bytes) {
        let content = &bytes[line.content.clone()];
        match content.iter().find(|&&b| !is_space(b)) {
            None | Some(b'#') => {}
            Some(_) => match all.last_mut() {
                Some(open) if is_space(content[0]) => open.push(line),
                _ => all.push(vec![line]),
            },
        }
    }
    all.into_iter().map(|lines| assemble(bytes, lines)).collect()
}

fn assemble(bytes: &[u8], lines: Vec<Line>) -> Logical {
    // Nothing is put between the lines: the white space that starts a continuation separates, unless it is \v or \f.
    let mut text: Vec<u8> = lines
        .iter()
        .flat_map(|line| &bytes[line.content.clone()])
        .copied()
        .collect();
    let nul = text.iter().position(|&b| b == 0);
    text.truncate(nul.unwrap_or(text.len()));
    let ignored = is_space(bytes[lines[0].content.start]);
    Logical {
        lines,
        text,
        nul: nul.is_some(),
        ignored,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(input: &[u8]) -> Vec<String> {
        logical(input)
            .into_iter()
            .filter(|l| !l.ignored)
            .map(|l| String::from_utf8_lossy(&l.text).into_owned())
            .collect()
    }

    #[test]
    fn follows_the_rules_of_readllines() {
        assert_eq!(texts(b"a\n b\nc\n"), ["a b", "c"]);
        assert_eq!(
            texts(b"a\n# x\n\n \t\n  # y\n b\nc"),
            ["a b", "c"],
            "comments and blanks end nothing"
        );
        assert_eq!(
            texts(b" a\n b\nc\n"),
            ["c"],
            "leading continuation is ignored as a whole"
        );
        assert_eq!(texts(b"# x\n a\nc\n"), ["c"]);
        assert_eq!(texts(b" #a\nc\n"), ["c"]);
        assert_eq!(texts(b"a\r\n b\r\n\r\nc\r\n"), ["a\r b\r", "c\r"]);
        assert_eq!(texts(b"a b\0c\n d\n"), ["a b"]);
        assert_eq!(
            texts(b"a\n\x0bb\n"),
            ["a\x0bb"],
            "a vertical tab continues, and separates nothing"
        );
        assert!(texts(b"").is_empty());
    }

    #[test]
    fn keeps_the_place_of_the_last_content_line() {
        let input = b"a\n b\n# x\n\nc";
        let lines = logical(input);
        assert_eq!(lines[0].last().number, 2);
        assert_eq!(lines[0].last().end, 5);
        assert_eq!(&input[lines[1].last().content.clone()], b"c");
        assert_eq!(lines[1].last().end, input.len());
    }

    proptest! {
        #[test]
        fn physical_lines_tile_the_file(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut at = 0;
            for line in physical(&input) {
                prop_assert_eq!(line.content.start, at);
                prop_assert!(line.end - line.content.end <= 1);
                at = line.end;
            }
            prop_assert_eq!(at, input.len());
        }
    }
}
