//! A Postfix in a container, and its clients.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::images;
use super::node::Node;
use crate::attackers::{Attack, Attackers};
use crate::clock::wait_for;
use crate::netns::{self, Namespace};
use crate::senders::{Senders, Traffic};

pub use super::images::SLOTS;

const MASTER_CF: &str = "/etc/postfix/master.cf";

const PATIENCE: Duration = Duration::from_secs(60);

/// How people run Postfix in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `postfix start-fg` as the first process.
    First,
    /// Under a shell.
    UnderShell,
    /// With the whole root read-only, and memory where Postfix writes.
    ReadOnlyRoot,
    /// /etc/postfix is a ConfigMap: read-only, each file a link by way of `..data`.
    ConfigMap,
    /// master.cf alone is mounted, as subPath does it.
    File,
    /// The same, read-only.
    FileReadOnly,
    /// Its root is user 200000 of the node.
    UserNamespace,
    /// Its master.cf is a link to what the sentinel itself has at that place.
    Escape(&'static str),
}

/// A running pod with its clients. Its container goes with the node.
#[derive(Debug)]
pub struct Pod<'a> {
    // Fields drop in this order: nobody is connected when the namespaces go.
    clients: Namespace,
    server: Namespace,
    node: &'a Node,
    pub name: String,
    pid: u32,
}

impl<'a> Pod<'a> {
    /// Starts Postfix and joins its network to that of its clients.
    ///
    /// # Errors
    /// podman refuses, or Postfix does; the message has their words.
    pub fn start(node: &'a Node, name: &str, form: Form) -> Result<Self> {
        let (options, script) = form.options(node, name)?;
        let command: Vec<&str> = script
            .as_deref()
            .map_or(Vec::new(), |script| vec!["sh", "-c", script]);
        Self::of(node, name, node.start_postfix(name, &options, &command)?)
    }

    /// The same, in the cgroup that the kubelet makes for the pod of this uid.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in_pod(node: &'a Node, name: &str, uid: &str) -> Result<Self> {
        Self::of(node, name, node.start_in_pod(name, uid, images::POSTFIX)?)
    }

    fn of(node: &'a Node, name: &str, pid: u32) -> Result<Self> {
        let pod = Self {
            clients: Namespace::new()?,
            server: node.network_of(pid)?,
            node,
            name: name.to_owned(),
            pid,
        };
        netns::join(&pod.server, &pod.clients)?;
        wait_for("Postfix to start in its container", PATIENCE, || {
            ensure!(pod.path("/").exists(), "the container ended");
            Ok((pod.log().contains("daemon started")).then_some(()))
        })
        .with_context(|| format!("{name}: {}\n{}", node.logs(name), pod.log()))?;
        Ok(pod)
    }

    /// The id by which podman, its cgroup and so the sentinel know the container: the first twelve digits.
    ///
    /// # Errors
    /// It is gone.
    pub fn short_id(&self) -> Result<String> {
        Ok(self.id()?.chars().take(12).collect())
    }

    /// The whole of it.
    ///
    /// # Errors
    /// It is gone.
    pub fn id(&self) -> Result<String> {
        self.node.id(&self.name)
    }

    /// A file as the container has it.
    pub fn path(&self, path: &str) -> PathBuf {
        let root = self.node.proc().join(self.pid.to_string()).join("root");
        root.join(path.trim_start_matches('/'))
    }

    /// The bytes of master.cf as this Postfix reads them.
    ///
    /// # Errors
    /// It is not there, even for a moment.
    pub fn master_cf(&self) -> Result<Vec<u8>> {
        let path = self.path(MASTER_CF);
        // The kernel would follow an absolute link from our own root.
        let path = match fs::read_link(&path) {
            Ok(target) if target.is_absolute() => self.path(&target.to_string_lossy()),
            _ => path,
        };
        fs::read(path).context("reading a pod's master.cf")
    }

    /// Mounts master.cf over itself: as long as it is covered so, nobody can put another file in its place.
    ///
    /// # Errors
    /// The container has no mount(8), or may not.
    pub fn cover_master_cf(&self) -> Result<()> {
        self.node
            .run_in(self.pid, &["mount", "--bind", MASTER_CF, MASTER_CF])
    }

    /// Takes that mount away.
    ///
    /// # Errors
    /// There is none.
    pub fn uncover_master_cf(&self) -> Result<()> {
        self.node.run_in(self.pid, &["umount", MASTER_CF])
    }

    /// The mail log so far.
    pub fn log(&self) -> String {
        fs::read(self.path("/var/log/mail.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How many times master has re-read its configuration.
    pub fn reloads(&self) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains("reload -- version"))
            .count()
    }

    /// What is mounted below /etc/postfix, as the container has it.
    ///
    /// # Errors
    /// It is gone.
    pub fn mounts(&self) -> Result<BTreeSet<String>> {
        let text = fs::read_to_string(self.node.proc().join(format!("{}/mountinfo", self.pid)))?;
        let mounts = text.lines().filter(|line| line.contains(" /etc/postfix"));
        Ok(mounts.map(str::to_owned).collect())
    }

    /// Whether an smtpd of this container has `-o stress=yes` by its master.cf.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn has_stressed_smtpd(&self) -> Result<bool> {
        let proc = self.node.proc();
        let own = fs::read_link(proc.join(format!("{}/ns/pid", self.pid)))?;
        let processes = fs::read_dir(&proc)?.flatten().map(|entry| entry.path());
        // A process may go while it is read; then it is none.
        Ok(processes
            .filter(|process| fs::read_link(process.join("ns/pid")).is_ok_and(|namespace| namespace == own))
            .filter_map(|process| fs::read(process.join("cmdline")).ok())
            .any(|line| {
                let words: Vec<_> = line.split(|&byte| byte == 0).collect();
                words.first() == Some(&&b"smtpd"[..]) && words.contains(&&b"stress=yes"[..])
            }))
    }

    /// # Errors
    /// Their thread cannot be started.
    pub fn attack(&self, attack: Attack) -> Result<Attackers> {
        Attackers::start(&self.clients, attack)
    }

    /// # Errors
    /// Their thread cannot be started.
    pub fn senders(&self, traffic: Traffic) -> Result<Senders> {
        Senders::start(&self.clients, traffic)
    }
}

