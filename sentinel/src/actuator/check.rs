//! Judges a candidate before it may take master.cf's place: a bad file kills the running master at its next reload
//! (Postfix src/master/master_ent.c ends in msg_fatal), and with it the whole mail system.
//!
//! Three judges, each of which sees what the others do not: only our lines may differ; our own parser is as strict
//! as master; and postconf(1), where it is installed, is Postfix's own eye (though laxer than master).

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::entry::Digest;
use crate::postfix::endpoint::Names;
use crate::postfix::headroom::{self, Mark};
use crate::postfix::postconf::{Postconf, PostconfError};
use crate::postfix::{ServiceId, edit, master_cf};

/// What the edit is, as postconf(1) prints it.
const ARGUMENT: &[u8] = b" -o stress=yes";

/// Why a candidate was not let through.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("our edit of {} would change more than our own lines; this is a fault of ours, please report it", .0.display())]
    MoreThanOurs(PathBuf),
    #[error(
        "{} has an error that would stop Postfix at its next reload: {problem}; correct it (we do not reload meanwhile)",
        .path.display()
    )]
    Broken { path: PathBuf, problem: String },
    #[error("postconf(1) does not accept {}: {source} (we do not reload meanwhile)", .path.display())]
    Unreadable { path: PathBuf, source: PostconfError },
    #[error(
        "postconf(1) sees another change in {} than ours on {service}; this is a fault of ours, please report it",
        .path.display()
    )]
    OtherChange { path: PathBuf, service: ServiceId },
    #[error(
        "{} has the listener {service}, which the running master has not opened yet; a reload would have it try, and a port that is taken would stop Postfix: reload it yourself (we do not meanwhile)",
        .path.display()
    )]
    Unbound { path: PathBuf, service: ServiceId },
    #[error("cannot have postconf(1) check {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Edits that postconf(1) has let pass: of which bytes, beside which main.cf, on which services. What it says depends on
/// nothing else, so a trip does not have to wait for it again: from the threshold to the signal every 10 ms count.
#[derive(Debug, Default)]
pub(super) struct Passed(VecDeque<Digest>);

impl Passed {
    /// Bounded: an instance has one or two of them, and whoever is forgotten is asked about again.
    const KEPT: usize = 64;

    fn key(before: &[u8], main_cf: &[u8], added: &Added) -> Digest {
        let parts = [
            Digest::of(before).to_string(),
            Digest::of(main_cf).to_string(),
            format!("{added:?}"),
        ];
        Digest::of(parts.join("\n").as_bytes())
    }

    fn knows(&self, key: &Digest) -> bool {
        self.0.contains(key)
    }

    fn remember(&mut self, key: Digest) {
        self.0.push_back(key);
        if self.0.len() > Self::KEPT {
            self.0.pop_front();
        }
    }
}

/// What an edit adds.
#[derive(Debug)]
struct Added {
    /// Services that get `-o stress=yes`.
    stress: Vec<ServiceId>,
    /// Those that get headroom.
    headroom: Vec<Mark>,
}

impl Added {
    fn between(before: &[u8], after: &[u8]) -> Self {
        let (stress, headroom) = (edit::ours(before), headroom::raised(before));
        let mut added = Self {
            stress: edit::ours(after),
            headroom: headroom::raised(after),
        };
        added.stress.retain(|service| !stress.contains(service));
        added.headroom.retain(|mark| !headroom.contains(mark));
        added
    }

    fn suspect(&self) -> ServiceId {
        let raised = self.headroom.first().map(|mark| &mark.service);
        self.stress.first().or(raised).cloned().unwrap_or(ServiceId {
            name: "?".into(),
            kind: "?".into(),
        })
    }
}

/// The judges at hand: postconf(1) is one where there is one.
pub(super) struct Checker(pub(super) Option<Postconf>);

