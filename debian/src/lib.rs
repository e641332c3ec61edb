//! Packages of Debian's suites other than the machine's own: apt on one suite, with lists, caches and a source list below
//! a directory of the caller's.
//!
//! apt does the work: it verifies the archive's signature and each package's checksum, and knows the machine's proxy.
//! Nothing is ever installed, nothing of another suite comes near the machine's packages, and nothing that the machine's
//! apt knows is changed. The mirror is the one that the machine's own sources name, so no host name is written here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Debian's own public keys, in the place where each release of it keeps them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with one suite in it and nothing installed.
pub struct Apt {
    suite: String,
    options: Vec<String>,
}

impl Apt {
    /// Refreshes the lists of `suite` below `place`. Lists that are there and cannot be refreshed may still do.
    ///
    /// # Errors
    /// No apt, no Debian mirror among its sources, or no mirror has the suite: archived ones leave the mirrors.
    pub fn of(suite: &str, place: &Path) -> Result<Self> {
        // apt takes a relative path for one below its own directories.
        let place = std::path::absolute(place)?;
        for directory in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(place.join(directory))?;
        }
        // Nothing is installed, as far as this apt knows, so its plans name every package that is needed.
        fs::write(place.join("status"), "")?;
        let apt = Self {
            suite: suite.to_owned(),
            options: options(&place, &architecture()?),
        };
        let mut refusals = Vec::new();
        for mirror in mirrors()? {
            fs::write(place.join("sources.list"), source(&mirror, suite))?;
            match apt.output("apt-get", &["update", "--quiet=2"]) {
                Ok(_) => return Ok(apt),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        let known = apt.output("apt-cache", &["pkgnames"]);
        ensure!(
            known.is_ok_and(|names| !names.is_empty()),
            "the package lists of {suite} cannot be had: {}",
            refusals.join("; ")
        );
        println!("the package lists of {suite} could not be refreshed; going on with those that are there");
        Ok(apt)
    }

    pub fn suite(&self) -> &str {
        &self.suite
    }

    /// The newest version of a package.
    ///
    /// # Errors
    /// The suite has no such package.
    pub fn package(&self, name: &str) -> Result<Package> {
        let text = self.output("apt-cache", &["show", "--no-all-versions", name])?;
        Package::parse(&text).with_context(|| format!("apt-cache says nothing of {name}"))
    }

    /// The names of all packages that a machine without any would need for `name`, itself among them; no recommended ones.
    ///
    /// # Errors
    /// The suite has no such package.
    pub fn with_dependencies(&self, name: &str) -> Result<Vec<String>> {
        let install = [
            "--yes",
            "--quiet=2",
            "--print-uris",
            "--no-install-recommends",
            "install",
            name,
        ];
        Ok(planned(&self.output("apt-get", &install)?))
    }

    /// Downloads packages into a directory, which has nothing else in it, and returns the archives.
    ///
    /// # Errors
    /// The mirror does not answer, or what it says is not what its signed index says.
    pub fn download(&self, names: &[&str], to: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(to)?;
        let mut command = self.command("apt-get");
        output(
            command
                .args(["download", "--quiet=2"])
                .args(names)
                .current_dir(to),
        )?;
        let archives: Vec<_> = fs::read_dir(to)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        ensure!(
            archives.len() == names.len(),
            "apt-get was to download {} packages and left {}",
            names.len(),
            archives.len()
        );
        Ok(archives)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["--option", option]);
        }
        command
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(self.command(program).args(arguments))
    }
}

/// What an index says of a package.
pub struct Package {
    pub name: String,
    pub version: String,
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
    pub fn depends_on(&self, start: &str) -> Option<&str> {
        self.depends
            .split([',', '|'])
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(start))
    }
}

