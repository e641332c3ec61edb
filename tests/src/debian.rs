//! Postfix as Debian's suites have it, beside the machine's own: fetched by the machine's own apt, unpacked below cargo's
//! target directory, never installed.
//!
//! apt works here with directories and a source list of its own, so nothing that it knows about the machine changes. The
//! mirror is the one that the machine's sources name; the chain from the signed index to the checksum of each package is
//! apt's. What is fetched stays; remove `target/postfix` to have it anew.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

/// Suites with the Postfix that each is known for; sid has the newest that there is.
pub const SUITES: [(&str, &str); 4] = [
    ("bullseye", "3.5."),
    ("bookworm", "3.7."),
    ("trixie", "3.10."),
    ("sid", "3."),
];

/// Debian's own public keys, in the place where each release of it keeps them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    for directory in ["lists/partial", "cache/archives/partial", "packages", "root"] {
        fs::create_dir_all(draft.join(directory))?;
    }
    let signed_by = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    fs::write(
        draft.join("sources.list"),
        format!("deb {signed_by}{} {suite} main\n", mirror()?),
    )?;
    // Nothing is installed, as far as this apt knows, so it names every package that Postfix needs.
    fs::write(draft.join("status"), "")?;
    run(apt(draft).arg("update"))?;
    let plan = run(apt(draft).args([
        "--yes",
        "--print-uris",
        "--no-install-recommends",
        "install",
        "postfix",
    ]))?;
    // 'URI' NAME_VERSION_ARCH.deb SIZE HASH. Only what is linked to or read at run time; scripts are not run here.
    let packages = plan
        .lines()
        .filter_map(|line| line.split(' ').nth(1)?.split('_').next());
    let needed: Vec<_> = packages
        .filter(|name| name.starts_with("lib") || ["postfix", "zlib1g", "netbase"].contains(name))
        .collect();
    run(apt(draft)
        .arg("download")
        .args(&needed)
        .current_dir(draft.join("packages")))?;
    for package in fs::read_dir(draft.join("packages"))? {
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package?.path())
            .arg(draft.join("root")))?;
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

/// The first Debian mirror among the machine's own sources.
fn mirror() -> Result<String> {
    let targets = run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(COMPONENT) $(RELEASE) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let mut fields = targets.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let main = fields.find_map(|fields| match fields.as_slice() {
        // Updates and security, whose names have a hyphen, live in other places than whole suites.
        ["main", release, uri] if !release.contains('-') => Some((*uri).to_owned()),
        _ => None,
    });
    main.context("apt's sources name no mirror of a Debian release")
}

/// apt-get with everything of its own below `draft`.
fn apt(draft: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    let at = |option: &str, name: &str| format!("{option}={}", draft.join(name).display());
    let options = [
        at("Dir::Etc::SourceList", "sources.list"),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::Preferences=/dev/null".to_owned(),
        "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
        at("Dir::State::Lists", "lists"),
        at("Dir::State::status", "status"),
        at("Dir::Cache", "cache"),
        "Acquire::Languages=none".to_owned(),
        // A mirror that stands still has an index of sid past its date; that of yesterday does here.
        "Acquire::Check-Valid-Until=false".to_owned(),
        // The target directory need not be open to apt's own user.
        "APT::Sandbox::User=root".to_owned(),
    ];
    for option in options {
        apt.args(["-o", &option]);
    }
    apt.args(["--quiet=2"]).env("LC_ALL", "C");
    apt
}

/// Runs to a good end and returns standard output.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
