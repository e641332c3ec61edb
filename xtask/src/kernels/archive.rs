//! Debian's kernels: finds the newest of a suite and keeps what a guest needs of it, the kernel and two modules.
//!
//! apt does the work, on lists and caches of its own under target/kernels: it verifies the archive's signature and the
//! packages' SHA256 and knows this machine's proxy, and nothing of another suite comes near the machine's packages.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

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
    apt: Apt,
    image: Package,
}

impl Candidate {
    fn of(suite: &'static str, cache: &Path) -> Result<Self> {
        let apt = Apt::of(suite, cache)?;
        let meta = apt.package(META)?;
        let image = meta
            .depends_on("linux-image-")
            .with_context(|| format!("{META} of {suite} names no kernel"))?;
        Ok(Self {
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
                println!("fetching {package} {} of {}", self.image.version, self.apt.suite);
                self.apt.extract(package, &scratch)?;
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
            suite: self.apt.suite,
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

/// What an index says of a package.
struct Package {
    name: String,
    version: String,
    depends: String,
}

impl Package {
    /// Reads `apt-cache show`.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
        };
        Some(Self {
            name: field("Package")?,
            version: field("Version")?,
            depends: field("Depends").unwrap_or_default(),
        })
    }

    /// The first dependency whose name begins so.
    fn depends_on(&self, start: &str) -> Option<&str> {
        self.depends
            .split([',', '|'])
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(start))
    }
}

/// apt with one suite in it and nothing installed.
struct Apt {
    suite: &'static str,
    options: Vec<String>,
}

impl Apt {
    /// Refreshes the suite's lists. Lists that are there and cannot be refreshed may still do.
    fn of(suite: &'static str, cache: &Path) -> Result<Self> {
        let root = cache.join("apt").join(suite);
        fs::create_dir_all(root.join("lists/partial"))?;
        fs::create_dir_all(root.join("archives/partial"))?;
        fs::write(root.join("status"), "")?;
        let place = root.display();
        let options = [
            format!("Dir::Etc::sourcelist={place}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::lists={place}/lists"),
            format!("Dir::State::status={place}/status"),
            format!("Dir::Cache={place}"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Update::Error-Mode=any".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::PDiffs=false".to_owned(),
            // A suite that is archived no longer renews its signature's date.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
        ];
        let apt = Self {
            suite,
            options: options.into(),
        };
        let mut refusals = Vec::new();
        for mirror in mirrors()? {
            fs::write(root.join("sources.list"), source(&mirror, suite))?;
            match output(apt.command("apt-get").args(["update", "--quiet=2"])) {
                Ok(_) => return Ok(apt),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        ensure!(
            apt.package(META).is_ok(),
            "its package lists cannot be had: {}",
            refusals.join("; ")
        );
        println!("the package lists of {suite} could not be refreshed; going on with those that are there");
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["--option", option]);
        }
        command
    }

    fn package(&self, name: &str) -> Result<Package> {
        let text = output(
            self.command("apt-cache")
                .args(["show", "--no-all-versions", name]),
        )?;
        Package::parse(&text).with_context(|| format!("apt-cache says nothing of {name}"))
    }

    /// Downloads a package and leaves of it in `to` what a guest needs, and nothing else of its hundred megabytes.
    fn extract(&self, package: &str, to: &Path) -> Result<()> {
        let scratch = to.join(package);
        fs::create_dir_all(&scratch)?;
        shell::run(
            self.command("apt-get")
                .args(["download", "--quiet=2", package])
                .current_dir(&scratch),
        )?;
        let archive = fs::read_dir(&scratch)?.flatten().map(|entry| entry.path()).next();
        let archive = archive.with_context(|| format!("apt-get downloaded no {package}"))?;
        let mut unpacking = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&archive)
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
}

/// The mirrors of Debian's archive that this machine's own sources name, in their order. apt reads both of its formats
/// for us. What it already knows to be something else (security updates, other vendors) is left out.
fn mirrors() -> Result<Vec<String>> {
    ensure!(
        shell::find("apt-get").is_some(),
        "Debian's kernels come by way of apt, and there is none here"
    );
    let mut indexes = Command::new("apt-get");
    indexes.args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]);
    let mut mirrors = parse_mirrors(&output(&mut indexes)?);
    mirrors.dedup();
    ensure!(
        !mirrors.is_empty(),
        "this machine's apt sources name no mirror of Debian"
    );
    Ok(mirrors)
}

fn parse_mirrors(indexes: &str) -> Vec<String> {
    indexes
        .lines()
        // Without lists apt knows no label and leaves the variable as it is.
        .filter_map(|line| {
            line.strip_prefix("Debian ")
                .or_else(|| line.strip_prefix("$(LABEL) "))
        })
        .map(str::to_owned)
        .collect()
}

/// A line of sources.list.
fn source(mirror: &str, suite: &str) -> String {
    // Where Debian's package of keys puts them; without it, apt's trusted keys must do.
    let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let signed = if keys.exists() {
        format!(" signed-by={}", keys.display())
    } else {
        String::new()
    };
    format!("deb [arch=amd64{signed}] {mirror} {suite} main\n")
}

/// What a command prints; its complaints come with the error.
fn output(command: &mut Command) -> Result<String> {
    let line = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {line}"))?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}", complaints.trim());
    Ok(String::from_utf8(output.stdout)?)
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
    // apt takes absolute paths only.
    Ok(env::current_dir()?.join(target).join("kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_debians_own_with_or_without_lists() {
        let with = "Debian http://mirror.example/debian/\nDebian-Security http://security.example/\nNode http://n.example/\n";
        assert_eq!(parse_mirrors(with), ["http://mirror.example/debian/"]);
        assert_eq!(
            parse_mirrors("$(LABEL) http://mirror.example/"),
            ["http://mirror.example/"]
        );
    }

    #[test]
    fn the_kernel_is_found_among_the_dependencies() {
        let meta = "Package: linux-image-amd64\nVersion: 7.3.4-1\nPre-Depends: x\n\
                    Depends: linux-base-amd64 (= 7.3.4-1), linux-image-7.3.4+deb13-amd64 (= 7.3.4-1) | other\n";
        let meta = Package::parse(meta).unwrap();
        assert_eq!(meta.version, "7.3.4-1");
        assert_eq!(
            meta.depends_on("linux-image-"),
            Some("linux-image-7.3.4+deb13-amd64")
        );
        assert_eq!(meta.depends_on("linux-modules-"), None);
    }
}
