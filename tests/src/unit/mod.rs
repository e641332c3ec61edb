//! Runs a program as a systemd unit file would have it run, where no systemd runs: the same capabilities, mounts, limits
//! and system-call filter, read from the file itself, so that a line that breaks the daemon breaks a test.
//!
//! What cannot be had without systemd, or is of no effect in a test, is named in [`NOT_APPLIED`]; a setting that is in
//! neither list is refused, so that nobody adds one unnoticed.

mod filter;
mod mounts;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use rustix::thread::CapabilitySet;

/// The settings that are about the service manager and not about what the process may do, and those whose means are
/// systemd's own.
const NOT_APPLIED: [&str; 23] = [
    "Type",
    "NotifyAccess",
    "ExecStart",
    "Restart",
    "RestartSec",
    "RestartPreventExitStatus",
    "WatchdogSec",
    "TimeoutStopSec",
    "KillMode",
    // Modes of directories that systemd makes; the daemon makes the lab's with the same ones.
    "StateDirectoryMode",
    "RuntimeDirectoryMode",
    // A private UTS namespace, and calls that the filter and the capabilities forbid anyway.
    "ProtectHostname",
    "ProtectClock",
    // The filter leaves these calls out already (@resources), and so does `personality`.
    "RestrictRealtime",
    "LockPersonality",
    // The same as unsharing the mount namespace, which is always done.
    "PrivateMounts",
    "RemoveIPC",
    "KeyringMode",
    // Cgroups: not the test's to make. What the daemon takes is measured against it instead.
    "MemoryMax",
    "TasksMax",
    // Takes CAP_SYS_RESOURCE, and matters before 5.11 only.
    "LimitMEMLOCK",
    // seccompiler kills whatever calls by another architecture's numbers.
    "SystemCallArchitectures",
    "NoNewPrivileges",
];

/// The `[Service]` section of a unit file and its drop-ins.
#[derive(Debug, Clone, Default)]
pub struct Unit {
    settings: BTreeMap<String, Vec<String>>,
}

/// What differs between a machine and the lab.
#[derive(Debug, Clone, Default)]
pub struct Stage {
    /// A path of the unit file, and the one that stands in for it.
    pub instead: BTreeMap<PathBuf, PathBuf>,
    /// What must be seen where it is, whatever the unit hides: the lab lies in /tmp.
    pub exposed: Vec<PathBuf>,
}

impl Unit {
    /// # Errors
    /// A file cannot be read or has a line that is none.
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut unit = Self::default();
        for file in files {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            unit.add(&text).with_context(|| file.display().to_string())?;
        }
        Ok(unit)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') {
                section = line;
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("no setting: {line}"))?;
            ensure!(
                !value.ends_with('\\'),
                "continued lines are not understood: {line}"
            );
            if section == "[Service]" {
                let values = self.settings.entry(key.to_owned()).or_default();
                // An empty value takes back what was said before (systemd.syntax(7)).
                if value.is_empty() {
                    values.clear();
                } else {
                    values.push(value.to_owned());
                }
            }
        }
        Ok(())
    }

    /// Every word of every line of a setting.
    pub fn words(&self, key: &str) -> Vec<&str> {
        let lines = self.settings.get(key).map(Vec::as_slice).unwrap_or_default();
        lines.iter().flat_map(|line| line.split_whitespace()).collect()
    }

    /// The last line of a setting.
    pub fn last(&self, key: &str) -> Option<&str> {
        self.settings.get(key)?.last().map(String::as_str)
    }

    fn yes(&self, key: &str) -> bool {
        matches!(self.last(key), Some("yes" | "true" | "on" | "1"))
    }

    /// The lines of a setting, for those where each line adds or takes away.
    fn lines(&self, key: &str) -> &[String] {
        self.settings.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Puts the calling process, which must have one thread, under all that the unit says. What comes next is exec.
    ///
    /// # Errors
    /// Not root, a setting that this does not know, or something in it that the kernel refuses.
    pub fn apply(&self, stage: &Stage) -> Result<()> {
        self.refuse_the_unknown()?;
        let filters = filter::programs(self)?;
        mounts::apply(self, stage)?;
        self.limits()?;
        self.capabilities()?;
        // Last: it forbids most of the above.
        for filter in &filters {
            seccompiler::apply_filter(filter)?;
        }
        Ok(())
    }

    fn refuse_the_unknown(&self) -> Result<()> {
        let applied: Vec<_> = mounts::APPLIED
            .iter()
            .chain(&filter::APPLIED)
            .chain(&["UMask", "LimitNOFILE", "CapabilityBoundingSet"])
            .collect();
        for key in self.settings.keys() {
            ensure!(
                applied.contains(&&key.as_str()) || NOT_APPLIED.contains(&key.as_str()),
                "{key}= is in the unit file, and the lab does not know how to try it: teach it"
            );
        }
        // The daemon must work without systemd's help here, and so says it for itself; the filter sets it too.
        ensure!(self.yes("NoNewPrivileges"), "the unit has no NoNewPrivileges=yes");
        Ok(())
    }

    fn limits(&self) -> Result<()> {
        if let Some(mask) = self.last("UMask") {
            umask(Mode::from_bits_truncate(u32::from_str_radix(mask, 8)?));
        }
        if let Some(files) = self.last("LimitNOFILE") {
            let files = files.parse()?;
            setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
        }
        Ok(())
    }

    /// The capabilities that the unit leaves.
    ///
    /// # Errors
    /// A name that is none, or a list of what is to be taken away instead.
    pub fn capability_set(&self) -> Result<u64> {
        let mut set = 0;
        for name in self.words("CapabilityBoundingSet") {
            let short = name.strip_prefix("CAP_").context("no capability")?;
            let one = CapabilitySet::from_name(short).with_context(|| format!("no capability: {name}"))?;
            set |= one.bits();
        }
        Ok(set)
    }

    /// What root has after the exec that follows is what is in the bounding set.
    fn capabilities(&self) -> Result<()> {
        let keep = self.capability_set()?;
        ensure!(keep != 0, "the unit has no CapabilityBoundingSet=");
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            if keep & one.bits() == 0
                && let Err(error) = rustix::thread::remove_capability_from_bounding_set(one)
            {
                // The end of those that this kernel has.
                if error == rustix::io::Errno::INVAL {
                    break;
                }
                bail!("dropping capability {bit}: {error}");
            }
        }
        Ok(())
    }
}

/// The unit file that the packages install.
pub fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/smtp-sentinel.service")
}

/// The drop-in for a Postfix in another network namespace.
pub fn shipped_for_other_networks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/systemd/smtp-sentinel.service.d/other-networks.conf.example")
}
