//! The generated parts of a page: what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`, each marker on a line
//! of its own. All else on the page is a person's and stays.

use anyhow::{Context, Result};

/// The page with the part `name` replaced.
///
/// # Errors
/// The page has no such part.
pub fn replace(page: &str, name: &str, text: &str) -> Result<String> {
    let missing = || format!("the page has no lines <!-- bench:{name} --> and <!-- /bench:{name} -->");
    let (before, rest) = page
        .split_once(&format!("<!-- bench:{name} -->\n"))
        .with_context(missing)?;
    let end = format!("<!-- /bench:{name} -->\n");
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!(
        "{before}<!-- bench:{name} -->\n{}\n{end}{after}",
        text.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A page\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nwords\n<!-- bench:b -->\n<!-- /bench:b -->\nend\n";

    #[test]
    fn only_the_part_changes() {
        let page = replace(PAGE, "a", "new\nlines\n").unwrap();
        assert_eq!(page, PAGE.replace("old", "new\nlines"));
        assert_eq!(
            replace(&page, "a", "old").unwrap(),
            PAGE,
            "again and again, at the same place"
        );
        assert!(replace(PAGE, "b", "x").unwrap().contains("-->\nx\n<!-- /bench:b"));
    }

    #[test]
    fn a_page_without_the_part_is_refused() {
        assert!(replace(PAGE, "c", "x").is_err());
        assert!(replace("<!-- bench:a -->\n", "a", "x").is_err());
    }

    #[test]
    fn the_page_of_the_benchmark_has_all_parts() {
        let page = include_str!("../../../docs/benchmark.md");
        let profiles = super::super::profiles::all();
        let parts = profiles
            .iter()
            .map(|profile| profile.name)
            .chain(["summary", "reaction"]);
        for part in parts {
            replace(page, part, "").unwrap();
        }
    }
}
