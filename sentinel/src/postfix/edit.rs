//! The change that we make to a master.cf: two lines under one entry, and the way back. Where headroom is wanted too,
//! [`headroom`] has the rest of it.
//!
//! ```text
//! smtp      inet  n       -       y       -       -       smtpd
//! # smtp-sentinel: stress mode for smtp/inet since 2026-11-22T01:20:33Z; the next line is ours; undo with: smtp-sentinel restore
//!     -o stress=yes
//! ```
//!
//! Bytes in, bytes out; writing them is the actuator's. What is not a pair of ours, exactly as written, is never
//! touched: the comment line names the service and says that the next line is ours, so the two prove each other. The one
//! exception is what postconf(1) makes of a pair when it edits another argument of the entry: see [`remove`].

use std::ops::Range;

use jiff::Timestamp;

use super::ServiceId;
use super::endpoint::same_service;
use super::headroom::{self, Lowered};
use super::lines::{self, Line, Logical};
use super::master_cf::{Entry, MasterCf};

/// How every comment of ours begins.
pub(super) const SIGNATURE: &str = "# smtp-sentinel: ";
const BEFORE_SERVICE: &str = "# smtp-sentinel: stress mode for ";
const BEFORE_TIME: &str = " since ";
const AFTER_TIME: &str = "; the next line is ours; undo with: smtp-sentinel restore";
const ARGUMENT: &str = "    -o stress=yes";

/// Why an entry was left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("master.cf has no entry {0}; name a service that it has in [watch] services")]
    NoSuchEntry(ServiceId),
    #[error("{0} has its own \"-o stress={1}\" in master.cf, which is law; remove it there to let us decide")]
    AdminStress(ServiceId, String),
    #[error("{0} already has our \"-o stress=yes\"; nothing to add")]
    AlreadyOurs(ServiceId),
    #[error("{0} has headroom of ours already; nothing to add")]
    AlreadyRaised(ServiceId),
    #[error(
        "an option added to {0} would not be read as one, or would change something else; correct the arguments of the entry in master.cf"
    )]
    WouldNotTake(ServiceId),
}

/// What [`remove`] took out and what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The file without our lines, and with the administrator's maxproc.
    pub bytes: Vec<u8>,
    /// The services whose pair was taken out, in the order of the file.
    pub removed: Vec<ServiceId>,
    /// The headroom that was taken back.
    pub lowered: Vec<Lowered>,
    /// Traces of ours that somebody else has changed.
    pub foreign: Vec<Foreign>,
}

/// A trace of ours that is not an intact pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Line number of the comment in the file as it was, from 1.
    pub line: usize,
    /// The service that the comment names; `None` when the comment itself was changed, and so was left standing.
    pub service: Option<ServiceId>,
}

impl Removal {
    /// The services that had anything of ours.
    pub fn services(&self) -> Vec<ServiceId> {
        let lowered = self.lowered.iter().map(|one| &one.mark.service);
        let mut all: Vec<ServiceId> = Vec::new();
        for service in self.removed.iter().chain(lowered) {
            if !all.contains(service) {
                all.push(service.clone());
            }
        }
        all
    }
}

/// What an entry is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// `-o stress=yes`.
    pub stress: bool,
    /// Headroom: this maxproc.
    pub maxproc: Option<u32>,
}

impl Change {
    pub const STRESS: Self = Self {
        stress: true,
        maxproc: None,
    };

    /// Puts it in; [`remove`] gives the very same file back.
    ///
    /// # Errors
    /// Of the first part that cannot be.
    pub fn apply(self, bytes: &[u8], id: &ServiceId, at: Timestamp) -> Result<Vec<u8>, EditError> {
        let mut after = bytes.to_vec();
        if self.stress {
            after = insert(&after, id, at)?;
        }
        if let Some(maxproc) = self.maxproc {
            after = headroom::raise(&after, id, maxproc, at)?;
        }
        // Each part gives back what it found; both together must too.
        if remove_of(&after, id).bytes == remove_of(bytes, id).bytes {
            Ok(after)
        } else {
            Err(EditError::WouldNotTake(id.clone()))
        }
    }
}