/// All of apt's own places below `place`, one architecture, and of the indexes only that of the packages.
fn options(place: &Path, architecture: &str) -> Vec<String> {
    let place = place.display();
    vec![
        format!("Dir::Etc::SourceList={place}/sources.list"),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::Preferences=/dev/null".to_owned(),
        "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
        format!("Dir::State::Lists={place}/lists"),
        format!("Dir::State::status={place}/status"),
        format!("Dir::Cache={place}"),
        format!("APT::Architecture={architecture}"),
        format!("APT::Architectures={architecture}"),
        // The target directory need not be open to apt's own user.
        "APT::Sandbox::User=root".to_owned(),
        // An index that cannot be had is an error.
        "APT::Update::Error-Mode=any".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::PDiffs=false".to_owned(),
        // A suite that is archived no longer renews its signature's date, and neither does a mirror that stands still.
        "Acquire::Check-Valid-Until=false".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false".to_owned(),
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
    ]
}

fn architecture() -> Result<String> {
    let name = output(Command::new("dpkg").arg("--print-architecture"))
        .context("packages of other suites come by way of dpkg and apt")?;
    Ok(name.trim().to_owned())
}

/// The mirrors of Debian's archive that the machine's own sources name, in their order. apt reads both of its formats for
/// us. What it already knows to be something else (security updates, backports, other vendors) is left out.
fn mirrors() -> Result<Vec<String>> {
    let indexes = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(LABEL)",
        "Created-By: Packages",
    ]))?;
    let mut mirrors = parse_mirrors(&indexes);
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
        .filter_map(|line| line.split_once(' '))
        // Without lists apt knows no label and leaves the variable as it is.
        .filter(|(_, label)| ["Debian", "$(LABEL)"].contains(label))
        .map(|(mirror, _)| mirror.to_owned())
        .collect()
}

/// A line of sources.list.
fn source(mirror: &str, suite: &str) -> String {
    // Without Debian's package of keys, apt's trusted keys must do.
    let signed = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    format!("deb {signed}{mirror} {suite} main\n")
}

/// Reads `apt-get --print-uris`: `'URI' NAME_VERSION_ARCH.deb SIZE HASH`.
fn planned(uris: &str) -> Vec<String> {
    uris.lines()
        .filter_map(|line| line.split(' ').nth(1)?.split('_').next())
        .map(str::to_owned)
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_debians_own_with_or_without_lists() {
        let with = "http://mirror.example/debian/ Debian\nhttp://mirror.example/debian/ Debian Backports\n\
                    http://security.example/ Debian-Security\nhttp://n.example/ Node\n";
        assert_eq!(parse_mirrors(with), ["http://mirror.example/debian/"]);
        assert_eq!(
            parse_mirrors("http://mirror.example/ $(LABEL)"),
            ["http://mirror.example/"]
        );
    }

    #[test]
    fn a_dependency_is_found_by_the_start_of_its_name() {
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

    #[test]
    fn a_plan_is_read_to_the_names() {
        let uris = "'http://m.example/pool/main/p/postfix/postfix_3.5.25-0+deb11u1_amd64.deb' postfix_3.5.25-0+deb11u1_amd64.deb 1 MD5:0\n\
                    'http://m.example/libc6.deb' libc6_2.31-13_amd64.deb 2 MD5:0\n";
        assert_eq!(planned(uris), ["postfix", "libc6"]);
    }

    /// Every place that apt would write to is ours: what `apt-config` says of them once the options are in.
    #[test]
    fn nothing_of_the_machines_apt_is_in_reach() {
        let place = tempfile::tempdir().unwrap();
        let apt = Apt {
            suite: "any".to_owned(),
            options: options(place.path(), "amd64"),
        };
        let dump = apt.output(
            "apt-config",
            &[
                "shell",
                "LISTS",
                "Dir::State::Lists/d",
                "CACHE",
                "Dir::Cache/d",
                "ARCHIVES",
                "Dir::Cache::Archives/d",
                "STATUS",
                "Dir::State::status/f",
                "SOURCES",
                "Dir::Etc::SourceList/f",
            ],
        );
        let dump = dump.unwrap();
        assert_eq!(dump.lines().count(), 5, "{dump}");
        let inside = format!("='{}", place.path().display());
        for line in dump.lines() {
            assert!(line.contains(&inside), "{line}");
        }
    }
}
