//! Reads the text that /metrics serves, as a scraper would.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One line of the exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A whole scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Scrape {
    pub series: Vec<Series>,
}

impl Scrape {
    /// # Errors
    /// A line that is neither a comment nor a series.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series =
            lines.map(|line| series(line).with_context(|| format!("no series of a metric: {line:?}")));
        Ok(Self {
            series: series.collect::<Result<_>>()?,
        })
    }

    /// The sum over all series of that name that have these labels; `None` when there is no such series, which is not 0.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |series: &&Series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(label, value)| series.labels.get(*label).is_some_and(|found| found == value))
        };
        self.series
            .iter()
            .filter(has)
            .map(|series| series.value)
            .reduce(|sum, value| sum + value)
    }
}

fn series(line: &str) -> Option<Series> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.strip_prefix(',').unwrap_or(rest);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = quoted_value(quoted)?;
            labels.insert(label.to_owned(), value);
            rest = after;
        }
    }
    // A timestamp may follow the value; nothing here has one.
    let value = rest.trim().parse().ok()?;
    Some(Series {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The value up to its closing quote, unescaped, and what follows the quote.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_read_and_summed() {
        let text = "# HELP a_total x\n# TYPE a_total counter\n\
                    a_total{instance=\"/etc/p\",phase=\"queued\"} 3\na_total{instance=\"/srv/q\",phase=\"queued\"} 4\n\
                    a_total{instance=\"/srv/q\",phase=\"before_greeting\"} 8\nb 1.5\nc_bucket{le=\"+Inf\"} 2\n# EOF\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.series.len(), 5);
        assert_eq!(scrape.sum("a_total", &[("phase", "queued")]), Some(7.0));
        assert_eq!(
            scrape.sum("a_total", &[("phase", "queued"), ("instance", "/srv/q")]),
            Some(4.0)
        );
        assert_eq!(scrape.sum("b", &[]), Some(1.5));
        assert_eq!(scrape.sum("a_total", &[("phase", "none")]), None);
    }

    #[test]
    fn labels_are_unescaped() {
        let scrape = Scrape::parse("a{x=\"one \\\"two\\\" \\\\ three}, \\n\",y=\"\"} 1").unwrap();
        let labels = &scrape.series[0].labels;
        assert_eq!(
            (labels["x"].as_str(), labels["y"].as_str()),
            ("one \"two\" \\ three}, \n", "")
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["a", "a{", "a{x=\"1} 2", "a{x=\"1\"}", "a b"] {
            assert!(Scrape::parse(line).is_err(), "{line}");
        }
    }
}