/// Puts our pair of lines after the last content line of the entry that counts for `id`. Anything else of the file
/// stays as it is, byte for byte, and [`remove`] gives the very same file back.
pub fn insert(bytes: &[u8], id: &ServiceId, added_at: Timestamp) -> Result<Vec<u8>, EditError> {
    let file = MasterCf::parse(bytes);
    let entry = file.find(id).ok_or_else(|| EditError::NoSuchEntry(id.clone()))?;
    if let Some(value) = admin_stress(bytes, id).pop() {
        return Err(EditError::AdminStress(
            id.clone(),
            String::from_utf8_lossy(&value).into_owned(),
        ));
    }
    if !entry.overrides("stress").is_empty() {
        return Err(EditError::AlreadyOurs(id.clone()));
    }
    let time = added_at.strftime("%Y-%m-%dT%H:%M:%SZ");
    let comment = format!("{BEFORE_SERVICE}{}{BEFORE_TIME}{time}{AFTER_TIME}", entry.id);
    // A slash in the type, say, would have the comment name another service, and the lines could not be found again.
    if service_of_comment(&comment).as_ref() != Some(&entry.id) {
        return Err(EditError::WouldNotTake(id.clone()));
    }
    let after = append(bytes, entry, &[&comment, ARGUMENT]);
    if takes_effect(&file, entry, &after) {
        Ok(after)
    } else {
        Err(EditError::WouldNotTake(id.clone()))
    }
}

/// Puts lines after the last content line of an entry, with its ending.
pub(super) fn append(bytes: &[u8], entry: &Entry, lines: &[&str]) -> Vec<u8> {
    let eol = line_ending(bytes, entry);
    let span = entry.last_line;
    let mut after = bytes[..span.end].to_vec();
    // Where the entry ends the file without a line feed, the file afterwards has none at its end either: that is how
    // remove() can tell, and give back the same bytes.
    let text = if span.content_end == span.end {
        format!("{eol}{}", lines.join(eol))
    } else {
        format!("{}{eol}", lines.join(eol))
    };
    after.extend_from_slice(text.as_bytes());
    after.extend_from_slice(&bytes[span.end..]);
    after
}

/// Takes every pair of ours and all headroom out, also a pair that `postconf -P` or `-F` has torn apart: our comment is then above the
/// entry that it names, and our argument line, the only one of its kind, in it.
pub fn remove(bytes: &[u8]) -> Removal {
    remove_where(bytes, |_| true)
}

/// Takes what is ours of one service out; that of others stays, and so do changed traces.
pub fn remove_of(bytes: &[u8], id: &ServiceId) -> Removal {
    remove_where(bytes, |service| same_service(service, id))
}

/// The services that have an intact pair of ours, in the order of the file.
pub fn ours(bytes: &[u8]) -> Vec<ServiceId> {
    remove(bytes).removed
}

/// Whether there is nothing of ours in it.
pub fn is_plain(bytes: &[u8]) -> bool {
    remove(bytes).bytes == bytes
}

/// The values of `-o stress=` that are not ours in the entry that counts for `id`.
pub fn admin_stress(bytes: &[u8], id: &ServiceId) -> Vec<Vec<u8>> {
    let without_ours = remove(bytes).bytes;
    let file = MasterCf::parse(&without_ours);
    file.find(id)
        .map(|e| e.overrides("stress").into_iter().map(<[u8]>::to_vec).collect())
        .unwrap_or_default()
}

/// Whether `after` is `before` with pairs or marks of ours put in, and, for each mark, one word of one line before it
/// changed into a number: and nothing else. Looks at the lines alone and shares nothing with [`insert`] and
/// [`headroom::raise`] but the words, so that it can guard against a mistake there.
pub fn only_ours_differs(before: &[u8], after: &[u8]) -> bool {
    let before: Vec<&[u8]> = before.split(|&b| b == b'\n').collect();
    let after: Vec<&[u8]> = after.split(|&b| b == b'\n').collect();
    let (mut b, mut a, mut pairs, mut numbers, mut marks) = (0, 0, 0, 0, 0);
    // A file in CRLF whose last line had no line feed: the last CR belongs to the ending that it now has.
    let plain = |line: usize, at: usize| {
        let last = line + 1 == before.len() && at + 1 < after.len();
        match after[at].strip_suffix(b"\r") {
            Some(bare) if last && carriage_returns(bare) == carriage_returns(before[line]) => bare,
            _ => after[at],
        }
    };
    let same = |b: usize, a: usize| b < before.len() && before[b] == plain(b, a);
    while a < after.len() {
        let pair = a + 1 < after.len() && is_pair(after[a], after[a + 1]);
        // A comment alone, however like ours, may have been there before: both lines of a pair must have been.
        if pair && !(same(b, a) && same(b + 1, a + 1)) {
            (a, pairs) = (a + 2, pairs + 1);
        } else if same(b, a) {
            (b, a) = (b + 1, a + 1);
        } else if headroom::is_mark(after[a]) && marks < numbers {
            (a, marks) = (a + 1, marks + 1);
        } else if b < before.len() && headroom::only_a_number_differs(before[b], plain(b, a)) {
            (b, a, numbers) = (b + 1, a + 1, numbers + 1);
        } else {
            return false;
        }
    }
    b == before.len() && pairs + marks > 0 && numbers == marks
}

