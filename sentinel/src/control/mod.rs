//! The control socket: how a command on the same machine asks the running daemon.
//!
//! One request line of JSON, one answer line of JSON, and the connection is done. The socket is for root and for the
//! daemon's own user, by its mode (0600) and once more by SO_PEERCRED. Sizes, times and the number of connections are
//! bounded, so that a client can neither fill the daemon nor hold up its tick.

mod client;
mod server;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use client::{AskError, status};
pub use server::Server;

/// A request is a word and its arguments.
const REQUEST_MAX: u64 = 4 << 10;

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The latest report. With braces: serde takes a unit variant with whatever stands beside it.
    Status {},
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// A [`Report`](crate::status::Report), as the daemon wrote it.
    Status(Box<RawValue>),
    /// The peer may not ask; a sentence.
    NotPermitted(String),
    /// The request makes no sense, or cannot be answered now; a sentence.
    Error(String),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("smtp-sentinel is already running with runtime_dir {}; stop it first, or give this one its own", dir.display())]
    AlreadyRunning { dir: PathBuf },
    #[error(
        "{} can be written by others than its owner (mode {mode:04o}), who could put their own socket in the place of \
         ours; run: chmod go-w '{}'", dir.display(), dir.display()
    )]
    NotPrivate { dir: PathBuf, mode: u32 },
    #[error("cannot make {}: {source}; see that [paths] runtime_dir is a directory that this user can write", path.display())]
    Io { path: PathBuf, source: io::Error },
}

#[cfg(test)]
mod tests;
