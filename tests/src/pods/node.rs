//! A node: namespaces in which containers run, and the podman that runs them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use super::images::{self, POSTFIX, SENTINEL};
use super::seccomp;
use crate::clock::wait_for;
use crate::netns::{self, Namespace};

/// Run by the first process of the node's namespaces. /run and /dev/shm are where podman and its locks live; the
/// directory of the node is mounted below the first, since podman bounds the length of paths. It tells that it is there
/// and lives on as one that reaps what containers leave.
const FIRST: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /run && mount -t tmpfs tmpfs /dev/shm && ip link set lo up &&
mkdir /run/node && mount --bind "$1" /run/node && echo up && exec catatonit -P >/dev/null
"#;

/// As the processes in the node see its directory.
const DIRECTORY: &str = "/run/node";

/// Run in the node. $1: a group. $2: the one process of a container that is made and not started yet, which is moved there, in
/// every hierarchy. With version 1 a new group has no processors until it is given some.
const MOVE: &str = r#"
set -e
awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts | while read -r group; do
    for part in $(echo "$1" | tr / ' '); do
        above=$group
        group=$group/$part
        mkdir -p "$group"
        for list in cpuset.cpus cpuset.mems; do
            if [ -e "$group/cgroup.clone_children" ] && [ -e "$group/$list" ] && [ -z "$(cat "$group/$list")" ]; then
                cat "$above/$list" >"$group/$list"
            fi
        done
    done
    echo "$2" >"$group/cgroup.procs"
done
"#;

/// podman's own images and containers.
const STORAGE: &str = "/run/node/storage";

/// Without the limits podman asks for more than a machine without CAP_SYS_RESOURCE has; crun 1.8 does not work with v1
/// and v2 cgroups side by side; there is no systemd and no journal to be asked.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// A node. Dropping it ends every process in it and removes its directory.
#[derive(Debug)]
pub struct Node {
    unshare: Child,
    first: u32,
    /// Below the cache of the images, so that both are on a file system that podman can put overlays on.
    directory: PathBuf,
    cgroup: String,
}

