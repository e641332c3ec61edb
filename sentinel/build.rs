//! Compiles the BPF programs (package `sentinel-ebpf`) for bpfel-unknown-none and leaves the object in `OUT_DIR`, from
//! where [`probes`](src/probes) embeds it.
//!
//! The stable compiler that builds the rest cannot: it has no `core` for that target. Two kinds of toolchain do, and
//! the first that is at hand is taken (see [`Toolchain`]). Nothing is installed here; `cargo xtask setup` does that.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const BPF_TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "sentinel-ebpf";

const MISSING_RUSTC: &str = "no Rust compiler for BPF found: run `cargo xtask setup`, or install Debian's rustc-web \
    and libstd-rust-web-dev-bpf, or a rustup nightly with rust-src (`rustup toolchain install nightly --component rust-src`)";
const MISSING_LINKER: &str = "bpf-linker not found in cargo's bin directory or PATH: run `cargo xtask setup`, or install \
    Debian's llvm-22-dev and then `LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --no-default-features --features llvm-22`";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            println!("cargo::error={sentence}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let workspace = Path::new(&required("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("sentinel/ must lie in its workspace")?
        .to_path_buf();
    // Said before anything can fail, so that a failed build is tried again when one of these changes. From this package's
    // directory on: a target directory that is copied to another checkout would else go on looking at the first.
    for input in [
        "../sentinel-ebpf/src",
        "../sentinel-ebpf/Cargo.toml",
        "../Cargo.toml",
        "../Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={input}");
    }

    let toolchain = Toolchain::find().ok_or(MISSING_RUSTC)?;
    let linker = find_linker().ok_or(MISSING_LINKER)?;
    println!("cargo::rerun-if-changed={}", toolchain.rustc().display());
    println!("cargo::rerun-if-changed={}", linker.display());

    let out_dir = PathBuf::from(required("OUT_DIR")?);
    let target_dir = shared_target(&out_dir, &required("TARGET")?).join(required("CARGO_CFG_TARGET_ARCH")?);
    // Until the object is copied, so that no other build script has it written anew meanwhile.
    let _one_at_a_time = lock(&target_dir)?;
    let status = toolchain
        .cargo(&workspace, &linker)?
        .arg("--target-dir")
        .arg(&target_dir)
        .status()
        .map_err(|error| format!("cannot run the inner cargo for {PACKAGE}: {error}"))?;
    if !status.success() {
        return Err(format!(
            "{PACKAGE} did not compile for {BPF_TARGET}; the compiler's own words are above"
        ));
    }

    let object = target_dir.join(BPF_TARGET).join("bpf").join(PACKAGE);
    fs::copy(&object, out_dir.join(PACKAGE))
        .map(drop)
        .map_err(|error| format!("cannot copy {}: {error}", object.display()))
}

/// Where the programs are compiled, once for all: tests, lints, documentation and each profile have an `OUT_DIR` of their own,
/// TARGET_DIR/PROFILE/build/PACKAGE/out or TARGET_DIR/TRIPLE/PROFILE/build/PACKAGE/out, and all want the same object. Where
/// `OUT_DIR` is unlike those, it serves itself.
fn shared_target(out_dir: &Path, triple: &OsStr) -> PathBuf {
    let build = out_dir.ancestors().find(|above| above.ends_with("build"));
    let above_profile = build.and_then(|build| build.ancestors().nth(2));
    above_profile.map_or_else(
        || out_dir.join("bpf"),
        |above| {
            let target = if above.ends_with(triple) {
                above.parent()
            } else {
                None
            };
            target.unwrap_or(above).join("bpf")
        },
    )
}

fn lock(directory: &Path) -> Result<File, String> {
    let taken = fs::create_dir_all(directory)
        .and_then(|()| File::create(directory.join("lock")))
        .and_then(|file| file.lock().map(|()| file));
    taken.map_err(|error| format!("cannot lock {}: {error}", directory.display()))
}

/// A toolchain that can compile for BPF.
enum Toolchain {
    /// A rustup nightly with rust-src: `core` is built from source.
    Nightly { sysroot: PathBuf },
    /// A distribution's rustc that brings a compiled `core` for BPF (Debian: rustc-web with libstd-rust-web-dev-bpf).
    /// It is a stable release; the few unstable features that aya-ebpf uses are let through by RUSTC_BOOTSTRAP.
    System { rustc: PathBuf },
}

