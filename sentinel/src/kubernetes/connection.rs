//! Where the API server is, and what proves to it who we are: what the kubelet gives to a pod.
//!
//! No name is resolved: the static binary has no resolver, and one that is down must not take this down. Only the service
//! account's certificate is trusted, and none of the system, of which the image has none.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, io};

use http_body_util::Limited;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::util::MapResponseLayer;

use super::names::{Name, bounded};

/// The pods of a full node are about a megabyte. A tenant can fill the annotations of its pods with 256 KiB each, and must
/// not fill our memory with it.
const RESPONSE_MAX: usize = 16 << 20;

/// Where the kubelet mounts the service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What it takes to ask.
#[derive(Debug, Clone)]
pub struct Connection {
    pub server: SocketAddr,
    /// Has the files `token` and `ca.crt`; both are read again when the kubelet renews them.
    pub account: PathBuf,
    pub node: Name,
}

/// Why the API cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0} is not set: this is no pod, or its manifest does not set it")]
    NotSet(&'static str),
    #[error("{0} is {1:?}, which is no {2}")]
    Invalid(&'static str, String, &'static str),
    #[error(
        "cannot read the service account's {}: {source}; let the pod have its token (automountServiceAccountToken)",
        path.display()
    )]
    Account { path: PathBuf, source: io::Error },
    #[error("cannot set up the connection to the API server: {0}")]
    Client(String),
}

impl Connection {
    /// As the environment of this pod says.
    ///
    /// # Errors
    /// This is no pod, or one whose manifest lacks something.
    pub fn of_this_pod() -> Result<Self, ConnectionError> {
        Self::of(|name| env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConnectionError> {
        let get = |name| variable(name).ok_or(ConnectionError::NotSet(name));
        let invalid = |name, text: &str, what| ConnectionError::Invalid(name, bounded(text, 100), what);
        let host = get("KUBERNETES_SERVICE_HOST")?;
        let port = get("KUBERNETES_SERVICE_PORT")?;
        let node = get("NODE_NAME")?;
        let ip: IpAddr = host
            .parse()
            .map_err(|_| invalid("KUBERNETES_SERVICE_HOST", &host, "IP address"))?;
        let port: u16 = port
            .parse()
            .map_err(|_| invalid("KUBERNETES_SERVICE_PORT", &port, "port"))?;
        // It becomes part of a selector, in which a comma begins another condition.
        let node = Name::subdomain(&node).ok_or_else(|| invalid("NODE_NAME", &node, "name of a node"))?;
        Ok(Self {
            server: SocketAddr::new(ip, port),
            account: PathBuf::from(ACCOUNT),
            node,
        })
    }

    /// # Errors
    /// The service account cannot be read.
    pub(super) fn client(&self) -> Result<Client, ConnectionError> {
        let failed =
            |error: &dyn std::fmt::Display| ConnectionError::Client(bounded(&error.to_string(), 200));
        let token = readable(self.account.join("token"))?;
        let roots = readable(self.account.join("ca.crt"))?;
        let url = format!("https://{}", self.server);
        let mut config = Config::new(url.parse().map_err(|error| failed(&error))?);
        config.root_cert_file = Some(roots);
        // With no list of its own it would begin with the certificates of the system, and end with that where there are none,
        // as in the image. An empty one trusts nobody; the file, which is read again each minute, decides instead of it.
        config.root_cert = Some(Vec::new());
        config.auth_info.token_file = Some(token.to_string_lossy().into_owned());
        config.connect_timeout = Some(Duration::from_secs(10));
        // It would wait for as long as the server's Retry-After says, and try 15 times.
        config.default_retry = false;
        let layer = MapResponseLayer::new(|response: hyper::Response<_>| {
            response.map(|body| Limited::new(body, RESPONSE_MAX))
        });
        let builder = ClientBuilder::try_from(config).map_err(|error| failed(&error))?;
        Ok(builder.with_layer(&layer).build::<Limited<_>>())
    }
}

/// Tried here, since the client's own complaint does not say what to do.
fn readable(path: PathBuf) -> Result<PathBuf, ConnectionError> {
    match open(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(ConnectionError::Account { path, source }),
    }
}

fn open(path: &Path) -> io::Result<()> {
    std::fs::File::open(path).map(drop)
}

/// A failed request in one bounded line, with what to do about it where that is known.
pub(super) fn describe(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else {
        return bounded(&chain(error), 300);
    };
    let advice = match status.code {
        401 => "; the token of the service account is not accepted",
        403 => "; give the service account the role of deploy/kubernetes",
        _ => "",
    };
    format!(
        "the API server says {} {}: {}{advice}",
        status.code,
        bounded(&status.reason, 40),
        bounded(&status.message, 240),
    )
}

/// The error and what it came from; hyper's own words end where it gets interesting.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(changed: &[(&str, Option<&str>)]) -> Result<Connection, String> {
        let plain = [
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("NODE_NAME", "worker-1.example"),
        ];
        Connection::of(|name| {
            let change = changed.iter().find(|(key, _)| *key == name);
            match change {
                Some((_, value)) => value.map(str::to_owned),
                None => plain
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned()),
            }
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_of_a_pod_is_enough() {
        let connection = of(&[]).unwrap();
        assert_eq!(connection.server, "10.96.0.1:443".parse().unwrap());
        assert_eq!(connection.node.as_str(), "worker-1.example");
        let v6 = of(&[("KUBERNETES_SERVICE_HOST", Some("fd00::1"))]).unwrap();
        assert_eq!(v6.server, "[fd00::1]:443".parse().unwrap());
    }

    #[test]
    fn what_the_environment_lacks_is_said_by_its_name() {
        for (name, value, words) in [
            ("KUBERNETES_SERVICE_HOST", None, "is not set"),
            ("NODE_NAME", None, "is not set"),
            (
                "KUBERNETES_SERVICE_HOST",
                Some("kubernetes.default.svc"),
                "is no IP address",
            ),
            ("KUBERNETES_SERVICE_PORT", Some("https"), "is no port"),
            ("NODE_NAME", Some("a,status.phase=Failed"), "is no name of a node"),
        ] {
            let said = of(&[(name, value)]).unwrap_err();
            assert!(said.contains(name) && said.contains(words), "{said}");
        }
    }

    #[test]
    fn an_account_that_is_not_mounted_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut connection = of(&[]).unwrap();
        connection.account = directory.path().to_owned();
        let said = connection.client().err().unwrap().to_string();
        assert!(
            said.contains("token") && said.contains("automountServiceAccountToken"),
            "{said}"
        );
    }
}
