//! master.cf, read without loss: what its entries say and on which bytes of the file they stand.
//!
//! Lenient: whatever is not a whole entry is passed over here, and [`validate`] says what is wrong with it. The rules
//! are those of master(8) (Postfix src/master/master_ent.c get_master_ent()) and of the daemons' command lines
//! (src/master/single_server.c), not those of postconf(1), which differs in places. Never writes.

use std::collections::HashSet;

use super::ServiceId;
use super::endpoint::{canonical_name, same_service};
use super::lines::{self, Logical, is_blank, is_space};
pub use super::validate::{Problem, validate, validate_with};

/// Options of the Postfix daemons that take a value (the GETOPT string of single_server.c).
const OPTIONS_WITH_VALUE: &[u8] = b"imnorst";

/// A parsed master.cf.
#[derive(Debug, Clone)]
pub struct MasterCf<'a> {
    bytes: &'a [u8],
    entries: Vec<Entry>,
    warnings: Vec<Problem>,
}

/// One whole entry: all eight fields are there, though they may hold nonsense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: ServiceId,
    pub private: Field<bool>,
    pub unprivileged: Field<bool>,
    pub chroot: Field<bool>,
    pub wakeup: Field<Wakeup>,
    /// 0 is unlimited; the default is default_process_limit of main.cf.
    pub maxproc: Field<u32>,
    /// Relative to $daemon_directory, as it stands in the file.
    pub command: String,
    /// As the daemon gets them: braces around a whole argument are gone.
    pub args: Vec<Vec<u8>>,
    /// Number of its first line, from 1.
    pub line: usize,
    /// Its last content line: where it begins, where its content ends (before the line feed, if there is one; a
    /// carriage return is content), and where the next line begins.
    pub last_line: Span,
}

/// Byte offsets of one physical line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub content_end: usize,
    pub end: usize,
}

/// A field that may be left to its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field<T> {
    /// `-`
    Default,
    Is(T),
    /// What master(8) would die of.
    Bad(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wakeup {
    pub seconds: u32,
    /// `?`: only once the service has been used.
    pub conditional: bool,
}

impl<'a> MasterCf<'a> {
    pub fn parse(bytes: &'a [u8]) -> Self {
        let (ignored, logical): (Vec<Logical>, Vec<Logical>) =
            lines::logical(bytes).into_iter().partition(|l| l.ignored);
        let warnings = ignored
            .iter()
            .map(|l| Problem {
                line: l.first().number,
                what: "text before the first entry starts with white space; Postfix ignores it".into(),
            })
            .collect();
        Self {
            bytes,
            entries: logical.iter().filter_map(entry).collect(),
            warnings,
        }
    }

    /// The bytes that were parsed.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Every whole entry in the order of the file, duplicates included.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What Postfix reads otherwise than its author will have meant.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// The entry that counts for a service. Of duplicates that is the last one, and `smtp` and `25` are duplicates.
    pub fn find(&self, id: &ServiceId) -> Option<&Entry> {
        self.entries.iter().rfind(|e| same_service(&e.id, id))
    }

    /// The entries that count, without those that a later duplicate replaces.
    pub fn in_force(&self) -> impl Iterator<Item = &Entry> {
        let mut seen = HashSet::new();
        let from_the_end = self.entries.iter().rev();
        let mut last: Vec<&Entry> = from_the_end
            .filter(|entry| seen.insert((canonical_name(&entry.id), &entry.id.kind)))
            .collect();
        last.reverse();
        last.into_iter()
    }
}

impl Entry {
    /// The values that `-o name=` is given, in order; the daemon takes the last.
    pub fn overrides(&self, name: &str) -> Vec<&[u8]> {
        self.settings()
            .into_iter()
            .filter(|(n, _)| *n == name.as_bytes())
            .map(|(_, value)| value)
            .collect()
    }

    /// Every `-o name=value` in order, blanks around name and value gone.
    pub fn settings(&self) -> Vec<(&[u8], &[u8])> {
        option_values(&self.args, b'o')
            .into_iter()
            .filter_map(split_setting)
            .collect()
    }

    /// Last component of the command: `smtpd`.
    pub fn program(&self) -> &str {
        self.command.rsplit('/').next().unwrap_or_default()
    }
}

/// The values of one option, by the rules of getopt(3) with `+`, as the daemons call it: options end at the first
/// argument that is none, letters may be clustered, a value may follow in the same argument or be the next one.
pub(super) fn option_values(args: &[Vec<u8>], wanted: u8) -> Vec<&[u8]> {
    let mut values = Vec::new();
    let mut args = args.iter();
    while let Some(letters) = args.next().and_then(|arg| arg.strip_prefix(b"-")) {
        if letters.is_empty() || letters == b"-" {
            break;
        }
        if let Some(at) = letters
            .iter()
            .position(|letter| OPTIONS_WITH_VALUE.contains(letter))
        {
            let rest = &letters[at + 1..];
            let value = if rest.is_empty() {
                args.next().map(Vec::as_slice)
            } else {
                Some(rest)
            };
            values.extend(value.filter(|_| letters[at] == wanted));
        }
    }
    values
}

/// `name = value` into its halves (Postfix src/util/split_nameval.c). `-o{ name = value }` reaches the daemon with its
/// braces, which then rejects it, while postconf(1) reads it as a setting; it is taken as one here, so that an
/// admin's wish is seen even where it is misspelt.
fn split_setting(setting: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = setting
        .strip_prefix(b"{")
        .and_then(|s| s.strip_suffix(b"}"))
        .unwrap_or(setting);
    let equals = inner.iter().position(|&b| b == b'=')?;
    let name = trim(&inner[..equals]);
    (!name.is_empty() && !name.iter().copied().any(is_space)).then(|| (name, trim(&inner[equals + 1..])))
}

pub(super) fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|&b| !is_space(b)).unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(|&b| !is_space(b))
        .map_or(start, |last| last + 1);
    &text[start..end]
}

