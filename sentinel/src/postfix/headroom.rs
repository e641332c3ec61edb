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

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::Timestamp;

use super::ServiceId;
use super::edit::{self, EditError, SIGNATURE};
use super::endpoint::same_service;
use super::lines::{self, Line, Logical};
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
/// is, byte for byte, and [`edit::remove`] gives the very same file back.
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
    let column = Columns::of(bytes).find(id).ok_or_else(would_not_take)?;
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
    let found: Vec<(Line, Mark)> = lines_with_marks(bytes)
        .filter(|(_, mark)| wanted(&mark.service))
        .collect();
    let Some((last, _)) = found.last() else {
        return (bytes.to_vec(), Vec::new());
    };
    // What ends the file without a line feed was put after a line that did so too.
    let unterminated = last.content.end == last.end;
    let columns = Columns::of(bytes);
    let mut known: BTreeMap<ServiceId, Option<Range<usize>>> = BTreeMap::new();
    // Where a column begins: to where it goes, and what stands in it by now, since several marks may speak of one.
    let mut words: BTreeMap<usize, (usize, Vec<u8>)> = BTreeMap::new();
    let mut cuts = Vec::with_capacity(found.len());
    let mut lowered = Vec::with_capacity(found.len());
    for (line, mark) in found {
        cuts.push((line.content.start..line.end, Vec::new()));
        let find = || columns.find(&mark.service);
        let column = known.entry(mark.service.clone()).or_insert_with(find);
        let put_back = column.clone().is_some_and(|column| {
            let start = column.start;
            let (_, word) = words
                .entry(start)
                .or_insert_with(|| (column.end, bytes[column].to_vec()));
            let ours = *word == mark.raised.to_string().as_bytes();
            if ours {
                *word = mark.own.clone().into_bytes();
            }
            ours
        });
        lowered.push(Lowered { mark, put_back });
    }
    let words = words.into_iter().map(|(start, (end, word))| (start..end, word));
    let mut changes: Vec<_> = cuts.into_iter().chain(words).collect();
    changes.sort_by_key(|(place, _)| place.start);
    let mut after = Vec::with_capacity(bytes.len());
    let mut kept_to = 0;
    for (place, word) in changes {
        after.extend_from_slice(&bytes[kept_to..place.start]);
        after.extend_from_slice(&word);
        kept_to = place.end;
    }
    after.extend_from_slice(&bytes[kept_to..]);
    if unterminated {
        let ending = [b"\r\n".as_slice(), b"\n"];
        let ending = ending.into_iter().find(|ending| after.ends_with(ending));
        after.truncate(after.len() - ending.map_or(0, <[u8]>::len));
    }
    (after, lowered)
}

/// The marks of ours, each of which has its word in the column still.
pub fn raised(bytes: &[u8]) -> Vec<Mark> {
    let mut all = marks(bytes);
    if all.is_empty() {
        return all;
    }
    let columns = Columns::of(bytes);
    all.retain(|mark| {
        let column = columns.find(&mark.service);
        column.is_some_and(|column| bytes[column] == *mark.raised.to_string().as_bytes())
    });
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

/// A file taken apart once, for all the columns that are looked for in it.
struct Columns<'b> {
    bytes: &'b [u8],
    file: MasterCf<'b>,
    logical: Vec<Logical>,
}

impl<'b> Columns<'b> {
    fn of(bytes: &'b [u8]) -> Self {
        Self {
            bytes,
            file: MasterCf::parse(bytes),
            logical: lines::logical(bytes),
        }
    }

    /// The bytes of the word in the maxproc column of the entry that counts for `id`.
    fn find(&self, id: &ServiceId) -> Option<Range<usize>> {
        let line = self.file.find(id)?.line;
        let at = self
            .logical
            .partition_point(|logical| logical.first().number < line);
        let logical = self
            .logical
            .get(at)
            .filter(|logical| logical.first().number == line)?;
        let words = logical
            .lines
            .iter()
            .flat_map(|line| words(self.bytes, line.content.clone()));
        // A word that goes on behind the end of a line, as after a vertical tab, is not one that we would understand.
        let mut words = words.skip(COLUMN);
        words.next()
    }
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
