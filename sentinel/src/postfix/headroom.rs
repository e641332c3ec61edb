//! More slots for an entry, for a time: its maxproc column, one comment line that says what was there before, and the
//! way back.
//!
//! ```text
//! smtp      inet  n       -       y       -       80       smtpd
//! # smtp-sentinel: headroom for smtp/inet since 2026-11-22T01:20:33Z: maxproc 80 instead of -; undo with: smtp-sentinel restore
//! ```
//!
//! Nothing but the one word of the column changes, blanks included, so that putting the old word back gives the very same
//! file. The comment is all that the way back needs, wherever in the file it stands by then. Where the column does not say
//! any more what the comment says that we put there, somebody else has set it, and it stays.

use std::ops::Range;

use jiff::Timestamp;

use super::ServiceId;
use super::edit::{self, EditError, SIGNATURE};
use super::endpoint::same_service;
use super::lines::{self, Line};
use super::master_cf::{Entry, Field, MasterCf};

const BEFORE_SERVICE: &str = "# smtp-sentinel: headroom for ";
const BEFORE_TIME: &str = " since ";
const BEFORE_RAISED: &str = ": maxproc ";
const BEFORE_OWN: &str = " instead of ";
const END: &str = "; undo with: smtp-sentinel restore";

/// Where maxproc stands among the fields of an entry, counted from 0 (master(5)).
const COLUMN: usize = 6;

/// What a comment of ours says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub service: ServiceId,
    /// What we put into the column.
    pub raised: u32,
    /// What the administrator has there: a number, or `-` for default_process_limit.
    pub own: String,
}

/// A mark that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lowered {
    pub mark: Mark,
    /// The column is the administrator's again; false where he had set it anew himself, which stays.
    pub put_back: bool,
}

/// Puts `maxproc` into the column of the entry that counts for `id`, and our comment below it. Anything else stays as it
/// is, byte for byte, and [`lower`] gives the very same file back.
///
/// # Errors
/// There is no such entry, or it is not ours to change.
pub fn raise(bytes: &[u8], id: &ServiceId, maxproc: u32, at: Timestamp) -> Result<Vec<u8>, EditError> {
    let file = MasterCf::parse(bytes);
    let entry = file.find(id).ok_or_else(|| EditError::NoSuchEntry(id.clone()))?;
    if let Some(value) = edit::admin_stress(bytes, id).pop() {
        let value = String::from_utf8_lossy(&value).into_owned();
        return Err(EditError::AdminStress(id.clone(), value));
    }
    if marks(bytes).iter().any(|mark| same_service(&mark.service, id)) {
        return Err(EditError::AlreadyRaised(id.clone()));
    }
    let would_not_take = || EditError::WouldNotTake(id.clone());
    let column = column(bytes, entry).ok_or_else(would_not_take)?;
    let own = std::str::from_utf8(&bytes[column.clone()]).map_err(|_| would_not_take())?;
    let time = at.strftime("%Y-%m-%dT%H:%M:%SZ");
    let comment = format!(
        "{BEFORE_SERVICE}{}{BEFORE_TIME}{time}{BEFORE_RAISED}{maxproc}{BEFORE_OWN}{own}{END}",
        entry.id
    );
    let with_comment = edit::append(bytes, entry, &[&comment]);
    // The column is before the comment, so its place has not moved.
    let after = replace(&with_comment, column, &maxproc.to_string());
    // A file that ends in a carriage return without a line feed would not come back whole: it is left alone.
    let comes_back = lower(&after, |service| same_service(service, id)).0 == bytes;
    if comes_back && takes_effect(&file, entry, maxproc, &after) {
        Ok(after)
    } else {
        Err(would_not_take())
    }
}

/// Takes every mark of the `wanted` services out, and puts the old word back where ours still stands.
pub(super) fn lower(bytes: &[u8], wanted: impl Fn(&ServiceId) -> bool) -> (Vec<u8>, Vec<Lowered>) {
    let mut after = bytes.to_vec();
    let mut lowered = Vec::new();
    let next = |bytes: &[u8]| lines_with_marks(bytes).find(|(_, mark)| wanted(&mark.service));
    // One after the other, and each time from the start: every cut moves what is behind it.
    while let Some((line, mark)) = next(&after) {
        after.drain(edit::whole_lines(&after, &line, &line));
        let column = ours(&after, &mark);
        if let Some(column) = column.clone() {
            after = replace(&after, column, &mark.own);
        }
        lowered.push(Lowered {
            mark,
            put_back: column.is_some(),
        });
    }
    (after, lowered)
}

