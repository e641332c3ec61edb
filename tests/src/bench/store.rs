//! Where results lie: one JSON file a profile, the newest run of it, and tables and pictures made from all of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::reaction::{self, Reaction};
use super::report::Outcome;
use super::{docs, plot, profiles, table};

const REACTION: &str = "reaction.json";

/// A directory of results.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// # Errors
    /// The directory cannot be made.
    pub fn open(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        own_like_parent(&directory)?;
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps a run in place of the last one of its profile, with its table and picture.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn keep(&self, outcome: &Outcome) -> Result<()> {
        let file = |end: &str| self.directory.join(format!("{}.{end}", outcome.profile));
        write(&file("json"), &(serde_json::to_string(outcome)? + "\n"))?;
        write(&file("svg"), &plot::draw(outcome)?)?;
        write(&self.directory.join("tables.md"), &self.tables())
    }

    /// The newest run of each profile, in the order of the profiles; what cannot be read is left out, and said so.
    pub fn outcomes(&self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for profile in profiles::all() {
            let path = self.directory.join(format!("{}.json", profile.name));
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            match serde_json::from_str(&text) {
                Ok(outcome) => outcomes.push(outcome),
                // Most likely an older benchmark wrote it; that is no reason to lose the run of today.
                Err(error) => eprintln!("{} is left out: {error}", path.display()),
            }
        }
        outcomes
    }

    /// Keeps how soon the daemon acts, in place of what was there.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn keep_reaction(&self, reaction: &Reaction) -> Result<()> {
        write(
            &self.directory.join(REACTION),
            &(serde_json::to_string(reaction)? + "\n"),
        )
    }

    /// `None` where it was not measured.
    pub fn reaction(&self) -> Option<Reaction> {
        let text = fs::read_to_string(self.directory.join(REACTION)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Puts tables and pictures of all runs into the page `docs/benchmark.md` below `root`.
    ///
    /// # Errors
    /// The page lacks a part, or a file cannot be written.
    pub fn publish(&self, root: &Path) -> Result<()> {
        let path = root.join("docs/benchmark.md");
        let pictures = root.join("docs/benchmark");
        fs::create_dir_all(&pictures)?;
        own_like_parent(&pictures)?;
        let mut page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let outcomes = self.outcomes();
        page = docs::replace(&page, "summary", &table::summary(&outcomes))?;
        if let Some(reaction) = self.reaction() {
            page = docs::replace(&page, "reaction", &reaction::table(&reaction))?;
        }
        for outcome in &outcomes {
            let name = &outcome.profile;
            write(&pictures.join(format!("{name}.svg")), &plot::draw(outcome)?)?;
            let part = format!(
                "{}\n![{name}: greeting latency and messages delivered a second, over time](benchmark/{name}.svg)\n\n{}\n",
                table::of_profile(outcome),
                table::caption(outcome)
            );
            page = docs::replace(&page, name, &part)?;
        }
        write(&path, &page)
    }

    fn tables(&self) -> String {
        let outcomes = self.outcomes();
        let mut text = table::summary(&outcomes);
        for outcome in &outcomes {
            text.push_str(&format!(
                "\n## {}: {}\n\n{}\n{}\n",
                outcome.profile,
                outcome.about,
                table::of_profile(outcome),
                table::caption(outcome)
            ));
        }
        text
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    own_like_parent(path)
}

/// The benchmark runs as root, often in a checkout that belongs to somebody else, who wants to keep working in it.
fn own_like_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?.metadata()?;
    chown(path, Some(parent.uid()), Some(parent.gid())).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::report::Second;
    use super::super::table::tests::{outcome, run};
    use super::*;

    #[test]
    fn the_newest_run_of_each_profile_is_kept_in_the_order_of_the_profiles() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("bench")).unwrap();
        let course = |scenario| {
            let mut run = run(scenario);
            run.seconds = (0..60)
                .map(|at_s| Second {
                    at_s,
                    ..Second::default()
                })
                .collect();
            run
        };
        let mut flood = outcome("flood", vec![course("builtin")]);
        let ramp = outcome("ramp", vec![course("builtin"), course("sentinel")]);
        for outcome in [&ramp, &flood] {
            store.keep(outcome).unwrap();
        }
        assert_eq!(store.outcomes(), [flood.clone(), ramp.clone()]);
        flood.seed = 2;
        store.keep(&flood).unwrap();
        assert_eq!(store.outcomes(), [flood.clone(), ramp]);
        fs::write(store.directory().join("ramp.json"), "{}").unwrap();
        assert_eq!(store.outcomes(), [flood]);
        let tables = fs::read_to_string(store.directory().join("tables.md")).unwrap();
        assert!(
            tables.contains("## flood") && tables.contains("## ramp"),
            "{tables}"
        );
    }

    #[test]
    fn a_page_gets_its_parts_and_its_pictures() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        let page = root.path().join("docs/benchmark.md");
        let part = |name: &str| format!("<!-- bench:{name} -->\n<!-- /bench:{name} -->\n");
        fs::write(&page, format!("Words.\n{}{}", part("summary"), part("flood"))).unwrap();
        let store = Store::open(root.path().join("bench")).unwrap();
        let mut builtin = run("builtin");
        builtin.seconds.push(Second::default());
        store.keep(&outcome("flood", vec![builtin])).unwrap();
        store.publish(root.path()).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("Words.\n"), "{text}");
        assert_eq!(text.matches("100 %, 4.0 ms / 1.8 s").count(), 1, "{text}");
        assert!(text.contains("](benchmark/flood.svg)"), "{text}");
        assert!(root.path().join("docs/benchmark/flood.svg").exists());
    }
}
