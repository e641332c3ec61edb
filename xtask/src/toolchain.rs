//! The two halves of the BPF toolchain, looked for in the same places and the same order as sentinel/build.rs does: a Rust
//! compiler that has `core` for bpfel-unknown-none, and bpf-linker.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell;

/// The linker's release, and the LLVM that it is built against: the newest that Debian's archive has a package of, and no
/// older than the LLVM of the compilers whose bitcode it reads.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
pub(crate) const LLVM: &str = "22";

/// A compiler for BPF, described; `None` when there is none.
pub(crate) fn bpf_compiler() -> Option<String> {
    // rustup must not answer by downloading a toolchain.
    let nightly = sysroot(Command::new("rustc").arg("+nightly"));
    if nightly.is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir()) {
        return Some("rustup's nightly with rust-src".to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).filter(|place| place.is_absolute());
    let mut compilers = places
        .chain([PathBuf::from("/usr/bin")])
        .map(|place| place.join("rustc"));
    let compiler =
        compilers.find(|rustc| sysroot(&mut Command::new(rustc)).is_some_and(|root| has_core(&root)))?;
    Some(compiler.display().to_string())
}

/// Where bpf-linker is.
pub(crate) fn bpf_linker() -> Option<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let homes = [env::var_os("CARGO_HOME").map(PathBuf::from), home];
    let installed = homes
        .into_iter()
        .flatten()
        .map(|home| home.join("bin/bpf-linker"))
        .find(|path| path.is_file());
    installed.or_else(|| shell::find("bpf-linker"))
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc
        .env("RUSTUP_AUTO_INSTALL", "0")
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim_end().into())
}

fn has_core(sysroot: &Path) -> bool {
    let Ok(entries) = fs::read_dir(sysroot.join("lib/rustlib/bpfel-unknown-none/lib")) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}
