//! The .rpm, made by the crate `rpm` out of the same payload. What it needs of the C library is read from the program itself,
//! by objdump, in the words that rpm's own scripts have for it.

use std::collections::BTreeSet;
use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder, Scriptlet};

use crate::payload::{File, Kind};
use crate::{NAME, RELEASE, TIME, VERSION, output, workspace};

const SUMMARY: &str = "Stress mode for Postfix before the smtpd slots run out";
const DESCRIPTION: &str = "\
A daemon that watches Postfix: in the kernel (eBPF) it counts the depth of the
accept queue, early disconnects and the latency of the greeting, and beside
that how many smtpd processes are busy out of maxproc. When clients that sit on
their connections are about to take every slot, it puts stress mode on the
service in master.cf and reloads Postfix; when the pressure is gone it takes it
back and leaves master.cf byte for byte as it was.

It starts in observe mode, in which it decides and reports and changes nothing,
and it does not start by itself after it was installed.";

/// Builds the package below `to` and returns its path.
///
/// # Errors
/// The program cannot be read, or the package not be written.
pub fn build(payload: &[File], to: &Path) -> Result<PathBuf> {
    let config = BuildConfig::v4()
        .source_date(TIME)
        .compression(CompressionType::Gzip);
    let mut package = PackageBuilder::new(NAME, VERSION, "Apache-2.0", ARCH, SUMMARY);
    package
        .using_config(config)
        .release(RELEASE)
        .description(DESCRIPTION)
        .suggests(Dependency::any("postfix"))
        .post_install_script(script("post")?)
        .pre_uninstall_script(script("preun")?)
        .post_uninstall_script(script("postun")?);
    for shell in [
        Dependency::script_post,
        Dependency::script_preun,
        Dependency::script_postun,
    ] {
        package.requires(shell("/bin/sh"));
    }
    let program = payload.iter().find(|file| file.kind == Kind::Program);
    for needed in libraries(&program.context("the payload has a program")?.bytes, to)? {
        package.requires(Dependency::any(needed));
    }
    for directory in [
        "/etc/smtp-sentinel",
        "/usr/share/smtp-sentinel",
        "/usr/share/doc/smtp-sentinel",
    ] {
        package.with_dir_entry(FileOptions::dir(directory).permissions(0o755))?;
    }
    for file in payload {
        // Debian keeps what packages bring for zsh apart; other distributions do not.
        let to = file
            .to
            .replace("/zsh/vendor-completions/", "/zsh/site-functions/");
        let options = FileOptions::new(to).permissions(u16::try_from(file.mode())?);
        let options = match file.kind {
            Kind::Config => options.config().noreplace(),
            Kind::Doc => options.doc(),
            Kind::Program | Kind::Plain => options,
        };
        package.with_file_contents(file.bytes.clone(), options)?;
    }
    let path = to.join(format!("{NAME}-{VERSION}-{RELEASE}.{ARCH}.rpm"));
    package.build()?.write_file(&path)?;
    Ok(path)
}

fn script(name: &str) -> Result<Scriptlet> {
    let path = workspace().join("deploy/rpm").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Scriptlet::new(text).prog(vec!["/bin/sh"]))
}

/// As rpm names them: `libc.so.6(GLIBC_2.34)(64bit)` for each version of each library, and `libc.so.6()(64bit)`.
fn libraries(program: &[u8], scratch: &Path) -> Result<BTreeSet<String>> {
    let file = scratch.join("rpm.program");
    fs::write(&file, program)?;
    let headers = output(
        Command::new("objdump").arg("--private-headers").arg(&file),
        "binutils",
    );
    fs::remove_file(&file)?;
    let needed = needed(&headers?);
    ensure!(
        !needed.is_empty(),
        "objdump names no library that the program needs"
    );
    Ok(needed)
}

/// Reads objdump's `NEEDED libc.so.6` and, below `required from libc.so.6:`, lines that end with the name of a version.
fn needed(headers: &str) -> BTreeSet<String> {
    let bits = if cfg!(target_pointer_width = "64") {
        "(64bit)"
    } else {
        ""
    };
    let mut needed = BTreeSet::new();
    let mut library = None;
    for line in headers.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match (words.as_slice(), library) {
            (["NEEDED", name], _) => {
                needed.insert(format!("{name}(){bits}"));
            }
            (["required", "from", name], _) => library = name.strip_suffix(':'),
            ([_, _, _, version], Some(name)) => {
                needed.insert(format!("{name}({version}){bits}"));
            }
            _ => library = None,
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_named_as_rpm_names_them() {
        let headers = "Dynamic Section:\n  NEEDED               libc.so.6\n  SONAME x\n\nVersion References:\n  \
                       required from libc.so.6:\n    0x09691a75 0x00 03 GLIBC_2.2.5\n    0x069691b4 0x00 02 GLIBC_2.34\n\nother a b c\n";
        let wanted = [
            "libc.so.6()(64bit)",
            "libc.so.6(GLIBC_2.2.5)(64bit)",
            "libc.so.6(GLIBC_2.34)(64bit)",
        ];
        assert_eq!(needed(headers).into_iter().collect::<Vec<_>>(), wanted);
    }
}