fn entry(logical: &Logical) -> Option<Entry> {
    let mut rest = logical.text.as_slice();
    let mut field = || next_field(&mut rest).map(|f| String::from_utf8_lossy(f).into_owned());
    let id = ServiceId {
        name: field()?,
        kind: field()?,
    };
    let private = parse_bool(field()?);
    let unprivileged = parse_bool(field()?);
    let chroot = parse_bool(field()?);
    let wakeup = parse_field(field()?, parse_wakeup);
    let maxproc = parse_field(field()?, parse_count);
    let command = field()?;
    let last = logical.last();
    Some(Entry {
        id,
        private,
        unprivileged,
        chroot,
        wakeup,
        maxproc,
        command,
        args: arguments(rest).into_iter().map(|a| a.value.to_vec()).collect(),
        line: logical.first().number,
        last_line: Span {
            start: last.content.start,
            content_end: last.content.end,
            end: last.end,
        },
    })
}

/// The next blank-separated field, taken off the front of `rest` (mystrtok() in Postfix).
pub(super) fn next_field<'t>(rest: &mut &'t [u8]) -> Option<&'t [u8]> {
    let start = rest.iter().position(|&b| !is_blank(b))?;
    let text = &rest[start..];
    let (field, tail) = text.split_at(text.iter().position(|&b| is_blank(b)).unwrap_or(text.len()));
    *rest = tail;
    Some(field)
}

fn parse_bool(text: String) -> Field<bool> {
    parse_field(text, |t| match t {
        "y" => Some(true),
        "n" => Some(false),
        _ => None,
    })
}

fn parse_field<T>(text: String, parse: impl Fn(&str) -> Option<T>) -> Field<T> {
    match text.as_str() {
        "-" => Field::Default,
        value => parse(value).map_or_else(|| Field::Bad(value.to_owned()), Field::Is),
    }
}

fn parse_wakeup(text: &str) -> Option<Wakeup> {
    let (digits, conditional) = text.strip_suffix('?').map_or((text, false), |d| (d, true));
    parse_count(digits).map(|seconds| Wakeup { seconds, conditional })
}

/// Master reads these numbers with atoi(3), so what does not fit an int is not a number here, and `10x`, which
/// atoi takes for 10, is not either: postconf(1) refuses it.
fn parse_count(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|&n| n <= i32::MAX.unsigned_abs())
}

/// One argument of the command.
pub(super) struct Argument<'t> {
    pub(super) value: &'t [u8],
    /// What master(8) dies of.
    pub(super) error: Option<&'static str>,
}

/// Splits arguments at blanks outside braces (mystrtokq()), and takes the braces off one that starts with them
/// (src/util/extpar.c).
pub(super) fn arguments(text: &[u8]) -> Vec<Argument<'_>> {
    let mut arguments = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.iter().position(|&b| !is_blank(b)) {
        rest = &rest[start..];
        let mut depth = 0_usize;
        let end = rest.iter().position(|&b| {
            match b {
                b'{' => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && is_blank(b)
        });
        let (token, tail) = rest.split_at(end.unwrap_or(rest.len()));
        rest = tail;
        arguments.push(unbrace(token));
    }
    arguments
}