impl Checker {
    /// Whether `after`, which is `before` with our lines put in, may take its place in `config_dir`.
    pub(super) fn edited(
        &self,
        config_dir: &Path,
        before: &[u8],
        after: &[u8],
        passed: &mut Passed,
    ) -> Result<(), CheckError> {
        let path = config_dir.join("master.cf");
        if !edit::only_ours_differs(before, after) {
            return Err(CheckError::MoreThanOurs(path));
        }
        valid(&path, after)?;
        let Some(postconf) = &self.0 else {
            return Ok(());
        };
        let reader = Reader { postconf, config_dir };
        let added = Added::between(before, after);
        let main_cf = reader.main_cf().map_err(|source| CheckError::Io {
            path: path.clone(),
            source,
        })?;
        let key = Passed::key(before, &main_cf, &added);
        if !passed.knows(&key) {
            differs_by(&reader.entries(before)?, &reader.entries(after)?, &added)
                .map_err(|service| CheckError::OtherChange { path, service })?;
            passed.remember(key);
        }
        Ok(())
    }

    /// Whether a running master would survive reading these bytes.
    pub(super) fn reloadable(&self, config_dir: &Path, bytes: &[u8]) -> Result<(), CheckError> {
        valid(&config_dir.join("master.cf"), bytes)?;
        let Some(postconf) = &self.0 else { return Ok(()) };
        match (Reader { postconf, config_dir }).entries(bytes) {
            Err(
                error @ CheckError::Unreadable {
                    source: PostconfError::Failed { .. },
                    ..
                },
            ) => Err(error),
            // It could not be asked. Our own parser, the stricter of the two, has let the file pass, and giving back
            // must not wait for a second opinion.
            Err(error) => {
                tracing::warn!(%error, "reloading without postconf(1)'s opinion");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

/// Whether `removal` takes nothing out of `before` but lines of ours: two for each pair, one for each mark of headroom, and
/// one for each comment of ours whose argument line somebody else has changed; and changes nothing but one number for each
/// headroom that it takes back. Whether the rest is valid is no question here: it is not ours,
/// and without our lines it is no worse.
pub(super) fn undone(config_dir: &Path, before: &[u8], removal: &edit::Removal) -> Result<(), CheckError> {
    let lines = |bytes| {
        <[u8]>::split(bytes, |&byte| byte == b'\n')
            .map(trim_cr)
            .collect::<Vec<_>>()
    };
    let (old, new) = (lines(before), lines(&removal.bytes));
    let orphans = removal
        .foreign
        .iter()
        .filter(|trace| trace.service.is_some())
        .count();
    let put_back = removal.lowered.iter().filter(|one| one.put_back).count();
    let mut numbers = 0;
    let mut left = new.iter().peekable();
    for line in &old {
        if left.next_if(|&wanted| wanted == line).is_none()
            && numbers < put_back
            && left
                .next_if(|&wanted| headroom::only_a_number_differs(wanted, line))
                .is_some()
        {
            numbers += 1;
        }
    }
    let taken_out = 2 * removal.removed.len() + removal.lowered.len() + orphans;
    if left.peek().is_none() && numbers == put_back && old.len() == new.len() + taken_out {
        Ok(())
    } else {
        Err(CheckError::MoreThanOurs(config_dir.join("master.cf")))
    }
}

fn trim_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn valid(path: &Path, bytes: &[u8]) -> Result<(), CheckError> {
    // Read anew each time: an admin who adds a port to /etc/services uses it in master.cf the next minute.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let names = Names::from_files(&read("/etc/services"), &read("/etc/hosts"));
    master_cf::validate_with(bytes, &names).map_err(|problems| CheckError::Broken {
        path: path.to_owned(),
        problem: problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; "),
    })
}

/// postconf(1), reading candidates beside a copy of the real main.cf: master reads that again too, and dies of an
/// error in it as well.
struct Reader<'a> {
    postconf: &'a Postconf,
    config_dir: &'a Path,
}

impl Reader<'_> {
    /// What `postconf -M` prints: an entry a line.
    fn entries(&self, master_cf: &[u8]) -> Result<Vec<u8>, CheckError> {
        let path = self.config_dir.join("master.cf");
        let candidate = self.candidate(master_cf).map_err(|source| CheckError::Io {
            path: path.clone(),
            source,
        })?;
        self.postconf
            .entries(candidate.path())
            .map_err(|source| CheckError::Unreadable { path, source })
    }

    fn candidate(&self, master_cf: &[u8]) -> io::Result<tempfile::TempDir> {
        let candidate = tempfile::Builder::new().prefix("smtp-sentinel-").tempdir()?;
        let mut main_cf = std::fs::File::create(candidate.path().join("main.cf"))?;
        main_cf.write_all(&self.main_cf()?)?;
        // postconf waits until main.cf is 2 s old (Postfix src/util/dict.c dict_load_file_xt()).
        main_cf.set_modified(std::time::SystemTime::UNIX_EPOCH)?;
        std::fs::write(candidate.path().join("master.cf"), master_cf)?;
        Ok(candidate)
    }

    fn main_cf(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(self.config_dir.join("main.cf"))?
            .take(1 << 20)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Whether two outputs of `postconf -M` differ by what was added to each service and by nothing else; else the first
/// service of which that is not true.
fn differs_by(without: &[u8], with: &[u8], added: &Added) -> Result<(), ServiceId> {
    let lines = |text| <[u8]>::split(text, |&byte| byte == b'\n');
    let mut stress: Vec<&ServiceId> = added.stress.iter().collect();
    let mut headroom: Vec<&Mark> = added.headroom.iter().collect();
    if lines(without).count() != lines(with).count() {
        return Err(added.suspect());
    }
    for (old, new) in lines(without).zip(lines(with)).filter(|(old, new)| old != new) {
        let (Some(old), Some(new)) = (Shown::of(old), Shown::of(new)) else {
            return Err(added.suspect());
        };
        let stressed = take(&mut stress, |id| old.is(id));
        let raised = take(&mut headroom, |mark| old.is(&mark.service));
        let wanted = raised.map_or(old.maxproc.to_vec(), |mark| mark.raised.to_string().into_bytes());
        let arguments = match stressed {
            Some(_) => is_insertion(old.rest, new.rest),
            None => old.rest == new.rest,
        };
        if old.fields != new.fields || new.maxproc != wanted || !arguments {
            return Err(added.suspect());
        }
    }
    let missing = stress
        .first()
        .copied()
        .or(headroom.first().map(|mark| &mark.service));
    missing.map_or(Ok(()), |missing| Err(missing.clone()))
}

fn take<'a, T>(from: &mut Vec<&'a T>, wanted: impl Fn(&T) -> bool) -> Option<&'a T> {
    let position = from.iter().position(|one| wanted(one))?;
    Some(from.remove(position))
}

/// An entry as postconf(1) prints it.
struct Shown<'a> {
    /// Those before maxproc.
    fields: Vec<&'a [u8]>,
    maxproc: &'a [u8],
    /// Command and arguments.
    rest: &'a [u8],
}

impl<'a> Shown<'a> {
    fn of(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let mut field = || {
            let text = rest.trim_ascii_start();
            let (field, tail) = text.split_at(text.iter().position(u8::is_ascii_whitespace)?);
            rest = tail;
            Some(field)
        };
        let fields = (0..6).map(|_| field()).collect::<Option<_>>()?;
        let maxproc = field()?;
        Some(Self {
            fields,
            maxproc,
            rest: rest.trim_ascii_start(),
        })
    }

