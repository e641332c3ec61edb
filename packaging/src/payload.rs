//! What is installed, and where.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::CommandFactory as _;
use clap_complete::Shell;
use flate2::{Compression, GzBuilder};
use smtp_sentinel::cli::Cli;

use crate::{NAME, output, workspace};

/// What a package manager has to know of a file beyond its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Program,
    /// Belongs to the administrator once it is there.
    Config,
    Doc,
    Plain,
}

/// One file of the packages.
#[derive(Debug, Clone)]
pub struct File {
    /// Absolute, where it lies in the end.
    pub to: String,
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

impl File {
    pub fn new(to: impl Into<String>, kind: Kind, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            to: to.into(),
            kind,
            bytes: bytes.into(),
        }
    }

    pub fn mode(&self) -> u32 {
        match self.kind {
            Kind::Program => 0o755,
            Kind::Config | Kind::Doc | Kind::Plain => 0o644,
        }
    }
}

/// Files of the workspace that are installed as they are.
const COPIED: [(&str, &str, Kind); 14] = [
    (
        "deploy/config.toml",
        "/etc/smtp-sentinel/config.toml",
        Kind::Config,
    ),
    (
        "deploy/systemd/smtp-sentinel.service",
        "/usr/lib/systemd/system/smtp-sentinel.service",
        Kind::Plain,
    ),
    (
        "deploy/systemd/smtp-sentinel.service.d/other-networks.conf.example",
        "/usr/share/doc/smtp-sentinel/examples/other-networks.conf",
        Kind::Doc,
    ),
    (
        "deploy/prometheus/smtp-sentinel.rules.yml",
        "/usr/share/smtp-sentinel/prometheus/smtp-sentinel.rules.yml",
        Kind::Plain,
    ),
    (
        "deploy/prometheus/smtp-sentinel.test.yml",
        "/usr/share/smtp-sentinel/prometheus/smtp-sentinel.test.yml",
        Kind::Plain,
    ),
    (
        "deploy/prometheus/scrape.example.yml",
        "/usr/share/smtp-sentinel/prometheus/scrape.example.yml",
        Kind::Plain,
    ),
    (
        "deploy/grafana/smtp-sentinel.json",
        "/usr/share/smtp-sentinel/grafana/smtp-sentinel.json",
        Kind::Plain,
    ),
    ("README.md", "/usr/share/doc/smtp-sentinel/README.md", Kind::Doc),
    (
        "docs/install.md",
        "/usr/share/doc/smtp-sentinel/docs/install.md",
        Kind::Doc,
    ),
    (
        "docs/kernels.md",
        "/usr/share/doc/smtp-sentinel/docs/kernels.md",
        Kind::Doc,
    ),
    (
        "docs/monitoring.md",
        "/usr/share/doc/smtp-sentinel/docs/monitoring.md",
        Kind::Doc,
    ),
    (
        "docs/privileges.md",
        "/usr/share/doc/smtp-sentinel/docs/privileges.md",
        Kind::Doc,
    ),
    (
        "docs/promises.md",
        "/usr/share/doc/smtp-sentinel/docs/promises.md",
        Kind::Doc,
    ),
    (
        "docs/benchmark.md",
        "/usr/share/doc/smtp-sentinel/docs/benchmark.md",
        Kind::Doc,
    ),
];

/// Where each shell looks for completions.
const COMPLETIONS: [(Shell, &str); 3] = [
    (
        Shell::Bash,
        "/usr/share/bash-completion/completions/smtp-sentinel",
    ),
    (Shell::Zsh, "/usr/share/zsh/vendor-completions/_smtp-sentinel"),
    (
        Shell::Fish,
        "/usr/share/fish/vendor_completions.d/smtp-sentinel.fish",
    ),
];

/// Everything that both packages have, in the order of the paths.
///
/// # Errors
/// The program is not there, or a file of the workspace is not.
pub fn collect(binary: &Path) -> Result<Vec<File>> {
    let mut files = vec![File::new(
        "/usr/bin/smtp-sentinel",
        Kind::Program,
        stripped(binary)?,
    )];
    for (from, to, kind) in COPIED {
        let bytes = fs::read(workspace().join(from)).with_context(|| format!("reading {from}"))?;
        files.push(File::new(to, kind, bytes));
    }
    for (shell, to) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
        files.push(File::new(to, Kind::Plain, script));
    }
    for page in crate::manual::pages()? {
        let section = page.section;
        let to = format!("/usr/share/man/man{section}/{}.{section}.gz", page.name);
        files.push(File::new(to, Kind::Doc, compressed(page.text.as_bytes())?));
    }
    files.sort_by(|one, other| one.to.cmp(&other.to));
    Ok(files)
}

/// Refuses a program that can ask a cluster: that one is for the container image.
///
/// # Errors
/// It cannot be read, or was built with the feature "kubernetes".
pub fn ensure_without_kubernetes(binary: &Path) -> Result<()> {
    // What a program without the feature answers to whoever switches it on.
    const ANSWER: &[u8] = b"this smtp-sentinel was built without the feature";
    let bytes = fs::read(binary).with_context(|| format!("reading {}", binary.display()))?;
    ensure!(
        bytes.windows(ANSWER.len()).any(|window| window == ANSWER),
        "{} was built with the feature \"kubernetes\", which is the image's: build it with `cargo build --release --package \
         smtp-sentinel`",
        binary.display()
    );
    Ok(())
}

/// As `gzip -9n` does it: no name and no time in it, so that the same text gives the same bytes.
///
/// # Errors
/// None is known; writing to memory does not fail.
pub fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// The program without its symbol table, which only a debugger reads.
fn stripped(binary: &Path) -> Result<Vec<u8>> {
    let scratch = std::env::temp_dir().join(format!("smtp-sentinel-{}.stripped", std::process::id()));
    let strip = output(
        Command::new("strip")
            .args(["--strip-unneeded", "--remove-section=.comment", "-o"])
            .arg(&scratch)
            .arg(binary),
        "binutils",
    );
    let bytes = strip.and_then(|_| fs::read(&scratch).context("reading the stripped program"));
    let _ = fs::remove_file(&scratch);
    bytes
}
