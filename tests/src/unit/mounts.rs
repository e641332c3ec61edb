//! The mounts of a unit, in a mount namespace of the calling process: what systemd.exec(5) says of each setting.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{Stage, Unit};

pub(super) const APPLIED: [&str; 11] = [
    "ProtectSystem",
    "ReadWritePaths",
    "StateDirectory",
    "RuntimeDirectory",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
];

const NOTHING: Option<&str> = None;

/// What PrivateDevices= leaves that anything of ours could ask for.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

pub(super) fn apply(unit: &Unit, stage: &Stage) -> Result<()> {
    ensure!(
        unit.last("ProtectSystem") == Some("strict"),
        "only ProtectSystem=strict is understood"
    );
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace needs root")?;
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        NOTHING,
    )?;
    // Held before anything is hidden; a path below /proc/self/fd leads to what is behind it all the same. (But not to
    // another mount namespace, so this comes after the unshare.)
    let exposed = hold(&stage.exposed)?;
    if unit.yes("PrivateTmp") {
        for directory in ["/tmp", "/var/tmp"] {
            tmpfs(directory, "mode=1777")?;
        }
    }
    if unit.yes("ProtectHome") {
        for directory in ["/home", "/root", "/run/user"] {
            hide(directory)?;
        }
    }
    for (path, held) in &exposed {
        let directory = held.metadata()?.is_dir();
        if !path.exists() {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            if directory {
                fs::create_dir(path)?;
            } else {
                File::create(path)?;
            }
        }
        bind(Path::new(&format!("/proc/self/fd/{}", held.as_raw_fd())), path)?;
    }
    if unit.yes("PrivateDevices") {
        private_devices()?;
    }
    let writable = writable(unit, stage)?;
    for path in &writable {
        bind(path, path)?;
    }
    everything_read_only(&writable)?;
    kernel_files(unit)
}

fn hold(paths: &[PathBuf]) -> Result<Vec<(PathBuf, File)>> {
    let mut held = Vec::new();
    for path in paths {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            .with_context(|| path.display().to_string())?;
        held.push((path.clone(), File::from(fd)));
    }
    Ok(held)
}

/// ReadWritePaths= and the directories that systemd makes, as the stage has them.
fn writable(unit: &Unit, stage: &Stage) -> Result<Vec<PathBuf>> {
    let below = |parent: &str, key: &str| {
        let names = unit.words(key).into_iter();
        names.map(|name| Path::new(parent).join(name)).collect::<Vec<_>>()
    };
    let mut paths: Vec<PathBuf> = unit
        .words("ReadWritePaths")
        .into_iter()
        .map(|path| path.trim_start_matches('-').into())
        .collect();
    paths.extend(below("/var/lib", "StateDirectory"));
    paths.extend(below("/run", "RuntimeDirectory"));
    paths
        .into_iter()
        .map(|path| {
            let instead = stage.instead.get(&path);
            let instead =
                instead.with_context(|| format!("the stage has nothing instead of {}", path.display()))?;
            Ok(instead.clone())
        })
        .collect()
}

/// Every mount but those of the kernel's own file systems, which have settings of their own, the private ones, and what
/// is below the writable ones.
fn everything_read_only(writable: &[PathBuf]) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let (Some(point), Some(options)) = (words.get(4), words.get(5)) else {
            continue;
        };
        let path = Path::new(point);
        let own = ["/dev", "/proc", "/sys", "/tmp", "/var/tmp"].map(Path::new);
        // A place that is exposed in the private /tmp is as read-only as its like elsewhere on a machine.
        let own = own
            .iter()
            .any(|own| path == *own || (path.starts_with(own) && !own.ends_with("tmp")));
        if own || writable.iter().any(|writable| path.starts_with(writable)) {
            continue;
        }
        remount_read_only(path, options)?;
    }
    Ok(())
}

/// A remount sets all flags anew, so those that are there go along.
fn remount_read_only(path: &Path, options: &str) -> Result<()> {
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    for option in options.split(',') {
        flags |= match option {
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            "noexec" => MsFlags::MS_NOEXEC,
            "noatime" => MsFlags::MS_NOATIME,
            "relatime" => MsFlags::MS_RELATIME,
            _ => MsFlags::empty(),
        };
    }
    mount(NOTHING, path, NOTHING, flags, NOTHING)
        .with_context(|| format!("making {} read-only", path.display()))
}

fn kernel_files(unit: &Unit) -> Result<()> {
    let mut read_only = Vec::new();
    if unit.yes("ProtectKernelTunables") {
        read_only.extend(["/proc/sys", "/proc/irq", "/proc/bus", "/sys"]);
    }
    if unit.yes("ProtectControlGroups") {
        read_only.push("/sys/fs/cgroup");
    }
    for path in read_only.into_iter().filter(|path| Path::new(path).exists()) {
        bind(path.as_ref(), path.as_ref())?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        for line in mounts.lines() {
            let words: Vec<_> = line.split(' ').collect();
            if let (Some(point), Some(options)) = (words.get(4), words.get(5))
                && Path::new(point).starts_with(path)
            {
                remount_read_only(Path::new(point), options)?;
            }
        }
    }
    if unit.yes("ProtectKernelModules") {
        hide("/usr/lib/modules")?;
    }
    if unit.yes("ProtectKernelLogs") {
        for path in ["/dev/kmsg", "/proc/kmsg"]
            .into_iter()
            .filter(|path| Path::new(path).exists())
        {
            bind("/dev/null".as_ref(), path.as_ref())?;
        }
    }
    Ok(())
}

fn private_devices() -> Result<()> {
    let paths: Vec<_> = DEVICES.iter().map(|name| Path::new("/dev").join(name)).collect();
    let held = hold(&paths)?;
    tmpfs("/dev", "mode=755")?;
    for (path, held) in held {
        File::create(&path)?;
        bind(Path::new(&format!("/proc/self/fd/{}", held.as_raw_fd())), &path)?;
    }
    Ok(())
}

/// Nobody can enter it, whatever is in it.
fn hide(directory: &str) -> Result<()> {
    if fs::metadata(directory).is_ok_and(|meta| meta.is_dir() && meta.mode() != 0) {
        tmpfs(directory, "mode=000")?;
    }
    Ok(())
}

fn tmpfs(directory: &str, data: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), directory, Some("tmpfs"), flags, Some(data))
        .with_context(|| format!("mounting a private {directory}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(
        Some(from),
        to,
        NOTHING,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NOTHING,
    )
    .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}