impl Toolchain {
    fn find() -> Option<Self> {
        Self::find_nightly().or_else(Self::find_system)
    }

    fn find_nightly() -> Option<Self> {
        // Only rustup's proxy understands +nightly. It must not answer by downloading a toolchain.
        let sysroot = sysroot(
            Command::new("rustc")
                .arg("+nightly")
                .env("RUSTUP_AUTO_INSTALL", "0"),
        )?;
        let has_source = sysroot.join("lib/rustlib/src/rust/library/core").is_dir();
        has_source.then_some(Self::Nightly { sysroot })
    }

    fn find_system() -> Option<Self> {
        path_entries()
            .map(|dir| dir.join("rustc"))
            .chain([PathBuf::from("/usr/bin/rustc")])
            .find_map(|rustc| {
                // rustup's proxy would answer for whichever toolchain is active, and that changes with the directory.
                let sysroot = sysroot(Command::new(&rustc).env("RUSTUP_AUTO_INSTALL", "0"))?;
                let core = sysroot.join("lib/rustlib").join(BPF_TARGET).join("lib");
                has_core(&core).then_some(Self::System { rustc })
            })
    }

    fn rustc(&self) -> PathBuf {
        match self {
            Self::Nightly { sysroot } => sysroot.join("bin/rustc"),
            Self::System { rustc } => rustc.clone(),
        }
    }

    /// The inner `cargo build`, all but its target directory.
    fn cargo(&self, workspace: &Path, linker: &Path) -> Result<Command, String> {
        let mut cargo = match self {
            Self::Nightly { sysroot } => Command::new(sysroot.join("bin/cargo")),
            Self::System { .. } => Command::new(required("CARGO")?),
        };
        shed_outer_build(&mut cargo);
        cargo
            .env("RUSTC", self.rustc())
            // Kprobes read their arguments from the registers of the machine that they will run on.
            .env("AYA_BPF_TARGET_ARCH", required("CARGO_CFG_TARGET_ARCH")?)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(linker));
        cargo
            .current_dir(workspace)
            .args(["build", "--locked", "--profile", "bpf", "--target", BPF_TARGET]);
        cargo.args(["--package", PACKAGE, "--bin", PACKAGE, "--features", "programs"]);
        match self {
            Self::Nightly { .. } => cargo.arg("-Zbuild-std=core"),
            Self::System { .. } => cargo.env("RUSTC_BOOTSTRAP", "1"),
        };
        Ok(cargo)
    }
}

/// Takes away what the outer cargo, or clippy, or rustup told this build script about itself: an inner cargo would take
/// it as said about the BPF build (RUSTC_WORKSPACE_WRAPPER would run clippy instead of the compiler, the encoded flags
/// would be the host's). What concerns the registries, the network and the jobserver stays.
fn shed_outer_build(cargo: &mut Command) {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let of_the_build = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if of_the_build || text.starts_with("RUSTC") || text.starts_with("RUSTDOC") || text == "RUSTFLAGS" {
            cargo.env_remove(&name);
        }
    }
    // Empty, so that a wrapper from a cargo configuration file does not come in either.
    cargo.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
}

/// DWARF (`debuginfo=2`) is what bpf-linker makes the BTF of.
fn rustflags(linker: &Path) -> OsString {
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    // The separator of CARGO_ENCODED_RUSTFLAGS: a path with a blank in it stays one flag.
    flags.push("\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf");
    flags
}

fn find_linker() -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let default_home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let in_homes = [cargo_home, default_home]
        .into_iter()
        .flatten()
        .map(|home| home.join("bin"));
    in_homes
        .chain(path_entries())
        .map(|dir| dir.join("bpf-linker"))
        .find(|path| path.is_file())
}

/// The directories of PATH; relative ones are left out, since they mean something else in another directory.
fn path_entries() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .collect::<Vec<_>>()
        .into_iter()
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(text.trim_end()))
}

fn has_core(lib: &Path) -> bool {
    fs::read_dir(lib).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    })
}

/// A variable that cargo always gives to a build script.
fn required(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set: build.rs must be run by cargo"))
}
