//! The manifests for Kubernetes as kustomize and helm render them, and what the API server would say to their form.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::tools;

/// The oldest version that the manifests are for, and the newest that the validator knows.
pub const VERSIONS: [&str; 2] = ["1.25", "1.37"];

/// One rendering: the text that would be applied.
#[derive(Debug)]
pub struct Rendered {
    pub text: String,
}

/// `kubectl kustomize DIRECTORY`.
///
/// # Errors
/// It refuses; the message has its words.
pub fn kustomize(directory: &std::path::Path) -> Result<Rendered> {
    let mut kubectl = Command::new(tools::unpacked("kubectl")?);
    Rendered::by(kubectl.arg("kustomize").arg(directory))
}

/// `deploy/kubernetes`, as it is applied.
///
/// # Errors
/// As [`kustomize`].
pub fn plain() -> Result<Rendered> {
    kustomize(&tools::repository("deploy/kubernetes"))
}

/// `helm template smtp-sentinel CHART --namespace smtp-sentinel SETTINGS`.
///
/// # Errors
/// It refuses, as it does values that the schema forbids; the message has its words.
pub fn chart(settings: &[&str]) -> Result<Rendered> {
    let mut helm = Command::new(tools::unpacked("helm")?);
    helm.args(["template", "smtp-sentinel"])
        .arg(chart_directory())
        .args(["--namespace", "smtp-sentinel"])
        .args(settings);
    Rendered::by(&mut helm)
}

pub fn chart_directory() -> PathBuf {
    tools::repository("deploy/helm/smtp-sentinel")
}

impl Rendered {
    fn by(command: &mut Command) -> Result<Self> {
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self {
            text: String::from_utf8(output.stdout)?,
        })
    }

    /// The documents, read as Kubernetes reads YAML: 0444 is octal.
    ///
    /// # Errors
    /// It is no YAML.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let objects: Vec<Value> = serde_saphyr::from_multiple_with_options(&self.text, options)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
    }

    /// The one object of this kind.
    ///
    /// # Errors
    /// There is none, or it is of another shape than `T`.
    pub fn object<T: DeserializeOwned>(&self, kind: &str) -> Result<T> {
        let objects = self.objects()?;
        let object = objects.into_iter().find(|object| object["kind"] == kind);
        let object = object.with_context(|| format!("there is no {kind}"))?;
        serde_json::from_value(object).with_context(|| format!("the {kind} is of another shape"))
    }

    /// What is wrong with it in the eyes of a version of Kubernetes, unknown fields included; empty when nothing is. A
    /// kind without a schema is said too.
    ///
    /// # Errors
    /// The validator cannot be run.
    pub fn faults(&self, version: &str) -> Result<Vec<String>> {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        file.write_all(self.text.as_bytes())?;
        let output = Command::new(tools::unpacked("kubernetes-validate/bin/kubernetes-validate")?)
            .args(["--strict", "--quiet", "-k", version])
            .arg(file.path())
            .output()?;
        let words = [output.stdout, output.stderr].concat();
        let faults: Vec<String> = String::from_utf8_lossy(&words)
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("INFO"))
            .map(str::to_owned)
            .collect();
        ensure!(
            output.status.success() || !faults.is_empty(),
            "the validator failed and said nothing ({})",
            output.status
        );
        Ok(faults)
    }
}
