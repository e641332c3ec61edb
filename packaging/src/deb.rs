//! The .deb, made by dpkg-deb of a staged tree. What deploy/deb/control leaves open is filled in: the version, the
//! architecture, the size, and the libraries, which dpkg-shlibdeps finds.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::payload::{File, Kind, compressed};
use crate::{NAME, RELEASE, TIME, VERSION, output, workspace};

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Builds the package below `to` and returns its path.
///
/// # Errors
/// A tool of Debian's is missing, or refuses; its words are in the message.
pub fn build(payload: &[File], to: &Path) -> Result<PathBuf> {
    let stage = to.join("deb.stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let root = stage.join("root");
    let mut files = payload.to_vec();
    files.extend(of_debian()?);
    for file in &files {
        put(
            &root.join(file.to.trim_start_matches('/')),
            &file.bytes,
            file.mode(),
        )?;
    }

    let architecture = output(Command::new("dpkg").arg("--print-architecture"), "dpkg")?;
    let architecture = architecture.trim();
    let kib: usize = files.iter().map(|file| file.bytes.len().div_ceil(1024)).sum();
    let control = template("control")?
        .replace("@VERSION@", &version())
        .replace("@ARCHITECTURE@", architecture)
        .replace("@INSTALLED_SIZE@", &kib.to_string())
        .replace("@DEPENDS@", &libraries(&stage, &root)?);
    let control_at = |name: &str| root.join("DEBIAN").join(name);
    put(&control_at("control"), control.as_bytes(), 0o644)?;
    let conffiles: String = files
        .iter()
        .filter(|file| file.kind == Kind::Config)
        .map(|file| format!("{}\n", file.to))
        .collect();
    put(&control_at("conffiles"), conffiles.as_bytes(), 0o644)?;
    put(&control_at("md5sums"), sums(&root, &files)?.as_bytes(), 0o644)?;
    for name in SCRIPTS {
        put(&control_at(name), template(name)?.as_bytes(), 0o755)?;
    }

    let package = to.join(format!("{NAME}_{}_{architecture}.deb", version()));
    output(
        Command::new("dpkg-deb")
            // Owned by root whoever builds it, and compressed as every supported release can read it.
            .args(["--root-owner-group", "-Zxz", "--build"])
            .arg(&root)
            .arg(&package)
            .env("SOURCE_DATE_EPOCH", TIME.to_string()),
        "dpkg",
    )?;
    fs::remove_dir_all(stage)?;
    Ok(package)
}

fn version() -> String {
    format!("{VERSION}-{RELEASE}")
}

/// What only Debian's package has.
fn of_debian() -> Result<Vec<File>> {
    let changelog = template("changelog")?.replace("@VERSION@", &version());
    let doc = |name: &str| format!("/usr/share/doc/{NAME}/{name}");
    Ok(vec![
        File::new(doc("copyright"), Kind::Doc, template("copyright")?),
        File::new(
            doc("changelog.Debian.gz"),
            Kind::Doc,
            compressed(changelog.as_bytes())?,
        ),
        File::new(
            format!("/usr/share/lintian/overrides/{NAME}"),
            Kind::Plain,
            template("lintian-overrides")?,
        ),
    ])
}

fn template(name: &str) -> Result<String> {
    let path = workspace().join("deploy/deb").join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// The packages of the libraries that the program is linked to, as `Depends:` has them.
fn libraries(stage: &Path, root: &Path) -> Result<String> {
    // It works in a source tree and asks there for a control file; that may be empty.
    put(&stage.join("debian/control"), b"", 0o644)?;
    let program = fs::canonicalize(root.join("usr/bin").join(NAME))?;
    let answer = output(
        Command::new("dpkg-shlibdeps")
            .args(["-O", "-e"])
            .arg(program)
            .current_dir(stage),
        "dpkg-dev",
    )?;
    let depends = answer.trim().strip_prefix("shlibs:Depends=");
    Ok(depends.context("dpkg-shlibdeps found no library")?.to_owned())
}

/// By which dpkg --verify and debsums look at what is installed; conffiles are not among them.
fn sums(root: &Path, files: &[File]) -> Result<String> {
    let mut names: Vec<_> = files
        .iter()
        .filter(|file| file.kind != Kind::Config)
        .map(|file| file.to.trim_start_matches('/'))
        .collect();
    names.sort_unstable();
    output(Command::new("md5sum").args(names).current_dir(root), "coreutils")
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().context("a file has a directory")?;
    fs::create_dir_all(directory)?;
    // Directories of a package are open to all, whatever the umask of who builds it.
    for directory in directory
        .ancestors()
        .take_while(|one| !one.ends_with("deb.stage"))
    {
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    fs::write(path, bytes)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_are_as_old_as_the_changelog_says() {
        let changelog = template("changelog").unwrap();
        let time = jiff::Timestamp::from_second(TIME.into()).unwrap();
        let date = time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string();
        assert!(changelog.contains(&format!("  {date}\n")), "{date}");
    }
}
