//! The sentinel's container: the image of deploy/container, under what the DaemonSet says and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use smtp_sentinel::status::{Instance, Report};

use super::cluster::{Cluster, NODE_NAME};
use super::images::SENTINEL;
use super::manifest::{self, PodSpec, SecurityContext, Source};
use super::node::Node;
use super::pod::{Pod, as_config_map};
use crate::clock::wait_for;
use crate::manifests;
use crate::metrics::Scrape;
use crate::netns::Namespace;
use crate::sentinel::{Answer, Entry, get};

const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "smtp-sentinel";

/// What the manifest's configuration has and a lone node has not, and the other way round.
const CGROUPS: &str = "cgroups = [\"kubepods\", \"kubepods.slice\"]";
const WITHOUT_API: &str = "without_api = \"enforce\"";

/// As the image has it.
const PROGRAM: &str = "/smtp-sentinel";

/// What the DaemonSet makes of the image on one node, and what a test leaves out of it.
#[derive(Debug)]
pub struct Plan<'a> {
    node: &'a Node,
    pod: PodSpec,
    configuration: String,
    /// What the kubelet adds to what the manifest says.
    given: Vec<String>,
}

/// The running daemon. Its container goes with the node.
#[derive(Debug)]
pub struct Sentinel<'a> {
    node: &'a Node,
    network: Namespace,
    pid: u32,
    config: String,
    grace: u32,
}

impl<'a> Plan<'a> {
    /// Reads the manifests. The configuration is theirs but for what a test has to be sure of: it acts, on this node's
    /// containers alone, and soon.
    ///
    /// # Errors
    /// They do not render, or have something that is not known here.
    pub fn read(node: &'a Node) -> Result<Self> {
        let rendered = manifests::plain()?;
        node.build_sentinel()?;
        let mut configuration = manifest::configuration(&rendered)?;
        for (theirs, ours) in [
            (CGROUPS, format!("cgroups = [{:?}]", node.cgroup())),
            ("enabled = true", format!("enabled = true\n{WITHOUT_API}")),
            (
                "mode = \"observe\"",
                "mode = \"enforce\"\nmin_interval = \"1s\"".to_owned(),
            ),
        ] {
            ensure!(configuration.contains(theirs), "no {theirs} in:\n{configuration}");
            configuration = configuration.replace(theirs, &ours);
        }
        configuration.push_str("\n[detect]\ndwell = \"3s\"\ntrip_dwell = \"1s\"\n");
        Ok(Self {
            node,
            pod: manifest::pod(&rendered)?,
            configuration,
            given: Vec::new(),
        })
    }

    /// In a cluster: pods are found by the groups of the kubelet, and without the API there is no leave to act. Who floods
    /// stays: nothing is shed, so that the API alone decides when stress mode ends.
    #[must_use]
    pub fn in_cluster(mut self, cluster: &Cluster) -> Self {
        let of_node = format!("cgroups = [{:?}]", self.node.cgroup());
        self.configuration = self
            .configuration
            .replace(&of_node, CGROUPS)
            .replace(WITHOUT_API, "")
            .replace("[act]\n", "[act]\nshed = false\n");
        self.given = cluster.gives(self.node);
        self
    }

    /// The capabilities that are added, without `CAP_`.
    pub fn capabilities(&self) -> &[String] {
        &self.pod.containers[0].security_context.capabilities.add
    }

    /// The state directory, which is the node's.
    pub fn state_directory(&self) -> PathBuf {
        self.own("/var/lib/smtp-sentinel")
    }

    /// What stands in for a directory of the node, or holds what the kubelet makes.
    fn own(&self, at: &str) -> PathBuf {
        self.node.directory().join("sentinel").join(at.replace('/', "-"))
    }

