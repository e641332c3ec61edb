//! The pages for people, README.md and docs/: what they point to is there. A link leads to a file, a path in backquotes is one of
//! the repository, and a test that docs/promises.md names for a promise is in a file that the same line names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::shell;

/// Its lines name tests.
const PROMISES: &str = "docs/promises.md";

/// Holds every page against the repository.
///
/// # Errors
/// Something is not there; the message has a line for each.
pub(crate) fn check() -> Result<()> {
    let root = shell::root();
    let mut sources = Vec::new();
    let mut rooms = BTreeSet::new();
    for entry in fs::read_dir(root)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && name != "target" && !name.starts_with('.') {
            collect(&entry.path(), "rs", &mut sources)?;
            rooms.insert(name);
        }
    }
    let mut pages = vec![root.join("README.md")];
    collect(&root.join("docs"), "md", &mut pages)?;
    let mut faults = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page)?;
        let name = page.strip_prefix(root)?.display().to_string();
        let directory = page.parent().context("a page is in a directory")?;
        let mut dead: Vec<_> = links(&text)
            .filter(|link| !directory.join(link).exists())
            .chain(paths(&text, &rooms).filter(|path| !root.join(path).exists()))
            .map(|what| format!("{name}: {what} is not there"))
            .collect();
        if name == PROMISES {
            for line in text.lines() {
                dead.extend(missing_tests(line, directory, &sources, |file| {
                    fs::read_to_string(file).unwrap_or_default()
                }));
            }
        }
        faults.extend(dead);
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// All files below a directory whose name ends like this.
fn collect(directory: &Path, extension: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, extension, files)?;
        } else if path.extension().is_some_and(|its| its == extension) {
            files.push(path);
        }
    }
    Ok(())
}

/// Where the links of a page lead, but those to the web and those within the page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|link| !link.is_empty() && !link.contains("://"))
}

/// What stands in backquotes. Code blocks have three of them, and nothing between two of those.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|name| !name.is_empty())
}

/// Paths of the repository in backquotes: those that begin with a directory of its first level.
fn paths<'a>(text: &'a str, rooms: &BTreeSet<String>) -> impl Iterator<Item = &'a str> {
    quoted(text).filter(|name| {
        let room = name.split_once('/').map(|(room, _)| room);
        room.is_some_and(|room| rooms.contains(room)) && !name.contains(char::is_whitespace)
    })
}

/// The tests that a line of the promises names and none of its files has. A file is named by a link, or by the end of its path.
fn missing_tests(
    line: &str,
    directory: &Path,
    sources: &[PathBuf],
    read: impl Fn(&Path) -> String,
) -> Vec<String> {
    let tests: Vec<_> = quoted(line).filter(|name| is_of_a_test(name)).collect();
    let linked = links(line).map(|link| directory.join(link));
    let mentioned = line
        .split(|letter: char| !(letter.is_ascii_alphanumeric() || "_/.".contains(letter)))
        .filter(|word| word.ends_with(".rs") && !word.starts_with('.'))
        .flat_map(|word| {
            sources
                .iter()
                .filter(move |source| source.ends_with(word))
                .cloned()
        });
    let text: String = linked.chain(mentioned).map(|file| read(&file)).collect();
    tests
        .into_iter()
        .filter(|test| !text.contains(&format!("fn {test}(")))
        .map(|test| format!("{PROMISES}: no file that the line names has the test {test}"))
        .collect()
}

/// Words joined by underscores: what else the promises have in backquotes is commands and settings.
fn is_of_a_test(name: &str) -> bool {
    name.contains('_')
        && name
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_paths_are_found_and_the_web_is_left_out() {
        let text = "see [a](../a.rs): `x_y`, [b](b.md#part), [c](https://example.org/c), [d](#here)\n\
                    ```sh\nls `tests/none`\n```\n`tests/src/unit`, `cargo test tests/x`, `smtp/inet`";
        assert_eq!(links(text).collect::<Vec<_>>(), ["../a.rs", "b.md"]);
        let rooms = BTreeSet::from(["tests".to_owned()]);
        assert_eq!(
            paths(text, &rooms).collect::<Vec<_>>(),
            ["tests/none", "tests/src/unit"]
        );
    }

    #[test]
    fn a_test_is_in_one_of_the_files_that_its_line_names() {
        let sources = ["/r/src/one.rs", "/r/src/deep/tests.rs", "/r/src/tests.rs"].map(PathBuf::from);
        let read = |file: &Path| match file.to_str() {
            Some("/r/docs/../src/one.rs") => "fn it_holds() {".to_owned(),
            Some("/r/src/deep/tests.rs") => "fn it_lasts() {".to_owned(),
            _ => String::new(),
        };
        let missing = |line: &str| missing_tests(line, Path::new("/r/docs"), &sources, read);
        assert!(
            missing("| it `-o x_y` | [one.rs](../src/one.rs): `it_holds`; deep/tests.rs: `it_lasts` |")
                .is_empty()
        );
        let renamed = missing("| [one.rs](../src/one.rs): `it_held`, `it_hold` |");
        assert_eq!(renamed.len(), 2, "{renamed:?}");
        assert!(renamed[0].ends_with("the test it_held"), "{renamed:?}");
        assert_eq!(missing("| in no file: `it_holds` |").len(), 1);
        assert_eq!(missing("| [one.rs](../src/one.rs): `it_lasts` |").len(), 1);
    }
}