/// How many end the line.
fn carriage_returns(line: &[u8]) -> usize {
    line.iter().rev().take_while(|&&byte| byte == b'\r').count()
}

fn is_pair(comment: &[u8], argument: &[u8]) -> bool {
    let plain = |line: &[u8]| String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
    let comment = plain(comment);
    plain(argument) == ARGUMENT
        && comment.starts_with(BEFORE_SERVICE)
        && comment.contains(BEFORE_TIME)
        && comment.ends_with(AFTER_TIME)
}

/// The ending of the entry's last line. Where it has none, that of the line before it, so that the file keeps one
/// style; a file of one line without an ending gets LF.
fn line_ending(bytes: &[u8], entry: &Entry) -> &'static str {
    let span = entry.last_line;
    let ended = if span.content_end == span.end {
        &bytes[..span.start]
    } else {
        &bytes[..span.end]
    };
    if ended.ends_with(b"\r\n") { "\r\n" } else { "\n" }
}

/// Whether the edited file says the same as before, but for one more `-o stress=yes` that the daemon will read: an
/// unclosed brace, a dangling `-o`, a word that ends the options or a NUL would swallow it.
fn takes_effect(before: &MasterCf<'_>, entry: &Entry, after: &[u8]) -> bool {
    let after = MasterCf::parse(after);
    let fields = |e: &Entry| Entry {
        line: 0,
        last_line: entry.last_line,
        ..e.clone()
    };
    let pairs = before.entries().iter().zip(after.entries());
    before.entries().len() == after.entries().len()
        && pairs.into_iter().all(|(old, new)| {
            let mut wanted = fields(old);
            if std::ptr::eq(old, entry) {
                wanted.args.extend([b"-o".to_vec(), b"stress=yes".to_vec()]);
                return fields(new) == wanted && new.overrides("stress") == [b"yes"];
            }
            fields(new) == wanted
        })
}

/// What a line of ours turned out to be.
enum Trace {
    /// Comment and argument line, untouched.
    Pair(ServiceId),
    /// postconf(1) has rewritten the entry for somebody: it moves the comments in an entry above it and puts each
    /// argument on a line of its own (Postfix src/postconf/postconf_edit.c). The range is that of our argument line.
    Rewritten(ServiceId, Range<usize>),
    /// Our comment, but what follows is not our argument line any more.
    Orphan(ServiceId),
    /// Begins like a comment of ours and goes on otherwise.
    Changed,
}

/// A file taken apart in both ways, once for all the traces in it.
struct Text {
    lines: Vec<Line>,
    entries: Vec<Logical>,
}

fn remove_where(bytes: &[u8], wanted: impl Fn(&ServiceId) -> bool) -> Removal {
    let text = Text {
        lines: lines::physical(bytes).collect(),
        entries: lines::logical(bytes),
    };
    let mut removal = Removal {
        bytes: Vec::with_capacity(bytes.len()),
        removed: vec![],
        lowered: vec![],
        foreign: vec![],
    };
    let mut cuts: Vec<Range<usize>> = Vec::new();
    for (at, line) in text.lines.iter().enumerate() {
        let Some(trace) = trace(bytes, &text, at) else {
            continue;
        };
        match trace {
            Trace::Pair(service) if wanted(&service) => {
                cuts.push(whole_lines(bytes, line, &text.lines[at + 1]));
                removal.removed.push(service);
            }
            Trace::Rewritten(service, argument) if wanted(&service) => {
                cuts.extend([line.content.start..line.end, argument]);
                removal.removed.push(service);
            }
            Trace::Orphan(service) if wanted(&service) => {
                cuts.push(line.content.start..line.end);
                removal.foreign.push(Foreign {
                    line: line.number,
                    service: Some(service),
                });
            }
            Trace::Changed => removal.foreign.push(Foreign {
                line: line.number,
                service: None,
            }),
            Trace::Pair(_) | Trace::Rewritten(..) | Trace::Orphan(_) => {}
        }
    }
    cuts.sort_by_key(|cut| cut.start);
    let mut kept_to = 0;
    for cut in cuts {
        // Two pairs at the end of a file can both claim the line feed between them.
        removal
            .bytes
            .extend_from_slice(&bytes[kept_to..cut.start.max(kept_to)]);
        kept_to = cut.end;
    }
    removal.bytes.extend_from_slice(&bytes[kept_to..]);
    (removal.bytes, removal.lowered) = headroom::lower(&removal.bytes, wanted);
    removal
}

