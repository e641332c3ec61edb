//! What the other tasks need, whether it is there, and how it comes. Running it again changes nothing. It asks for root for
//! package installs only, never touches an existing Postfix configuration, and starts no service.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::{packages, shell, toolchain};

/// A thing that is needed, and the Debian packages that bring it.
struct Need {
    what: &'static str,
    there: bool,
    packages: &'static [&'static str],
}

/// Says what is missing; exit code 1 when something is.
pub(crate) fn check() -> Result<ExitCode> {
    let mut complete = true;
    let mut report = |what: &str, there: bool| {
        complete &= there;
        println!("{} {what}", if there { "there   " } else { "MISSING " });
    };
    for need in needs() {
        report(need.what, need.there);
    }
    report("bpf-linker", toolchain::bpf_linker().is_some());
    report("rustfmt and clippy", has_cargo_components());
    for program in PROMETHEUS {
        report(program, unpacked(program)?.is_some());
    }
    report("Grafana's types", has_grafana_types()?);
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Installs what is missing.
pub(crate) fn run() -> Result<ExitCode> {
    let mut wanted: Vec<_> = needs()
        .iter()
        .filter(|need| !need.there)
        .flat_map(|need| need.packages)
        .copied()
        .collect();
    if toolchain::bpf_linker().is_none() {
        wanted.extend(missing_for_linker());
    }
    wanted.dedup();
    packages::install(&wanted)?;
    for need in needs() {
        ensure!(
            need.there,
            "{} is still missing after its packages were installed: {}",
            need.what,
            need.packages.join(" ")
        );
    }
    install_linker()?;
    install_cargo_components()?;
    install_prometheus()?;
    install_grafana_types()?;
    Ok(ExitCode::SUCCESS)
}

/// The server, which scrapes a daemon in the lab, and the tool that asks it and that tests hold /metrics against.
const PROMETHEUS: [&str; 2] = ["prometheus", "promtool"];

/// One of those; out of PATH, or unpacked by us.
fn unpacked(program: &str) -> Result<Option<PathBuf>> {
    let unpacked = tools()?.join(program);
    Ok(shell::find(program).or_else(|| unpacked.is_file().then_some(unpacked)))
}

/// Where tools go that are unpacked and not installed.
pub(crate) fn tools() -> Result<PathBuf> {
    Ok(shell::target()?.join("tools"))
}

fn needs() -> Vec<Need> {
    let has = |programs: &[&str]| programs.iter().all(|program| shell::find(program).is_some());
    vec![
        Need {
            what: "Postfix",
            there: has(&["postfix", "postconf"]),
            packages: &["postfix"],
        },
        Need {
            what: "ip and ss",
            there: has(&["ip", "ss"]),
            packages: &["iproute2"],
        },
        Need {
            what: "setpriv, unshare and nsenter",
            there: has(&["setpriv", "unshare", "nsenter"]),
            packages: &["util-linux"],
        },
        Need {
            // Also the runtime that bpf-linker links to.
            what: "a C++ compiler for libFuzzer",
            there: has(&["c++"]),
            packages: &["g++"],
        },
        Need {
            // Its package starts nothing where systemd is not process 1.
            what: "systemd-analyze",
            there: has(&["systemd-analyze"]),
            packages: &["systemd"],
        },
        Need {
            what: "what packages are made and tested with",
            there: has(&["dpkg-shlibdeps", "lintian", "man", "mmdebstrap", "rpm", "strip"]),
            packages: &["binutils", "dpkg-dev", "lintian", "man-db", "mmdebstrap", "rpm"],
        },
        Need {
            what: "node and npm",
            there: has(&["node", "npm"]),
            packages: &["nodejs", "npm"],
        },
        Need {
            what: "a Rust compiler for BPF",
            there: toolchain::bpf_compiler().is_some(),
            packages: &["rustc-web", "libstd-rust-web-dev-bpf"],
        },
    ]
}

/// What bpf-linker is built with, beside a C++ compiler: LLVM as static libraries, and what those link to.
fn missing_for_linker() -> Vec<&'static str> {
    let llvm = Path::new("/usr/lib").join(format!("llvm-{}", toolchain::LLVM));
    let mut missing = Vec::new();
    for (package, there) in [
        ("llvm-22-dev", llvm.join("bin/llvm-config").exists()),
        ("libpolly-22-dev", llvm.join("lib/libPolly.a").exists()),
        ("libzstd-dev", Path::new("/usr/include/zstd.h").exists()),
        ("zlib1g-dev", Path::new("/usr/include/zlib.h").exists()),
    ] {
        if !there {
            missing.push(package);
        }
    }
    missing
}