impl Node {
    /// # Errors
    /// Not root; or podman, runc and this machine do not get along. The message has their words.
    pub fn start() -> Result<Self> {
        netns::require_root()?;
        let cache = images::cache()?;
        fs::create_dir_all(&cache)?;
        let directory = tempfile::Builder::new().prefix("node-").tempdir_in(&cache)?;
        let mut unshare = Command::new("setpriv")
            // Ends with the thread that starts it, which is the test's, and takes the first process along.
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--net",
                "--pid",
                "--fork",
            ])
            .args(["--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", FIRST, "sh"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a node by setpriv and unshare (util-linux)")?;
        let mut line = String::new();
        let stdout = unshare.stdout.take().context("the node has no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        let name = directory.path().file_name().unwrap_or_default().to_string_lossy();
        let node = Self {
            first: children.trim().parse().unwrap_or_default(),
            cgroup: format!("sentinel-{name}"),
            directory: directory.keep(),
            unshare,
        };
        ensure!(
            line == "up\n" && node.first > 0,
            "the node did not come up; its words are above (ip, mount, catatonit)"
        );
        fs::write(node.directory.join("containers.conf"), CONTAINERS_CONF)?;
        seccomp::write(&node.directory.join("seccomp.json"))?;
        images::prepare(|words| said(words, &node.run(words)?))?;
        Ok(node)
    }

    /// A directory that goes with the node, as we see it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path below it as podman sees it.
    pub fn inside(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.directory).unwrap_or(path);
        format!("{DIRECTORY}/{}", below.display())
    }

    /// /proc of the node, whose process ids are those that podman tells and `hostPID` shows.
    pub fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/proc", self.first))
    }

    /// What all containers' cgroups are below, for `[discovery] cgroups`.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    pub(super) fn seccomp_profile(&self) -> String {
        format!("{DIRECTORY}/seccomp.json")
    }

    /// Runs podman in the node, with its own store and the shared one, and returns what it says.
    ///
    /// # Errors
    /// It fails; the message has its words.
    pub fn podman(&self, words: &[&str]) -> Result<String> {
        said(words, &self.output(words)?)
    }

    /// The same, whatever comes of it.
    pub(super) fn output(&self, words: &[&str]) -> Result<Output> {
        let store = format!("additionalimagestore={}", images::store()?.display());
        self.run(&[&["--root", STORAGE, "--storage-opt", &store], words].concat())
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        let output = self.command().args(words).output();
        output.context("running podman by nsenter; `cargo xtask setup` installs both")
    }

    /// A program in the node's namespaces.
    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string()])
            .args(["--mount", "--net", "--pid", program]);
        command
    }

    fn command(&self) -> Command {
        let mut command = self.enter("podman");
        command
            .args(["--runroot", "/run/containers", "--tmpdir", "/run/libpod"])
            .args(["--storage-driver", "overlay"])
            .env("CONTAINERS_CONF", format!("{DIRECTORY}/containers.conf"));
        command
    }

    /// Builds the sentinel's image of deploy/container/Containerfile, in this node's own store.
    ///
    /// # Errors
    /// The static binary is not built, or podman refuses.
    pub(super) fn build_sentinel(&self) -> Result<()> {
        let context = images::context()?;
        let file = crate::tools::repository("deploy/container/Containerfile");
        let words = ["build", "--quiet", "--tag", SENTINEL, "--file"];
        let paths = [file.to_string_lossy(), context.to_string_lossy()];
        self.podman(&[&words[..], &[&paths[0], &paths[1]]].concat())
            .map(drop)
    }

    /// Starts a container without a network of its own but loopback, and returns its process id here.
    pub(super) fn start_container(
        &self,
        name: &str,
        options: &[String],
        image_and_command: &[&str],
    ) -> Result<u32> {
        self.make(&["run", "--detach"], name, options, image_and_command)?;
        self.pid(name).with_context(|| self.logs(name))
    }

    /// The same, in the cgroup that a kubelet and containerd with the driver `cgroupfs` make: `kubepods/pod<UID>/<id>`.
    pub(super) fn start_in_pod(&self, name: &str, uid: &str, image: &str) -> Result<u32> {
        self.make(&["create"], name, &[], &[image])?;
        self.podman(&["init", name])?;
        let pid = self.pid(name)?;
        let group = format!("{}/kubepods/pod{uid}/{}", self.cgroup, self.id(name)?);
        let mut moving = self.enter("sh");
        moving.args(["-c", MOVE, "sh", &group, &pid.to_string()]);
        said(&["init"], &moving.output()?).context("moving a container into the group of a pod")?;
        self.podman(&["start", name])?;
        Ok(pid)
    }

    fn make(&self, verb: &[&str], name: &str, options: &[String], image_and_command: &[&str]) -> Result<()> {
        let parent = format!("--cgroup-parent=/{}", self.cgroup);
        let hostname = format!("--hostname={name}");
        let fixed = [
            "--name",
            name,
            "--network=none",
            "--pull=never",
            &parent,
            &hostname,
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.podman(&[verb, &fixed, &options, image_and_command].concat())
            .map(drop)
    }

    /// The 64 digits by which a container's cgroup is called.
    pub(super) fn id(&self, name: &str) -> Result<String> {
        self.podman(&["inspect", "--format", "{{.Id}}", name])
    }

    pub(super) fn start_postfix(&self, name: &str, options: &[String], command: &[&str]) -> Result<u32> {
        self.start_container(name, options, &[&[POSTFIX], command].concat())
    }

    fn pid(&self, name: &str) -> Result<u32> {
        let pid = self.podman(&["inspect", "--format", "{{.State.Pid}}", name])?;
        let pid: u32 = pid.parse()?;
        ensure!(pid > 0, "the container {name} ended at once");
        Ok(pid)
    }

    /// Runs a program of a container's own in its mount and pid namespaces: its /proc is of the latter.
    pub(super) fn run_in(&self, pid: u32, words: &[&str]) -> Result<()> {
        let mut command = self.enter("nsenter");
        command
            .args(["--target", &pid.to_string(), "--mount", "--pid"])
            .args(words);
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// What a container said, on both its outputs.
    pub fn logs(&self, name: &str) -> String {
        match self.output(&["logs", name]) {
            Ok(output) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Removes a container; its process ends by SIGTERM, or is killed after `patience` seconds.
    ///
    /// # Errors
    /// podman refuses.
    pub fn remove(&self, name: &str, patience: u32) -> Result<()> {
        self.podman(&["rm", "--force", "--time", &patience.to_string(), name])
            .map(drop)
    }

    /// The network namespace of a process.
    pub(super) fn network_of(&self, pid: u32) -> Result<Namespace> {
        Namespace::open(&self.proc().join(pid.to_string()).join("ns/net"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // podman itself takes the cgroups away; the namespaces' end takes the rest.
        let _ = self.podman(&["rm", "--force", "--all", "--time", "0"]);
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        // The processes in there are gone a moment after the first.
        let gone = wait_for(
            "the node's directory to be free",
            std::time::Duration::from_secs(10),
            || Ok(fs::remove_dir_all(&self.directory).is_ok().then_some(())),
        );
        if let Err(error) = gone {
            eprintln!("{error:#}: {}", self.directory.display());
        }
        remove_cgroups(&self.cgroup);
    }
}

/// What a podman that succeeded said.
fn said(words: &[&str], output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "podman {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// runc leaves the parent, and now and then the group of a container that was killed.
fn remove_cgroups(name: &str) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let hierarchies = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|words| words.get(2).is_some_and(|kind| kind.starts_with("cgroup")));
    for hierarchy in hierarchies {
        remove_group(&Path::new(hierarchy[1]).join(name));
    }
}

/// With those below it.
fn remove_group(group: &Path) {
    let inner = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_group(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
