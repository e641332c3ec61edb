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
        "postconf(1) sees another change in {} than `-o stress=yes` on {service}; this is a fault of ours, please report it",
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

    fn key(before: &[u8], main_cf: &[u8], added: &[ServiceId]) -> Digest {
        let added: Vec<String> = added.iter().map(ToString::to_string).collect();
        let parts = [
            Digest::of(before).to_string(),
            Digest::of(main_cf).to_string(),
            added.join(" "),
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
        let known = edit::ours(before);
        let added: Vec<_> = edit::ours(after)
            .into_iter()
            .filter(|id| !known.contains(id))
            .collect();
        let main_cf = reader.main_cf().map_err(|source| CheckError::Io {
            path: path.clone(),
            source,
        })?;
        let key = Passed::key(before, &main_cf, &added);
        if !passed.knows(&key) {
            differs_by_stress(&reader.entries(before)?, &reader.entries(after)?, &added)
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

/// Whether `removal` takes nothing out of `before` but lines of ours: two for each pair, and one for each comment of
/// ours whose argument line somebody else has changed. Whether the rest is valid is no question here: it is not ours,
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
    let mut left = new.iter().peekable();
    for line in &old {
        left.next_if(|&wanted| wanted == line);
    }
    if left.peek().is_none() && old.len() == new.len() + 2 * removal.removed.len() + orphans {
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

/// Whether two outputs of `postconf -M` differ by our argument on each of `services` and by nothing else; else the
/// first service of which that is not true.
fn differs_by_stress(without: &[u8], with: &[u8], services: &[ServiceId]) -> Result<(), ServiceId> {
    let lines = |text| <[u8]>::split(text, |&byte| byte == b'\n');
    let mut expected: Vec<&ServiceId> = services.iter().collect();
    let suspect = || {
        services.first().cloned().unwrap_or(ServiceId {
            name: "?".into(),
            kind: "?".into(),
        })
    };
    if lines(without).count() != lines(with).count() {
        return Err(suspect());
    }
    for (old, new) in lines(without).zip(lines(with)).filter(|(old, new)| old != new) {
        let mut fields = old
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty());
        let (name, kind) = (
            fields.next().unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        let position = expected
            .iter()
            .position(|id| id.name.as_bytes() == name && id.kind.as_bytes() == kind);
        let Some(position) = position.filter(|_| is_insertion(old, new)) else {
            return Err(suspect());
        };
        expected.remove(position);
    }
    expected.first().map_or(Ok(()), |&missing| Err(missing.clone()))
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
        let sees = |old: &str, new: &str| differs_by_stress(&with(old), &with(new), &[smtp()]).is_ok();
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
        assert!(differs_by_stress(&with(""), &with(" -o stress=yes"), &[pickup]).is_err());
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
