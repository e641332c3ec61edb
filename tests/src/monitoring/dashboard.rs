//! The Grafana dashboard, as far as a Prometheus is concerned: its panels and what they ask.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::deploy;

/// A panel, or an annotation, which is asked for in the same way.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub title: String,
    /// Expressions in the order of the targets, ready for Prometheus.
    pub expressions: Vec<String>,
}

#[derive(Deserialize)]
struct Board {
    panels: Vec<RawPanel>,
    annotations: Annotations,
}

#[derive(Deserialize)]
struct RawPanel {
    title: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    expr: String,
}

#[derive(Deserialize)]
struct Annotations {
    list: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    name: String,
    expr: String,
}

/// The file that people import.
pub fn file() -> PathBuf {
    deploy().join("grafana/smtp-sentinel.json")
}

/// Every panel and annotation, with Grafana's variables filled in as "All" and the rate interval as `interval`.
///
/// # Errors
/// The file is not there, is no dashboard, or has a variable that is not known here.
pub fn panels(interval: &str) -> Result<Vec<Panel>> {
    let text = fs::read_to_string(file())?;
    let board: Board = serde_json::from_str(&text).context("deploy/grafana/smtp-sentinel.json")?;
    let fill = |expression: &str| {
        let filled = ["$instance", "$postfix", "$service"]
            .iter()
            .fold(expression.to_owned(), |text, variable| {
                text.replace(variable, ".*")
            })
            .replace("$__rate_interval", interval);
        ensure!(
            !filled.contains('$'),
            "a variable that Grafana alone knows is in: {filled}"
        );
        Ok(filled)
    };
    let panels = board.panels.into_iter().map(|panel| {
        let expressions = panel.targets.iter().map(|target| fill(&target.expr));
        Ok(Panel {
            title: panel.title,
            expressions: expressions.collect::<Result<_>>()?,
        })
    });
    let annotations = board.annotations.list.into_iter().map(|annotation| {
        Ok(Panel {
            expressions: vec![fill(&annotation.expr)?],
            title: annotation.name,
        })
    });
    panels.chain(annotations).collect()
}
