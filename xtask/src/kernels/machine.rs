//! The virtual machine: qemu without KVM, which few places that run tests have.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::archive::files_below;
use crate::{packages, shell};

/// A run takes a minute of one processor, and three minutes were seen on a machine with four times the work it can do.
const LIMIT: Duration = Duration::from_secs(480);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// qemu and busybox, installed or unpacked.
pub(crate) struct Tools {
    qemu: PathBuf,
    /// Where an unpacked qemu has its libraries and its firmware; None for an installed one.
    unpacked: Option<PathBuf>,
    pub(crate) busybox: PathBuf,
}

impl Tools {
    /// Takes those that are installed, else unpacks Debian's packages below `cache` without installing them.
    pub(crate) fn get(cache: &Path) -> Result<Self> {
        let unpacked = cache.join("tools");
        // Debian's busybox is statically linked only in busybox-static, so an installed one is no help.
        let qemu = shell::find("qemu-system-x86_64");
        let there = |name: &str| find_below(&unpacked, name);
        let mut wanted = vec!["busybox-static"];
        if qemu.is_none() {
            wanted.push("qemu-system-x86");
        }
        if there("busybox").is_none() || (qemu.is_none() && there("qemu-system-x86_64").is_none()) {
            packages::unpack_with_dependencies(&wanted, &unpacked)?;
        }
        let missing = "is not in the package that should bring it";
        Ok(Self {
            busybox: there("busybox").with_context(|| format!("busybox {missing}"))?,
            unpacked: qemu.is_none().then_some(unpacked.clone()),
            qemu: qemu
                .or_else(|| there("qemu-system-x86_64"))
                .with_context(|| format!("qemu-system-x86_64 {missing}"))?,
        })
    }

    /// Boots `kernel` on `initramfs` and waits for the machine to switch itself off. The first serial port goes to
    /// `console`, the second to `report`; `arguments` are those of the guest's init.
    pub(crate) fn boot(&self, guest: &Guest<'_>) -> Result<()> {
        let mut qemu = Command::new(&self.qemu);
        // The guest's processors take turns on one thread of qemu. With a thread each, one goes on running what qemu has
        // translated while the kernel on the other patches it: the int3 that stands there for a moment (text_poke_bp()) is met
        // when the patch is over and nobody expects it any more, and the kernel dies of it.
        // Without cmpxchg16b: with it, 6.12 panics now and then under software emulation, before any of ours runs.
        qemu.args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=single",
            "-smp",
            "2",
            "-m",
            "768",
            "-cpu",
            "max,-cx16",
        ])
        .args([
            "-display",
            "none",
            "-vga",
            "none",
            "-nic",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", &format!("file:{}", guest.console.display())])
        .args(["-serial", &format!("file:{}", guest.report.display())])
        .arg("-kernel")
        .arg(guest.kernel)
        .arg("-initrd")
        .arg(guest.initramfs)
        .args([
            "-append",
            &format!("console=ttyS0 quiet panic=-1 -- {}", guest.arguments),
        ]);
        if let Some(root) = &self.unpacked {
            let library = root.join("usr/lib/x86_64-linux-gnu");
            let libraries = [library.clone(), root.join("lib/x86_64-linux-gnu")];
            qemu.env("LD_LIBRARY_PATH", env::join_paths(libraries)?)
                .env("QEMU_MODULE_DIR", library.join("qemu"));
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                qemu.arg("-L").arg(root.join(firmware));
            }
        }
        let words = guest.console.with_extension("qemu");
        let mut running = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&words)?)
            .spawn()
            .with_context(|| format!("running {}", self.qemu.display()))?;
        match wait(&mut running)? {
            Ending::Itself(true) => Ok(()),
            Ending::Itself(false) => bail!("qemu failed: {}", fs::read_to_string(&words)?.trim()),
            Ending::Killed => bail!("the guest was still running after {} s", LIMIT.as_secs()),
        }
    }
}

/// What a machine is booted with.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) console: &'a Path,
    pub(crate) report: &'a Path,
    pub(crate) arguments: &'a str,
}

enum Ending {
    /// And whether it succeeded.
    Itself(bool),
    Killed,
}

fn wait(running: &mut Child) -> Result<Ending> {
    // Looks are counted, not a clock read: on a machine that stands still the limit stands still too.
    for _ in 0..LIMIT.as_millis() / LOOK_EVERY.as_millis() {
        if let Some(status) = running.try_wait()? {
            return Ok(Ending::Itself(status.success()));
        }
        thread::sleep(LOOK_EVERY);
    }
    running.kill()?;
    running.wait()?;
    Ok(Ending::Killed)
}

fn find_below(directory: &Path, name: &str) -> Option<PathBuf> {
    let files = files_below(directory).ok()?;
    files
        .into_iter()
        .find(|file| file.parent().is_some_and(|parent| parent.ends_with("bin")) && file.ends_with(name))
}

/// Decompresses a module: the guest's busybox need not know how.
pub(crate) fn module(busybox: &Path, module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_some_and(|extension| extension == "ko") {
        return Ok(fs::read(module)?);
    }
    let output = Command::new(busybox).arg("xzcat").arg(module).output()?;
    ensure!(
        output.status.success(),
        "{} is not compressed by xz",
        module.display()
    );
    Ok(output.stdout)
}
