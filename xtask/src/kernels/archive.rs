//! Debian's kernels: finds the newest of a suite and keeps what a guest needs of it, the kernel and two modules.
//!
//! [`sentinel_debian`] fetches, into lists and caches under target/kernels.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sentinel_debian::{Apt, Package};

use crate::shell;

/// The kernel and what goes with it, unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// As Debian numbers it, such as `5.10.223-1`.
    pub(crate) version: String,
    pub(crate) suite: &'static str,
    pub(crate) vmlinuz: PathBuf,
    /// In the order in which they must be loaded, as Debian packs them; absent where they are built in.
    pub(crate) modules: Vec<PathBuf>,
}

/// What the sentinel and ss(8) need and Debian builds as modules, in the order in which they must be loaded.
const MODULES: [&str; 2] = ["inet_diag", "tcp_diag"];

/// The meta package that depends on a suite's newest kernel.
const META: &str = "linux-image-amd64";

/// The newest kernel of `suites`, out of the cache under `cache` where it is there already.
///
/// # Errors
/// None of the suites can be had, or their kernel cannot; an archived suite may have left the mirrors.
pub(crate) fn newest(suites: &[&'static str], cache: &Path) -> Result<Unpacked> {
    let mut best: Option<Candidate> = None;
    let mut refusals = Vec::new();
    for &suite in suites {
        match Candidate::of(suite, cache) {
            Ok(candidate) => {
                if best.as_ref().is_none_or(|best| candidate.is_newer_than(best)) {
                    best = Some(candidate);
                }
            }
            Err(error) => refusals.push(format!("{suite}: {error:#}")),
        }
    }
    let Some(best) = best else {
        bail!(
            "no kernel to be had of {}: {}; a suite that Debian has archived may have left the mirror that this \
             machine's apt sources name",
            suites.join(" or "),
            refusals.join("; ")
        );
    };
    for refusal in refusals {
        println!("left out: {refusal}");
    }
    best.unpack(cache)
}

/// A suite's newest kernel.
struct Candidate {
    suite: &'static str,
    apt: Apt,
    image: Package,
}

impl Candidate {
    fn of(suite: &'static str, cache: &Path) -> Result<Self> {
        let apt = Apt::of(suite, &cache.join("apt").join(suite))?;
        let meta = apt.package(META)?;
        let image = meta
            .depends_on("linux-image-")
            .with_context(|| format!("{META} of {suite} names no kernel"))?;
        Ok(Self {
            suite,
            image: apt.package(image)?,
            apt,
        })
    }

    fn is_newer_than(&self, other: &Self) -> bool {
        shell::succeeds(Command::new("dpkg").args([
            "--compare-versions",
            &self.image.version,
            "gt",
            &other.image.version,
        ]))
    }

    /// Until 7.0 the image holds the kernel and its modules, from then on it depends on a package of each.
    fn packages(&self) -> Vec<&str> {
        let parts: Vec<&str> = ["linux-binary-", "linux-modules-"]
            .iter()
            .filter_map(|part| self.image.depends_on(part))
            .collect();
        if parts.is_empty() {
            vec![&self.image.name]
        } else {
            parts
        }
    }

    fn unpack(&self, cache: &Path) -> Result<Unpacked> {
        let kept = cache
            .join("unpacked")
            .join(&self.image.name)
            .join(&self.image.version);
        if !kept.is_dir() {
            // Whole or not at all: the name is given last.
            let scratch = kept.with_extension("part");
            remove(&scratch)?;
            fs::create_dir_all(&scratch)?;
            for package in self.packages() {
                println!("fetching {package} {} of {}", self.image.version, self.suite);
                extract(&self.apt, package, &scratch)?;
            }
            fs::rename(&scratch, &kept)?;
        }
        let files = files_below(&kept)?;
        let named = |start: &str| {
            files.iter().find(|file| {
                file.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(start))
            })
        };
        Ok(Unpacked {
            version: self.image.version.clone(),
            suite: self.suite,
            vmlinuz: named("vmlinuz")
                .with_context(|| format!("{} holds no kernel", self.image.name))?
                .clone(),
            modules: MODULES
                .iter()
                .filter_map(|module| named(&format!("{module}.ko")).cloned())
                .collect(),
        })
    }
}

/// Downloads a package and leaves of it in `to` what a guest needs, and nothing else of its hundred megabytes.
fn extract(apt: &Apt, package: &str, to: &Path) -> Result<()> {
    let scratch = to.join(package);
    let archives = apt.download(&[package], &scratch)?;
    let archive = archives.first().context("one package is one archive")?;
    let mut unpacking = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("running dpkg-deb")?;
    let tar = unpacking
        .stdout
        .take()
        .context("dpkg-deb has no standard output")?;
    let wanted = MODULES.map(|module| format!("*/{module}.ko*"));
    // tar fails when one of the names is not in the archive, and none is in all of them: what is missing shows later.
    Command::new("tar")
        .args(["--extract", "--wildcards", "*/vmlinuz*"])
        .args(wanted)
        .current_dir(to)
        .stdin(tar)
        .stderr(Stdio::null())
        .status()
        .context("running tar")?;
    ensure!(
        unpacking.wait()?.success(),
        "dpkg-deb cannot read {}",
        archive.display()
    );
    Ok(fs::remove_dir_all(scratch)?)
}

/// All files below a directory.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(())
}

/// Where everything is kept.
pub(crate) fn cache() -> Result<PathBuf> {
    let target = shell::target()?;
    Ok(env::current_dir()?.join(target).join("kernels"))
}
