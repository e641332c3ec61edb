//! Debian packages: installing those that are missing, and no more than those.

use std::env;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// Installs `packages` as root. Nothing is removed for them, no recommended package comes along, and no question is asked.
///
/// # Errors
/// No apt, no root, or apt refuses.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    ensure!(
        shell::find("apt-get").is_some(),
        "this set-up knows Debian's apt only; install by hand what these Debian packages hold: {}",
        packages.join(" ")
    );
    let sudo = shell::as_root("installing Debian packages")?;
    let install = [
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "--no-remove",
    ];
    println!(
        "installing Debian packages: {} {} {}",
        sudo.join(" "),
        install.join(" "),
        packages.join(" ")
    );
    if packages.contains(&"postfix") {
        forbid_postfix_to_configure_itself(&sudo)?;
    }
    // Lists that cannot be refreshed (no network, a local mirror gone) may still do.
    if shell::run(&mut command(&sudo, &["apt-get", "update", "--quiet=2"])).is_err() {
        println!("the package lists could not be refreshed; trying with those that are there");
    }
    let mut apt = command(&sudo, &install);
    shell::run(apt.args(packages)).context("apt could not install what is missing (its words are above)")
}

/// Answers debconf before the package asks. With "No configuration" Debian's postinst writes no main.cf, and without
/// /etc/postfix/main.cf neither the init script nor the systemd unit starts anything (its ConditionPathExists).
fn forbid_postfix_to_configure_itself(sudo: &[&str]) -> Result<()> {
    if Path::new("/etc/postfix/main.cf").exists() {
        bail!(
            "Postfix is not installed, but /etc/postfix/main.cf is there, so installing it would start it as this \
             machine's mail server: install Postfix yourself, or move that file away"
        );
    }
    let mut debconf = command(sudo, &["debconf-set-selections"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut input = debconf
        .stdin
        .take()
        .context("debconf-set-selections has no standard input")?;
    input.write_all(b"postfix postfix/main_mailer_type select No configuration\n")?;
    drop(input);
    ensure!(
        debconf.wait()?.success(),
        "debconf-set-selections refused; install the Debian package debconf"
    );
    Ok(())
}

/// Unpacks `program` (a path inside the package) of a Debian package to `to`, without installing the package: no service
/// of it is set up or started.
///
/// # Errors
/// No apt, or the package cannot be had.
pub(crate) fn unpack(package: &str, program: &str, to: &Path) -> Result<()> {
    ensure!(
        shell::find("apt-get").is_some(),
        "this set-up knows Debian's apt only; install {package} by hand, so that {} is in PATH",
        to.file_name().unwrap_or_default().display()
    );
    let directory = to.parent().context("a file has a directory")?;
    let scratch = directory.join(format!("{package}.unpacked"));
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    println!(
        "unpacking {program} of Debian's {package} to {} (not installed)",
        to.display()
    );
    shell::run(
        Command::new("apt-get")
            .args(["download", "--quiet=2", package])
            .current_dir(&scratch),
    )?;
    let archive = fs::read_dir(&scratch)?.flatten().map(|entry| entry.path()).next();
    let archive = archive.with_context(|| format!("apt-get downloaded no {package}"))?;
    shell::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(archive)
            .arg(&scratch),
    )?;
    fs::rename(scratch.join(program), to)?;
    Ok(fs::remove_dir_all(&scratch)?)
}

/// Unpacks packages to `to` together with those that they need and that are not installed, and installs none of them.
/// Needs no root while apt's lists are fresh.
///
/// # Errors
/// No apt, or a package cannot be had.
pub(crate) fn unpack_with_dependencies(packages: &[&str], to: &Path) -> Result<()> {
    ensure!(
        shell::find("apt-get").is_some(),
        "this set-up knows Debian's apt only; install by hand what these Debian packages hold: {}",
        packages.join(" ")
    );
    println!(
        "unpacking Debian's {} and what they need to {} (not installed)",
        packages.join(", "),
        to.display()
    );
    let archives = to.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    if download(packages, &archives).is_err() {
        println!("apt could not download them; trying again with fresh lists");
        let sudo = shell::as_root("refreshing apt's package lists")?;
        shell::run(&mut command(&sudo, &["apt-get", "update", "--quiet=2"]))?;
        download(packages, &archives)?;
    }
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            shell::run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(to))?;
        }
    }
    Ok(fs::remove_dir_all(archives)?)
}

fn download(packages: &[&str], archives: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--download-only", "--reinstall", "--yes", "--quiet=2"])
        .arg("--no-install-recommends")
        // Nothing is written where another apt could be writing.
        .args([
            "--option",
            "Debug::NoLocking=true",
            "--option",
            "APT::Sandbox::User=root",
        ])
        .arg("--option")
        .arg(format!("Dir::Cache::archives={}", archives.display()))
        .args(packages)
        .env("PATH", path_with_sbin());
    shell::run(&mut apt)
}

/// `sudo` drops the environment of its caller, so what apt must know goes through env(1).
fn command(sudo: &[&str], words: &[&str]) -> Command {
    let mut all = sudo
        .iter()
        .chain(&["env", "DEBIAN_FRONTEND=noninteractive"])
        .chain(words);
    let mut command = Command::new(all.next().copied().unwrap_or("env"));
    command.args(all).env("PATH", path_with_sbin());
    command
}

/// dpkg refuses to work without the sbin directories in PATH.
fn path_with_sbin() -> String {
    format!(
        "{}:/usr/local/sbin:/usr/sbin:/sbin",
        env::var("PATH").unwrap_or_default()
    )
}