fn trace(bytes: &[u8], text: &Text, at: usize) -> Option<Trace> {
    let comment = content(bytes, &text.lines[at]);
    if !comment.starts_with(SIGNATURE.as_bytes()) || headroom::is_mark(comment) {
        return None;
    }
    let Some(service) = std::str::from_utf8(comment).ok().and_then(service_of_comment) else {
        return Some(Trace::Changed);
    };
    match text.lines.get(at + 1) {
        Some(next) if content(bytes, next) == ARGUMENT.as_bytes() => Some(Trace::Pair(service)),
        _ => Some(match rewritten(bytes, text, at, &service) {
            Some(argument) => Trace::Rewritten(service, argument),
            None => Trace::Orphan(service),
        }),
    }
}

/// Our argument line in the entry of `service`, where that is the first content after our comment. More than one
/// such line, or one with a comment of its own, proves nothing.
fn rewritten(bytes: &[u8], text: &Text, comment: usize, service: &ServiceId) -> Option<Range<usize>> {
    let after = text.lines[comment].end;
    let next = text
        .entries
        .partition_point(|entry| entry.first().content.start < after);
    let inside = next.checked_sub(1).map(|previous| text.entries[previous].last());
    if inside.is_some_and(|last| last.content.start >= after) {
        // The first content after it continues an entry that began above it.
        return None;
    }
    let entry = text.entries.get(next)?;
    let mut words = entry
        .text
        .split(|&byte| lines::is_blank(byte))
        .filter(|word| !word.is_empty());
    let mut word = || Some(String::from_utf8_lossy(words.next()?).into_owned());
    let id = ServiceId {
        name: word()?,
        kind: word()?,
    };
    if entry.ignored || !same_service(&id, service) {
        return None;
    }
    let ours = |line: &&Line| content(bytes, line) == ARGUMENT.as_bytes();
    let mut arguments = entry.lines.iter().filter(ours);
    let (argument, None) = (arguments.next()?, arguments.next()) else {
        return None;
    };
    // Lines are numbered from 1.
    let above = &text.lines[argument.number - 2];
    let own_comment = above.number > comment + 1 && content(bytes, above).starts_with(SIGNATURE.as_bytes());
    (!own_comment).then_some(argument.content.start..argument.end)
}

/// A line without its ending, be it LF or CRLF.
fn content<'b>(bytes: &'b [u8], line: &Line) -> &'b [u8] {
    let content = &bytes[line.content.clone()];
    content.strip_suffix(b"\r").unwrap_or(content)
}

/// The service that a comment of ours names; `None` unless the comment is as we write it.
fn service_of_comment(comment: &str) -> Option<ServiceId> {
    let middle = comment.strip_prefix(BEFORE_SERVICE)?.strip_suffix(AFTER_TIME)?;
    let (service, time) = middle.rsplit_once(BEFORE_TIME)?;
    time.parse::<Timestamp>().ok()?;
    service_of(service)
}

/// `smtp/inet`, as a comment of ours names it.
pub(super) fn service_of(text: &str) -> Option<ServiceId> {
    let (name, kind) = text.rsplit_once('/')?;
    let token = |t: &str| !t.is_empty() && !t.contains([' ', '\t', '\r']);
    (token(name) && token(kind)).then(|| ServiceId {
        name: name.into(),
        kind: kind.into(),
    })
}

/// The bytes from one line of ours to another. What ends the file without a line feed was put after a line that did so too: then the
/// ending that precedes it is ours as well, and is of the kind that our first line has, or, where there is only one, the
/// line before it.
pub(super) fn whole_lines(bytes: &[u8], first: &Line, last: &Line) -> Range<usize> {
    let mut start = first.content.start;
    if last.content.end == last.end {
        let model = if first.number == last.number {
            start
        } else {
            first.end
        };
        let ours = if bytes[..model].ends_with(b"\r\n") { 2 } else { 1 };
        let there = match &bytes[..start] {
            before if before.ends_with(b"\r\n") => 2,
            before if before.ends_with(b"\n") => 1,
            _ => 0,
        };
        start -= ours.min(there);
    }
    start..last.end
}

#[cfg(test)]
#[path = "edit_tests.rs"]
pub(super) mod tests;
