//! `cargo xtask image`: the container image, of one static binary and nothing else. Also the binary alone, for the tests that
//! run it in containers of their own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::suite::WORKSPACE;
use crate::{setup, shell};

/// Of the image, in bytes. It comes to every node, and nothing in it is to grow unseen.
const LARGEST: u64 = 15_000_000;

/// Builds the image, as `tag` or as the manifests name it.
pub(crate) fn run(tag: Option<&str>) -> Result<ExitCode> {
    setup::run()?;
    let builder = ["podman", "docker"]
        .into_iter()
        .find(|program| shell::find(program).is_some())
        .context("an image is built by podman or docker, and neither is here")?;
    let binary = binary()?;
    let default = format!("smtp-sentinel:{}", env!("CARGO_PKG_VERSION"));
    let tag = tag.unwrap_or(&default);
    let context = binary.parent().context("a file has a directory")?;
    shell::run(
        Command::new(builder)
            .arg("build")
            .arg("--file")
            .arg(shell::root().join("deploy/container/Containerfile"))
            .args(["--tag", tag])
            .arg(context),
    )?;
    let size = Command::new(builder)
        .args(["image", "inspect", "--format", "{{.Size}}", tag])
        .output()?;
    let size: u64 = String::from_utf8_lossy(&size.stdout)
        .trim()
        .parse()
        .with_context(|| format!("{builder} does not say how large {tag} is"))?;
    ensure!(
        size <= LARGEST,
        "{tag} has {size} bytes, more than {LARGEST}: find out what has grown"
    );
    println!("{tag}: {:.1} MB", size as f64 / 1e6);
    Ok(ExitCode::SUCCESS)
}

/// Builds the static binary and puts it where the image is made from: target/image/smtp-sentinel.
///
/// # Errors
/// It does not build, or is larger than the image may be.
pub(crate) fn binary() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut cargo = shell::cargo(&["build", "--release", "--package", "smtp-sentinel"]);
    // With a target named, cargo keeps these flags from what runs while building: a static proc-macro cannot be loaded.
    cargo.args(["--target", &triple, "--features", "kubernetes"]);
    let flags = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        triple.to_uppercase().replace('-', "_")
    );
    cargo
        .env(flags, "-Ctarget-feature=+crt-static")
        // Names of functions are of use to nobody in there, and are a fifth of it.
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env_remove("RUSTFLAGS");
    println!("building the static binary: {}", shell::words(&cargo));
    shell::run(&mut cargo)?;
    let target = shell::target()?;
    let built = target.join(triple).join("release/smtp-sentinel");
    ensure_static(&built)?;
    let size = built.metadata()?.len();
    ensure!(
        size <= LARGEST,
        "{} has {size} bytes, more than the {LARGEST} of the image: find out what has grown",
        built.display()
    );
    put(&built, &built.with_extension("d"))
}

/// Builds the static binary for the tests and puts it in the same place: as the other tests' programs are compiled, but for the
/// last step, so that nothing that it is made of is compiled again, and without what a debugger reads.
///
/// # Errors
/// It does not build.
pub(crate) fn binary_of_tests() -> Result<()> {
    let mut cargo = shell::cargo(&["build"]);
    cargo.args(WORKSPACE).args(["--bin", "smtp-sentinel"]).env(
        "RUSTC_WORKSPACE_WRAPPER",
        shell::root().join("deploy/container/static.sh"),
    );
    println!(
        "building the static binary for the tests: {}",
        shell::words(&cargo)
    );
    shell::run(&mut cargo)?;
    let target = shell::target()?;
    let built = target.join("debug/smtp-sentinel");
    ensure_static(&built)?;
    let stripped = target.join("image.stripped");
    shell::run(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
    put(&stripped, &built.with_extension("d"))?;
    Ok(fs::remove_file(stripped)?)
}

/// Puts a binary where the image is made from, and beside it cargo's list of what it is made of, by which the tests see that
/// it is of today.
fn put(built: &Path, sources: &Path) -> Result<PathBuf> {
    let target = shell::target()?;
    let context = target.join("image");
    fs::create_dir_all(&context)?;
    let binary = context.join("smtp-sentinel");
    for (from, to) in [(built, &binary), (sources, &target.join("image.d"))] {
        fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    }
    Ok(binary)
}

/// An image from scratch has no loader and no libraries.
fn ensure_static(program: &Path) -> Result<()> {
    let output = Command::new("readelf")
        .args(["--wide", "--program-headers"])
        .arg(program)
        .output();
    let output = output.context("running readelf (binutils)")?;
    ensure!(
        output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("INTERP"),
        "{} is not static",
        program.display()
    );
    Ok(())
}
