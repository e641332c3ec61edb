//! A Prometheus server in the lab: Debian's binary, with our own rules, on the loopback of the server's network namespace.
//! It is asked by promtool, which speaks its HTTP and prints JSON.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::deploy;
use crate::clock::wait_until;
use crate::netns::Namespace;

/// The namespace is the lab's own, so the port is free.
const ADDRESS: &str = "127.0.0.1:9090";
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it ends it; its data lie in the directory that it was given.
#[derive(Debug)]
pub struct Prometheus {
    process: Child,
    namespace: Namespace,
}

/// One series in a range of time, or at an instant with one value.
#[derive(Debug, Clone, Deserialize)]
pub struct Course {
    pub metric: BTreeMap<String, String>,
    /// Seconds since the epoch, and the value as Prometheus writes it.
    #[serde(default)]
    values: Vec<(f64, String)>,
}

impl Course {
    /// Times in seconds since the epoch, with finite values; NaN and infinities mean that there is nothing to draw.
    pub fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let numbers = self
            .values
            .iter()
            .filter_map(|(at, value)| Some((*at, value.parse::<f64>().ok()?)));
        numbers.filter(|(_, value)| value.is_finite())
    }

    /// The label's value, empty when there is none.
    pub fn label(&self, name: &str) -> &str {
        self.metric.get(name).map_or("", String::as_str)
    }
}

impl Prometheus {
    /// Starts it, scraping `target` every second into `base`, and waits until it has.
    ///
    /// # Errors
    /// No prometheus in PATH, or it refuses the configuration; its log is in the message.
    pub fn start(namespace: &Namespace, base: &Path, target: SocketAddr) -> Result<Self> {
        let base = base.join("prometheus");
        fs::create_dir(&base)?;
        let rules = deploy().join("prometheus/smtp-sentinel.rules.yml");
        let config = base.join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\n\
                 scrape_configs:\n- job_name: smtp-sentinel\n  static_configs: [{{targets: [\"{target}\"]}}]\n"
            ),
        )?;
        let log = base.join("log");
        let output = File::create(&log)?;
        // As with the daemon: it ends with the thread that starts it, which is the test's.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", namespace.path()))
            .arg("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", base.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting prometheus; `cargo xtask setup` brings it")?;
        let server = Self {
            process,
            namespace: namespace.handle()?,
        };
        let scraped = wait_until("Prometheus to scrape the daemon", PATIENCE, || {
            Ok(server.now("up == 1").is_ok_and(|found| !found.is_empty()))
        });
        scraped.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(server)
    }

    /// What `expression` gives from `start` to `end` (seconds since the epoch), each second.
    ///
    /// # Errors
    /// The expression is wrong.
    pub fn range(&self, expression: &str, start: f64, end: f64) -> Result<Vec<Course>> {
        let (start, end) = (format!("--start={start:.3}"), format!("--end={end:.3}"));
        self.query(&["range", &start, &end, "--step=1s"], expression)
    }

    /// What it gives now; the values themselves are left out.
    ///
    /// # Errors
    /// As [`Self::range`].
    pub fn now(&self, expression: &str) -> Result<Vec<Course>> {
        self.query(&["instant"], expression)
    }

    fn query(&self, kind: &[&str], expression: &str) -> Result<Vec<Course>> {
        let server = format!("http://{ADDRESS}");
        let words: Vec<_> = ["query", "--format=json"]
            .iter()
            .chain(kind)
            .copied()
            .chain([server.as_str(), expression])
            .collect();
        let answer = self.namespace.output("promtool", &words)?;
        serde_json::from_str(&answer).with_context(|| format!("promtool's answer to {expression}: {answer}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
