//! From the file to [`Raw`]: reads it only when nobody else can have written it, and turns serde's and toml's
//! complaints into a line and an advice.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::error::{ConfigError, UnknownKey};
use super::raw::Raw;

/// Far above any configuration; keeps a wrong path (a log, a disk) out of memory.
const SIZE_LIMIT: u64 = 1 << 20;

/// The text of `path`.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => ConfigError::Missing {
            path: path.to_owned(),
        },
        ErrorKind::InvalidData => ConfigError::NotText {
            path: path.to_owned(),
        },
        _ => ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        },
    };
    // O_NONBLOCK: a FIFO would hold the open until somebody writes.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path)
        .map_err(unreadable)?;
    // Of the open file, not of the path: what was checked is what is read.
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() || meta.len() > SIZE_LIMIT {
        return Err(ConfigError::NotAFile {
            path: path.to_owned(),
            limit: SIZE_LIMIT,
        });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(ConfigError::WritableByOthers {
            path: path.to_owned(),
            mode,
        });
    }
    let owner = meta.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(ConfigError::OwnedByOther {
            path: path.to_owned(),
            owner,
        });
    }
    let mut text = String::new();
    file.take(SIZE_LIMIT)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    Ok(text)
}

/// The values of `text`, not yet believed.
pub(super) fn decode(text: &str, path: &Path) -> Result<Raw, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let line = line_of(text, &span);
        match UnknownField::of(error.message()) {
            Some(unknown) => unknown.explain(text, path, line, &span),
            None => {
                // toml spreads some messages over lines; ours is one sentence.
                let message = in_words(&error.message().lines().collect::<Vec<_>>().join(", "));
                ConfigError::Syntax {
                    path: path.to_owned(),
                    line,
                    message,
                }
            }
        }
    })
}

/// serde names what it expected by Rust's own types (serde_core de::Unexpected), which an operator need not know.
fn in_words(message: &str) -> String {
    let (head, expected) = message.rsplit_once("expected ").unwrap_or((message, ""));
    match expected {
        "f32" | "f64" => format!("{head}expected a number"),
        "u8" | "u16" | "u32" | "u64" | "usize" => {
            format!("{head}expected a whole number that is not negative")
        }
        _ => message.to_owned(),
    }
}

/// 1-based line in which `span` begins.
pub(super) fn line_of(text: &str, span: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// serde's complaint about a key that the struct does not have. It comes as text only: "unknown field `a`, expected
/// one of `b`, `c`" (serde_core de::Error::unknown_field). Should that wording change, the message goes out as it is.
struct UnknownField {
    key: String,
    known: Vec<String>,
}

impl UnknownField {
    fn of(message: &str) -> Option<Self> {
        let rest = message.strip_prefix("unknown field `")?;
        let (key, expected) = rest.split_once("`, ")?;
        let known = expected
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        Some(Self {
            key: key.to_owned(),
            known,
        })
    }

    fn explain(self, text: &str, path: &Path, line: usize, span: &Range<usize>) -> ConfigError {
        let suggestion = self
            .known
            .iter()
            .map(|name| (strsim::jaro_winkler(&self.key, name), name))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, name)| name.clone());
        let (section, is_section) = place_of(text, &self.key, span);
        let Self { key, known } = self;
        let path = path.to_owned();
        ConfigError::UnknownKey(Box::new(UnknownKey {
            path,
            line,
            key,
            is_section,
            section,
            suggestion,
            known,
        }))
    }
}

/// The section that holds `key` at `span`, and whether the key is itself a section.
fn place_of(text: &str, key: &str, span: &Range<usize>) -> (Option<String>, bool) {
    let Ok(document) = toml::de::DeTable::parse(text) else {
        return (None, false);
    };
    for (name, value) in document.get_ref() {
        let table = value.get_ref().as_table();
        if name.get_ref() == key && name.span() == *span {
            return (None, table.is_some());
        }
        let holds = |table: &toml::de::DeTable<'_>| {
            table
                .keys()
                .any(|inner| inner.get_ref() == key && inner.span() == *span)
        };
        if table.is_some_and(holds) {
            return (Some(name.get_ref().to_string()), false);
        }
    }
    (None, false)
}