/// The marks of ours, each of which has its word in the column still.
pub fn raised(bytes: &[u8]) -> Vec<Mark> {
    let mut all = marks(bytes);
    all.retain(|mark| ours(bytes, mark).is_some());
    all
}

/// Whether this line, without its ending, is a comment of ours as we write it.
pub(super) fn is_mark(line: &[u8]) -> bool {
    mark(line).is_some()
}

/// Whether `raised` is `own` with one word changed into a number, as raising does it; looks at the words alone.
pub fn only_a_number_differs(own: &[u8], raised: &[u8]) -> bool {
    let words = |line| -> Vec<&[u8]> { <[u8]>::split(line, |&byte| lines::is_blank(byte)).collect() };
    let (own, raised) = (words(own), words(raised));
    let mut different = own.iter().zip(&raised).filter(|(a, b)| a != b);
    let (first, second) = (different.next(), different.next());
    let number = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    own.len() == raised.len()
        && second.is_none()
        && first.is_some_and(|(own, raised)| (number(own) || *own == b"-") && number(raised))
}

fn marks(bytes: &[u8]) -> Vec<Mark> {
    lines_with_marks(bytes).map(|(_, mark)| mark).collect()
}

fn lines_with_marks(bytes: &[u8]) -> impl Iterator<Item = (Line, Mark)> {
    lines::physical(bytes).filter_map(|line| {
        let mark = mark(&bytes[line.content.clone()])?;
        Some((line, mark))
    })
}

fn mark(line: &[u8]) -> Option<Mark> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if !line.starts_with(SIGNATURE.as_bytes()) {
        return None;
    }
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix(BEFORE_SERVICE)?.strip_suffix(END)?;
    let (service, rest) = rest.rsplit_once(BEFORE_TIME)?;
    let (time, numbers) = rest.split_once(BEFORE_RAISED)?;
    let (raised, own) = numbers.split_once(BEFORE_OWN)?;
    time.parse::<Timestamp>().ok()?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(raised) || !(digits(own) || own == "-") {
        return None;
    }
    Some(Mark {
        service: edit::service_of(service)?,
        raised: raised.parse().ok()?,
        own: own.to_owned(),
    })
}

/// The column that the mark speaks of, if it still has our word.
fn ours(bytes: &[u8], mark: &Mark) -> Option<Range<usize>> {
    let file = MasterCf::parse(bytes);
    let column = column(bytes, file.find(&mark.service)?)?;
    (bytes[column.clone()] == *mark.raised.to_string().as_bytes()).then_some(column)
}

/// The bytes of the word in the maxproc column.
fn column(bytes: &[u8], entry: &Entry) -> Option<Range<usize>> {
    let all = lines::logical(bytes);
    let logical = all.iter().find(|logical| logical.first().number == entry.line)?;
    let words = logical
        .lines
        .iter()
        .flat_map(|line| words(bytes, line.content.clone()));
    // A word that goes on behind the end of a line, as after a vertical tab, is not one that we would understand.
    let mut words = words.skip(COLUMN);
    words.next()
}

fn words(bytes: &[u8], content: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = content.start;
    bytes[content]
        .split(|&byte| lines::is_blank(byte))
        .filter_map(move |word| {
            let start = at;
            at += word.len() + 1;
            (!word.is_empty()).then_some(start..start + word.len())
        })
}

fn replace(bytes: &[u8], place: Range<usize>, word: &str) -> Vec<u8> {
    [&bytes[..place.start], word.as_bytes(), &bytes[place.end..]].concat()
}

/// Whether the edited file says the same as before, but for a larger maxproc of this entry.
fn takes_effect(before: &MasterCf<'_>, entry: &Entry, maxproc: u32, after: &[u8]) -> bool {
    let after = MasterCf::parse(after);
    let more = match entry.maxproc {
        Field::Default => true,
        Field::Is(own) => own > 0 && maxproc > own,
        Field::Bad(_) => false,
    };
    let same = |old: &Entry, new: &Entry| {
        let maxproc = if std::ptr::eq(old, entry) {
            Field::Is(maxproc)
        } else {
            old.maxproc.clone()
        };
        *new == Entry {
            line: new.line,
            last_line: new.last_line,
            maxproc,
            ..old.clone()
        }
    };
    let (old, new) = (before.entries(), after.entries());
    more && old.len() == new.len() && old.iter().zip(new).all(|(old, new)| same(old, new))
}

#[cfg(test)]
#[path = "headroom_tests.rs"]
mod tests;