    fn is(&self, id: &ServiceId) -> bool {
        self.fields[0] == id.name.as_bytes() && self.fields[1] == id.kind.as_bytes()
    }
}

/// Whether `new` is `old` with our argument put in at one place.
fn is_insertion(old: &[u8], new: &[u8]) -> bool {
    new.len() == old.len() + ARGUMENT.len()
        && (0..=old.len()).any(|at| {
            new[..at] == old[..at]
                && new[at..].starts_with(ARGUMENT)
                && new[at + ARGUMENT.len()..] == old[at..]
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postfix::edit::Change;

    fn smtp() -> ServiceId {
        ServiceId {
            name: "smtp".into(),
            kind: "inet".into(),
        }
    }

    const PLAIN: &[u8] = b"smtp       inet  n       -       y       -       -       smtpd\n\
                           pickup     unix  n       -       y       60      1       pickup\n";

    fn checker() -> Checker {
        Checker(Some(
            Postconf::find(Path::new("/nowhere")).expect("Postfix is installed (cargo xtask setup)"),
        ))
    }

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("main.cf"), "compatibility_level = 3.6\n").unwrap();
        dir
    }

    #[test]
    fn our_own_edit_passes_both_ways() {
        let dir = directory();
        let after = edit::insert(PLAIN, &smtp(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        checker()
            .edited(dir.path(), PLAIN, &after, &mut Passed::default())
            .unwrap();
        undone(dir.path(), &after, &edit::remove(&after)).unwrap();
        let with_headroom = Change {
            stress: true,
            maxproc: Some(400),
        };
        let after = with_headroom
            .apply(PLAIN, &smtp(), jiff::Timestamp::UNIX_EPOCH)
            .unwrap();
        checker()
            .edited(dir.path(), PLAIN, &after, &mut Passed::default())
            .unwrap();
        let mut removal = edit::remove(&after);
        undone(dir.path(), &after, &removal).unwrap();
        removal.lowered[0].put_back = false;
        undone(dir.path(), &after, &removal).unwrap_err();
    }

    #[test]
    fn what_has_passed_is_asked_again_when_main_cf_has_changed() {
        let dir = directory();
        let mut passed = Passed::default();
        let after = edit::insert(PLAIN, &smtp(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        checker().edited(dir.path(), PLAIN, &after, &mut passed).unwrap();
        let later = edit::insert(PLAIN, &smtp(), jiff::Timestamp::MAX).unwrap();
        checker().edited(dir.path(), PLAIN, &later, &mut passed).unwrap();
        assert_eq!(passed.0.len(), 1);
        std::fs::write(dir.path().join("main.cf"), "no equals sign\n").unwrap();
        checker()
            .edited(dir.path(), PLAIN, &after, &mut passed)
            .unwrap_err();
    }

    #[test]
    fn anything_else_is_refused() {
        let dir = directory();
        let after = edit::insert(PLAIN, &smtp(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        let other = [after.as_slice(), b"# a word\n"].concat();
        assert!(matches!(
            checker().edited(dir.path(), PLAIN, &other, &mut Passed::default()),
            Err(CheckError::MoreThanOurs(_))
        ));
        let removal = edit::Removal {
            bytes: b"".into(),
            ..edit::remove(&after)
        };
        assert!(matches!(
            undone(dir.path(), &after, &removal),
            Err(CheckError::MoreThanOurs(_))
        ));
        let removal = edit::Removal {
            bytes: after.to_ascii_uppercase(),
            ..edit::remove(&after)
        };
        assert!(matches!(
            undone(dir.path(), &after, &removal),
            Err(CheckError::MoreThanOurs(_))
        ));
    }

    #[test]
    fn what_postconf_must_see() {
        let with = |line: &str| {
            format!("pickup unix n - y 60 1 pickup\nsmtp inet n - y - - smtpd{line}\n").into_bytes()
        };
        let stress = |service| Added {
            stress: vec![service],
            headroom: vec![],
        };
        let sees = |old: &str, new: &str| differs_by(&with(old), &with(new), &stress(smtp())).is_ok();
        assert!(sees("", " -o stress=yes"));
        assert!(sees(" -v", " -o stress=yes -v"));
        assert!(!sees("", ""));
        assert!(!sees("", " -o stress=yes -v"));
        assert!(!sees("", " -o stress=no"));
        assert!(!sees("", " -o stress=yes\nx inet n - y - - smtpd"));
        let pickup = ServiceId {
            name: "pickup".into(),
            kind: "unix".into(),
        };
        assert!(differs_by(&with(""), &with(" -o stress=yes"), &stress(pickup)).is_err());
        let room = |maxproc: &str| {
            format!("smtp       inet  n       -       y       -       {maxproc} smtpd -v\n").into_bytes()
        };
        let headroom = Added {
            stress: vec![],
            headroom: vec![Mark {
                service: smtp(),
                raised: 80,
                own: "20".into(),
            }],
        };
        assert!(differs_by(&room("20      "), &room("80      "), &headroom).is_ok());
        assert!(differs_by(&room("20      "), &room("81      "), &headroom).is_err());
        assert!(differs_by(&room("20      "), &room("20      "), &headroom).is_err());
        assert!(differs_by(&room("20      "), &room("80      "), &stress(smtp())).is_err());
    }

    #[test]
    fn a_file_that_stops_master_is_not_reloaded() {
        let dir = directory();
        checker().reloadable(dir.path(), PLAIN).unwrap();
        for broken in [
            &b"smtp inet y - y - - smtpd\n"[..],
            b"smtp inet n - y - -\n",
            b"smtp tcp n - y - - smtpd\n",
        ] {
            let error = checker().reloadable(dir.path(), broken).unwrap_err();
            assert!(error.to_string().contains("do not reload"), "{error}");
        }
    }
}