    /// Starts it, without `left_out` of the capabilities, and waits until it is ready, as the kubelet's probe does.
    ///
    /// # Errors
    /// podman refuses, or the daemon; the message has its words.
    pub fn start(&self, left_out: &[&str]) -> Result<Sentinel<'a>> {
        let options = self.options(left_out)?;
        let mut command = vec![SENTINEL];
        command.extend(self.pod.containers[0].args.iter().map(String::as_str));
        let pid = self.node.start_container(NAME, &options, &command)?;
        let config = self.pod.containers[0]
            .args
            .iter()
            .skip_while(|word| *word != "--config")
            .nth(1);
        let sentinel = Sentinel {
            node: self.node,
            network: self.node.network_of(pid)?,
            pid,
            config: config.context("the DaemonSet names no --config")?.clone(),
            grace: self.pod.termination_grace_period_seconds,
        };
        wait_for("the sentinel's container to be ready", PATIENCE, || {
            Ok(sentinel
                .get("/readyz")
                .is_ok_and(|(status, _)| status == 200)
                .then_some(()))
        })
        .with_context(|| sentinel.log())?;
        Ok(sentinel)
    }

    fn options(&self, left_out: &[&str]) -> Result<Vec<String>> {
        let container = &self.pod.containers[0];
        let mut options = self.security(&container.security_context, left_out)?;
        ensure!(self.pod.host_pid, "without hostPID it sees no other pod");
        options.push("--pid=host".to_owned());
        for variable in &container.env {
            options.push(format!("--env={}={NODE_NAME}", variable.name));
        }
        for (limit, value) in &container.resources.limits {
            options.push(match limit.as_str() {
                "memory" => format!("--memory={}", value.replace("Mi", "m")),
                "cpu" => format!("--cpus={value}"),
                other => bail!("what does a limit of {other} mean for podman?"),
            });
        }
        let volumes: BTreeMap<_, _> = self
            .pod
            .volumes
            .iter()
            .map(|one| (&one.name, &one.source))
            .collect();
        for mount in &container.volume_mounts {
            let source = volumes
                .get(&mount.name)
                .with_context(|| format!("no volume {}", mount.name))?;
            options.push(self.volume(source, &mount.mount_path, mount.read_only)?);
        }
        options.extend(self.given.iter().cloned());
        Ok(options)
    }

    fn security(&self, context: &SecurityContext, left_out: &[&str]) -> Result<Vec<String>> {
        ensure!(!context.privileged && !context.allow_privilege_escalation);
        ensure!(context.read_only_root_filesystem && context.capabilities.drop == ["ALL"]);
        ensure!(
            context
                .seccomp_profile
                .get("type")
                .is_some_and(|kind| kind == "RuntimeDefault"),
            "a seccomp profile that is not known here"
        );
        let mut options = vec![
            format!("--user={}:{}", context.run_as_user, context.run_as_group),
            "--security-opt=no-new-privileges".to_owned(),
            format!("--security-opt=seccomp={}", self.node.seccomp_profile()),
            "--read-only".to_owned(),
            // podman's own addition: memory on /tmp, /run and /var/tmp, which Kubernetes does not give.
            "--read-only-tmpfs=false".to_owned(),
            "--cap-drop=ALL".to_owned(),
        ];
        let added = &context.capabilities.add;
        for name in left_out {
            ensure!(
                added.iter().any(|one| one == name),
                "{name} is not in the DaemonSet"
            );
        }
        let kept = added.iter().filter(|name| !left_out.contains(&name.as_str()));
        options.extend(kept.map(|name| format!("--cap-add=CAP_{name}")));
        Ok(options)
    }

    /// A volume as the kubelet makes it; a directory of the node that is written to lies below the test's own.
    fn volume(&self, source: &Source, at: &str, read_only: bool) -> Result<String> {
        let own = self.own(at);
        let mode = if read_only { "ro" } else { "rw" };
        Ok(match source {
            Source::EmptyDir { medium, size_limit } => {
                ensure!(medium == "Memory" && !read_only);
                format!("--tmpfs={at}:rw,size={},mode=0777", size_limit.replace("Mi", "m"))
            }
            Source::HostPath { path } if read_only => format!("--volume={path}:{at}:{mode}"),
            Source::HostPath { .. } => {
                fs::create_dir_all(&own)?;
                format!("--volume={}:{at}:{mode}", self.node.inside(&own))
            }
            Source::ConfigMap { default_mode } => {
                if !own.exists() {
                    let version = own.join("..2026_01_01");
                    fs::create_dir_all(&version)?;
                    let file = version.join("config.toml");
                    fs::write(&file, &self.configuration)?;
                    let mode = std::os::unix::fs::PermissionsExt::from_mode(*default_mode);
                    fs::set_permissions(file, mode)?;
                    as_config_map(&own, "..2026_01_01")?;
                }
                format!("--volume={}:{at}:{mode}", self.node.inside(&own))
            }
        })
    }
}

impl Sentinel<'_> {
    pub(super) fn network(&self) -> &Namespace {
        &self.network
    }

    /// GET of its HTTP server.
    ///
    /// # Errors
    /// Nobody listens, or it is no HTTP.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.network
            .run(|| get(SocketAddr::from((Ipv4Addr::LOCALHOST, 9825)), path))
    }

    /// # Errors
    /// No answer, or not the contract.
    pub fn status(&self) -> Result<Report> {
        let (status, body) = self.get("/api/v1/status")?;
        ensure!(status == 200, "/api/v1/status: {status}: {body}");
        serde_json::from_str(&body).with_context(|| body.clone())
    }

    /// # Errors
    /// No answer, or not the text format.
    pub fn metrics(&self) -> Result<Scrape> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics: {status}: {body}");
        Scrape::parse(&body)
    }

    /// A command in the running container, as `kubectl exec` gives it.
    ///
    /// # Errors
    /// It could not be run at all; what it says is in the answer.
    pub fn ask(&self, words: &[&str]) -> Result<Answer> {
        let head = ["exec", NAME, PROGRAM];
        let output = self
            .node
            .output(&[&head[..], words, &["--config", &self.config]].concat())?;
        Ok(output.into())
    }

    /// # Errors
    /// As [`Self::ask`].
    pub fn history(&self) -> Result<Vec<Entry>> {
        self.ask(&["history", "--json"])?.history()
    }

    /// Waits until the Postfix of a pod is as wanted, and returns it.
    ///
    /// # Errors
    /// It did not come to pass; the message has its last state.
    pub fn wait(&self, pod: &Pod<'_>, what: &str, wanted: impl Fn(&Instance) -> bool) -> Result<Instance> {
        let id = pod.short_id()?;
        let mut last = None;
        wait_for(&format!("{} {what}", pod.name), PATIENCE, || {
            let instances = self.status()?.instances;
            last = instances
                .into_iter()
                .find(|one| one.container.as_ref().is_some_and(|its| its.name == id));
            Ok(last.clone().filter(&wanted))
        })
        .with_context(|| format!("last seen as {last:#?}\n{}", self.log()))
    }

    /// The lines of /proc/PID/status by name.
    ///
    /// # Errors
    /// It is gone.
    pub fn process(&self) -> Result<BTreeMap<String, String>> {
        let text = fs::read_to_string(self.node.proc().join(format!("{}/status", self.pid)))?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        Ok(lines
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect())
    }

    pub fn log(&self) -> String {
        self.node.logs(NAME)
    }

    /// Ends it as the kubelet does: SIGTERM, and at most the grace period.
    ///
    /// # Errors
    /// podman refuses.
    pub fn terminate(self) -> Result<()> {
        self.node.remove(NAME, self.grace)
    }
}
