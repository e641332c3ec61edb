//! Postfix as Debian's suites have it, beside the machine's own: fetched by [`sentinel_debian`], unpacked below cargo's
//! target directory, never installed.
//!
//! What is fetched stays; remove `target/postfix` to have it anew.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use sentinel_debian::Apt;

/// Suites with the Postfix that each is known for; sid has the newest that there is.
pub const SUITES: [(&str, &str); 4] = [
    ("bullseye", "3.5."),
    ("bookworm", "3.7."),
    ("trixie", "3.10."),
    ("sid", "3."),
];

/// A directory with the Postfix of `suite` and the libraries that it needs, to be entered by chroot(8).
///
/// # Errors
/// No apt, no Debian mirror in its sources, or the mirror does not answer. Never a reason to skip a test.
pub fn postfix(suite: &str) -> Result<PathBuf> {
    let store = target()?.join("postfix");
    fs::create_dir_all(&store)?;
    let root = store.join(suite);
    let lock = File::create(store.join(format!("{suite}.lock")))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if !root.exists() {
        let draft = store.join(format!("{suite}.draft"));
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        fs::create_dir(&draft)?;
        let fetched = fetch(suite, &draft).and_then(|()| make_usable(&draft.join("root")));
        fetched.with_context(|| {
            format!("the Postfix of Debian's {suite}, which this test needs, could not be fetched")
        })?;
        fs::rename(draft.join("root"), &root)?;
        fs::remove_dir_all(&draft)?;
    }
    Ok(root)
}

/// Downloads and unpacks into `draft/root`.
fn fetch(suite: &str, draft: &Path) -> Result<()> {
    let root = draft.join("root");
    fs::create_dir(&root)?;
    let apt = Apt::of(suite, &draft.join("apt"))?;
    let plan = apt.with_dependencies("postfix")?;
    // Only what is linked to or read at run time; scripts are not run here.
    let needed: Vec<&str> = plan
        .iter()
        .map(String::as_str)
        .filter(|name| name.starts_with("lib") || ["postfix", "zlib1g", "netbase"].contains(name))
        .collect();
    for package in apt.download(&needed, &draft.join("packages"))? {
        let mut dpkg = Command::new("dpkg-deb");
        let output = dpkg.arg("--extract").arg(&package).arg(&root).output()?;
        ensure!(
            output.status.success(),
            "unpacking {}: {}",
            package.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// What the packages leave to others: the links of a merged /usr (base-files), directories, and the users.
fn make_usable(root: &Path) -> Result<()> {
    for name in ["lib", "lib64"] {
        if !root.join(name).exists() {
            symlink(Path::new("usr").join(name), root.join(name))?;
        }
    }
    for name in ["dev", "tmp", "etc"] {
        fs::create_dir_all(root.join(name))?;
    }
    // The numbers of the machine's own `postfix` and `postdrop`, which the lab's directories belong to; and `localhost`.
    for name in ["passwd", "group", "hosts"] {
        fs::copy(Path::new("/etc").join(name), root.join("etc").join(name))?;
    }
    Ok(())
}

/// Cargo's target directory, which the running test program lies in; cargo marks it for backup programs.
fn target() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut above = own.ancestors();
    let target = above.find(|directory| directory.join("CACHEDIR.TAG").exists());
    Ok(target
        .context("the test program does not lie in a target directory of cargo's")?
        .to_owned())
}