fn install_linker() -> Result<()> {
    if toolchain::bpf_linker().is_some() {
        return Ok(());
    }
    let features = format!("llvm-{}", toolchain::LLVM);
    let mut cargo = shell::cargo(&[
        "install",
        "bpf-linker",
        "--version",
        toolchain::LINKER_VERSION,
        "--locked",
    ]);
    cargo.args(["--no-default-features", "--features", &features]);
    cargo.env("LLVM_PREFIX", format!("/usr/lib/{features}"));
    println!(
        "building bpf-linker: LLVM_PREFIX=/usr/lib/{features} {}",
        shell::words(&cargo)
    );
    shell::run(&mut cargo).context("bpf-linker could not be built (cargo's words are above)")
}

fn has_cargo_components() -> bool {
    ["fmt", "clippy"]
        .iter()
        .all(|component| shell::succeeds(&mut shell::cargo(&[component, "--version"])))
}

fn install_cargo_components() -> Result<()> {
    if has_cargo_components() {
        return Ok(());
    }
    ensure!(
        shell::find("rustup").is_some(),
        "rustfmt and clippy are missing, and there is no rustup to add them: install those that belong to this cargo"
    );
    println!("adding components: rustup component add rustfmt clippy");
    shell::run(
        Command::new("rustup")
            .args(["component", "add", "rustfmt", "clippy"])
            .current_dir(shell::root()),
    )
}

/// Debian's package starts the Prometheus server at its install; so it is unpacked only.
fn install_prometheus() -> Result<()> {
    let tools = tools()?;
    std::fs::create_dir_all(&tools)?;
    for program in PROMETHEUS {
        if unpacked(program)?.is_none() {
            packages::unpack("prometheus", &format!("usr/bin/{program}"), &tools.join(program))?;
        }
    }
    Ok(())
}

/// Where @grafana/schema and the TypeScript compiler are, by which a test checks the dashboard.
pub(crate) fn grafana_types() -> Result<PathBuf> {
    Ok(tools()?.join("grafana"))
}

/// Their versions are in deploy/grafana/check/package-lock.json; the copy beside them is written when they are complete.
fn has_grafana_types() -> Result<bool> {
    let wanted = std::fs::read(grafana_check().join(LOCK))?;
    Ok(std::fs::read(grafana_types()?.join(COMPLETE)).is_ok_and(|there| there == wanted))
}

const LOCK: &str = "package-lock.json";
const COMPLETE: &str = "complete.json";

fn grafana_check() -> PathBuf {
    shell::root().join("deploy/grafana/check")
}

fn install_grafana_types() -> Result<()> {
    if has_grafana_types()? {
        return Ok(());
    }
    let to = grafana_types()?;
    std::fs::create_dir_all(&to)?;
    for name in ["package.json", LOCK] {
        std::fs::copy(grafana_check().join(name), to.join(name))?;
    }
    let mut npm = Command::new("npm");
    // The two packages are read and run by the check alone; nothing that they would run at their install is.
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])
        .current_dir(&to);
    println!(
        "fetching Grafana's types to {}: {}",
        to.display(),
        shell::words(&npm)
    );
    shell::run(&mut npm)
        .context("npm could not fetch @grafana/schema and typescript (its words are above)")?;
    std::fs::copy(to.join(LOCK), to.join(COMPLETE))?;
    Ok(())
}

/// PATH with the unpacked tools and Debian's sbin directories, for tests and demo.
pub(crate) fn path() -> Result<std::ffi::OsString> {
    let own = env::var_os("PATH").unwrap_or_default();
    let more = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin"), tools()?];
    env::join_paths(env::split_paths(&own).chain(more)).context("a directory in PATH has a colon in its name")
}
