//! The cluster that a node is of, as far as its containers see one: the API server in the network of the daemon's container,
//! the service account that the kubelet mounts there, and the groups that it makes for pods.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::Result;
use sentinel_cluster::ApiServer;
use serde_json::{Value, json};

use super::node::Node;
use super::pod::{Pod, as_config_map};
use super::sentinel::Sentinel;

/// What `spec.nodeName` of the daemon's pod and of all others is.
pub const NODE_NAME: &str = "lab";

/// Where the kubelet mounts the service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Of the API server, on the loopback of the daemon's container: its own network has no way out.
const PORT: u16 = 6443;

/// The cluster. Its API server is nowhere until it is opened.
pub struct Cluster {
    pub server: ApiServer,
    account: PathBuf,
}

impl Cluster {
    /// # Errors
    /// The directory of the node cannot be written.
    pub fn new(node: &Node) -> Result<Self> {
        let server = ApiServer::closed();
        let account = node.directory().join("account");
        // A projected volume is laid out as a ConfigMap is.
        let version = account.join("..2026_01_01");
        fs::create_dir_all(&version)?;
        for name in ["token", "ca.crt"] {
            fs::copy(server.account().join(name), version.join(name))?;
        }
        as_config_map(&account, "..2026_01_01")?;
        Ok(Self { server, account })
    }

    /// What the kubelet gives to every container, beside what its manifest says.
    pub(super) fn gives(&self, node: &Node) -> Vec<String> {
        vec![
            format!("--env=KUBERNETES_SERVICE_HOST={}", Ipv4Addr::LOCALHOST),
            format!("--env=KUBERNETES_SERVICE_PORT={PORT}"),
            format!("--volume={}:{ACCOUNT}:ro", node.inside(&self.account)),
        ]
    }

    /// The API server is there, for this daemon.
    ///
    /// # Errors
    /// Its network cannot be entered.
    pub fn open(&mut self, sentinel: &Sentinel<'_>) -> Result<()> {
        let bind = || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?);
        self.server.listen(sentinel.network().run(bind)?);
        Ok(())
    }

    /// Creates the pod in the API, or replaces it: with this annotation, or without any.
    ///
    /// # Errors
    /// It is gone.
    pub fn put(&self, pod: &Pod<'_>, namespace: &str, uid: &str, mode: Option<&str>) -> Result<()> {
        self.server
            .put(object(&pod.name, namespace, uid, &pod.id()?, mode));
        Ok(())
    }
}

/// `v1.Pod`, with one container that is called postfix.
fn object(name: &str, namespace: &str, uid: &str, container: &str, mode: Option<&str>) -> Value {
    let annotations = mode.map_or(json!({}), |mode| json!({"smtp-sentinel.io/mode": mode}));
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "annotations": annotations},
        "spec": {"nodeName": NODE_NAME, "containers": [{"name": "postfix"}]},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "postfix", "containerID": format!("containerd://{container}")}]},
    })
}
