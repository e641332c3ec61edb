//! Plays an episode in the lab under the eyes of a Prometheus, and draws docs/episode.svg: what the Grafana dashboard shows of
//! it, by the dashboard's own expressions. `cargo xtask dashboard` builds the daemon first and runs this as root.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sentinel_lab::monitoring::{dashboard, episode, picture};
use sentinel_lab::netns;

fn main() -> Result<()> {
    netns::require_root()?;
    println!("Calm, attack, trip, sheds, clear: about a minute and a half.");
    let episode = episode::play(episode::Pace {
        calm: Duration::from_secs(15),
        flood: Duration::from_secs(20),
        after: Duration::from_secs(15),
    })?;
    let answers = episode.ask(&dashboard::panels("5s")?)?;
    let svg = picture::draw(&answers, episode.start..episode.end)?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/episode.svg");
    fs::write(&file, svg).with_context(|| format!("writing {}", file.display()))?;
    println!("drawn: docs/episode.svg");
    Ok(())
}
