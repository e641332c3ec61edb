//! The files and directories that we would write.

use std::io;
use std::path::Path;

use rustix::fs::Access;

use super::{Finding, Verdict};

/// A directory of our own: there and writable, or such that it can be made.
pub(super) fn own_dir(key: &str, dir: &Path) -> Finding {
    let subject = format!("{key} {}", dir.display());
    // The nearest that is there is where the daemon would begin to make the rest.
    let Some(there) = dir.ancestors().find(|path| path.symlink_metadata().is_ok()) else {
        return Finding::new(
            Verdict::No,
            subject,
            "nothing of this path exists",
            format!("set [paths] {key}"),
        );
    };
    let advice = format!("make it a directory that this user can write, or set [paths] {key} to one");
    if !there.is_dir() {
        return Finding::new(
            Verdict::No,
            subject,
            format!("{} is not a directory", there.display()),
            advice,
        );
    }
    match writable(there) {
        Ok(()) if there == dir => Finding::yes(subject, "writable"),
        Ok(()) => Finding::yes(subject, format!("will be made in {}", there.display())),
        Err(error) => Finding::new(
            Verdict::No,
            subject,
            format!("cannot write {}: {error}", there.display()),
            advice,
        ),
    }
}

/// A master.cf that can be replaced by rename: a plain file in a directory that can be written.
pub(super) fn master_cf(dir: &Path) -> Finding {
    let path = dir.join("master.cf");
    let subject = path.display().to_string();
    let no = |detail: String, advice: &str| Finding::new(Verdict::No, subject.clone(), detail, advice);
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) => {
            return no(
                error.to_string(),
                "name the directory of a Postfix in [discovery] config_dirs",
            );
        }
    };
    if !meta.is_file() {
        let advice = "stress mode cannot be switched here; make it a plain file, or watch only, with [act] mode = \
                      \"observe\"";
        return no(
            "is a symbolic link or no plain file, and is not touched".to_owned(),
            advice,
        );
    }
    match is_mount_point(&path) {
        Ok(false) => {}
        Ok(true) => {
            let advice = "mount the whole directory instead of the one file, or watch only, with [act] mode = \
                          \"observe\"";
            return no(
                "is a mount of its own, which a rename would cut off".to_owned(),
                advice,
            );
        }
        Err(error) => {
            return no(
                format!("cannot tell whether it is a mount: {error}"),
                "mount /proc",
            );
        }
    }
    match writable(dir) {
        Ok(()) => Finding::yes(subject, "can be edited"),
        Err(error) => no(
            format!("cannot write its directory: {error}"),
            "run as root on a directory that is not mounted read-only, or watch only, with [act] mode = \"observe\"",
        ),
    }
}

fn writable(dir: &Path) -> io::Result<()> {
    // Asked of the kernel, which knows of read-only mounts and capabilities; trying it would leave traces.
    Ok(rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// From another mount namespace, a rename over a bind-mounted file succeeds and silently takes the mount away.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let real = path.canonicalize()?;
    let mounts = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(io::Error::other)?;
    Ok(mounts.into_iter().any(|mount| mount.mount_point == real))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_there_or_can_be_made_or_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(own_dir("state_dir", dir.path()).ok, Verdict::Yes);
        let deeper = own_dir("state_dir", &dir.path().join("a/b"));
        assert_eq!(deeper.ok, Verdict::Yes);
        assert!(
            deeper.detail.contains(&dir.path().display().to_string()),
            "{deeper:?}"
        );
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(own_dir("state_dir", &file).ok, Verdict::No);
        assert_eq!(own_dir("state_dir", &file.join("x")).ok, Verdict::No);
    }

    #[test]
    fn only_a_plain_file_can_be_edited() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(master_cf(dir.path()).ok, Verdict::No);
        let path = dir.path().join("master.cf");
        std::fs::write(&path, "").unwrap();
        assert_eq!(master_cf(dir.path()).ok, Verdict::Yes);
        std::fs::rename(&path, dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", &path).unwrap();
        let link = master_cf(dir.path());
        assert_eq!(link.ok, Verdict::No);
        assert!(link.detail.contains("symbolic link"), "{link:?}");
    }

    #[test]
    fn a_mount_is_told_from_a_file() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self/status")).unwrap());
    }
}