fn unbrace(token: &[u8]) -> Argument<'_> {
    if !token.starts_with(b"{") {
        return Argument {
            value: token,
            error: None,
        };
    }
    let mut depth = 0_usize;
    let close = token.iter().position(|&b| {
        match b {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    match close {
        Some(at) if at + 1 == token.len() => Argument {
            value: trim(&token[1..at]),
            error: None,
        },
        Some(at) => Argument {
            value: trim(&token[1..at]),
            error: Some("text follows the closing \"}\""),
        },
        None => Argument {
            value: trim(&token[1..]),
            error: Some("missing \"}\""),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Entry {
        let entries = MasterCf::parse(text.as_bytes()).entries().to_vec();
        assert_eq!(entries.len(), 1, "{text:?}");
        entries.into_iter().next().unwrap()
    }

    #[test]
    fn reads_all_fields() {
        let entry = only("tlsmgr unix - n y 1000? 1 tlsmgr -v\n");
        assert_eq!(
            entry.id,
            ServiceId {
                name: "tlsmgr".into(),
                kind: "unix".into()
            }
        );
        assert_eq!(entry.private, Field::Default);
        assert_eq!(entry.unprivileged, Field::Is(false));
        assert_eq!(entry.chroot, Field::Is(true));
        assert_eq!(
            entry.wakeup,
            Field::Is(Wakeup {
                seconds: 1000,
                conditional: true
            })
        );
        assert_eq!(entry.maxproc, Field::Is(1));
        assert_eq!(entry.program(), "tlsmgr");
        assert_eq!(entry.args, [b"-v"]);
    }

    #[test]
    fn bad_fields_are_kept_as_they_are() {
        let entry = only("smtp inet x n n 10x -1 smtpd");
        assert_eq!(entry.private, Field::Bad("x".into()));
        assert_eq!(entry.wakeup, Field::Bad("10x".into()));
        assert_eq!(entry.maxproc, Field::Bad("-1".into()));
        assert!(
            MasterCf::parse(b"smtp inet n - y -\n").entries().is_empty(),
            "not a whole entry"
        );
    }

    #[test]
    fn all_forms_of_an_override_are_found_in_order() {
        let entry = only(
            "smtp inet n - y - - smtpd -o stress=a\n  -o { stress = b c }\n#-o stress=no\n\n\t-ostress=d -vo stress=e -o{stress=f}\n",
        );
        assert_eq!(entry.overrides("stress"), [&b"a"[..], b"b c", b"d", b"e", b"f"]);
        assert!(entry.overrides("stres").is_empty());
    }

    #[test]
    fn an_override_behind_the_end_of_the_options_is_none() {
        assert!(
            only("a inet n - - - - smtpd word -o stress=yes")
                .overrides("stress")
                .is_empty()
        );
        assert!(
            only("a inet n - - - - smtpd -- -o stress=yes")
                .overrides("stress")
                .is_empty()
        );
        assert!(
            only("a inet n - - - - smtpd -o -o stress=yes")
                .overrides("stress")
                .is_empty()
        );
        assert_eq!(
            only("a inet n - - - - smtpd -s 2 -D -o stress=").overrides("stress"),
            [b""]
        );
    }

    #[test]
    fn groups_hold_blanks_and_may_span_lines() {
        let entry = only("a inet n - - - - smtpd -o { x = {1} 2\n# not this\n   3 } { -v }\n");
        assert_eq!(entry.args[1], b"x = {1} 2   3");
        assert_eq!(entry.args[2], b"-v");
        assert_eq!(entry.overrides("x"), [b"{1} 2   3"]);
    }

    #[test]
    fn the_last_duplicate_counts() {
        let text = b"smtp inet n - y - 5 smtpd\nsmtp unix - - y - - smtp\n25 inet n - y - 7 smtpd\n";
        let file = MasterCf::parse(text);
        let id = ServiceId {
            name: "smtp".into(),
            kind: "inet".into(),
        };
        assert_eq!(file.find(&id).unwrap().maxproc, Field::Is(7));
        let names: Vec<_> = file.in_force().map(|e| e.id.to_string()).collect();
        assert_eq!(names, ["smtp/unix", "25/inet"]);
    }

    #[test]
    fn the_last_content_line_is_where_it_is() {
        let text = b"a inet n - - - - smtpd\n  -v\n# after\n\nb inet n - - - - smtpd";
        let file = MasterCf::parse(text);
        let span = file.entries()[0].last_line;
        assert_eq!(&text[span.start..span.end], b"  -v\n");
        let span = file.entries()[1].last_line;
        assert_eq!((span.content_end, span.end), (text.len(), text.len()));
    }

    #[test]
    fn leading_continuation_is_ignored_with_a_warning() {
        let file = MasterCf::parse(b"# head\n  lost inet n - - - - smtpd\n  -v\na inet n - - - - smtpd\n");
        assert_eq!(file.entries().len(), 1);
        assert_eq!(file.warnings()[0].line, 2);
    }
}