impl Form {
    /// The words for podman, and the script that is its command where it is not the image's.
    fn options(self, node: &Node, name: &str) -> Result<(Vec<String>, Option<String>)> {
        let own = node.directory().join(name);
        let inside = |path: &Path| node.inside(path);
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Ok(match self {
            Self::First => (Vec::new(), None),
            // The second command keeps the shell from becoming the first.
            Self::UnderShell => (Vec::new(), Some("postfix start-fg; true".to_owned())),
            // podman fills the memory with what the image has there, but for the owner of the directory itself.
            Self::ReadOnlyRoot => (
                words(&[
                    "--read-only",
                    "--tmpfs=/var/spool/postfix",
                    "--tmpfs=/var/lib/postfix",
                    "--tmpfs=/var/log",
                ]),
                Some("chown postfix /var/lib/postfix && exec postfix start-fg".to_owned()),
            ),
            Self::ConfigMap => {
                let version = own.join("..2026_01_01");
                images::etc_postfix(&version)?;
                as_config_map(&own, "..2026_01_01")?;
                (vec![format!("--volume={}:/etc/postfix:ro", inside(&own))], None)
            }
            Self::File | Self::FileReadOnly => {
                fs::create_dir(&own)?;
                images::configure(&own)?;
                let file = inside(&own.join("master.cf"));
                let mode = if self == Self::File { "rw" } else { "ro" };
                (
                    vec![format!("--volume={file}:/etc/postfix/master.cf:{mode}")],
                    None,
                )
            }
            Self::UserNamespace => (
                words(&["--uidmap=0:200000:65536", "--gidmap=0:200000:65536"]),
                None,
            ),
            Self::Escape(to) => {
                let script = format!(
                    "mkdir -p $(dirname {to}) && mv /etc/postfix/master.cf {to} && ln -s {to} /etc/postfix/master.cf && \
                     exec postfix start-fg"
                );
                (Vec::new(), Some(script))
            }
        })
    }
}

/// What the kubelet makes of a ConfigMap: the files in a directory of this version, `..data` a link to that, and each
/// name a link by way of it.
pub(super) fn as_config_map(volume: &Path, version: &str) -> Result<()> {
    symlink(version, volume.join("..data"))?;
    for entry in fs::read_dir(volume.join(version))? {
        let name = entry?.file_name();
        symlink(Path::new("..data").join(&name), volume.join(&name))?;
    }
    Ok(())
}
