//! The asking end. Blocking: a command does this one thing and ends.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::value::RawValue;

use super::{Answer, Request};
use crate::clock;

/// For the whole conversation; the daemon answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// Far above the report of as many instances as can be watched.
const ANSWER_MAX: u64 = 64 << 20;

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "the daemon is not running (nobody listens on {}); start it with `systemctl start smtp-sentinel` or `smtp-sentinel run`", socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error("not permitted to ask the daemon on {}; run this command as root", socket.display())]
    NotPermitted { socket: PathBuf },
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NoAnswer(String),
    #[error("the daemon on {} did not answer ({source}); see its log, and restart it if it hangs", socket.display())]
    Broken { socket: PathBuf, source: io::Error },
}

/// The daemon's latest report, as the daemon wrote it: fields that this version does not know are in it too.
///
/// # Errors
/// When no daemon listens on `socket`, it does not answer in time, or it will not answer us.
pub fn status(socket: &Path) -> Result<Box<RawValue>, AskError> {
    let broken = |source: io::Error| AskError::Broken {
        socket: socket.to_owned(),
        source,
    };
    let line = ask(socket, &Request::Status {})?;
    match serde_json::from_slice(&line).map_err(|error| broken(error.into()))? {
        Answer::Status(report) => Ok(report),
        Answer::NotPermitted(sentence) => Err(AskError::Refused(sentence)),
        Answer::Error(sentence) => Err(AskError::NoAnswer(sentence)),
    }
}

fn ask(socket: &Path, request: &Request) -> Result<Vec<u8>, AskError> {
    let broken = |source: io::Error| AskError::Broken {
        socket: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning {
            socket: socket.to_owned(),
        },
        io::ErrorKind::PermissionDenied => AskError::NotPermitted {
            socket: socket.to_owned(),
        },
        _ => broken(source),
    })?;
    let mut line = serde_json::to_vec(request).map_err(|error| broken(error.into()))?;
    line.push(b'\n');
    converse(&mut stream, &line).map_err(broken)
}

fn converse(stream: &mut UnixStream, request: &[u8]) -> io::Result<Vec<u8>> {
    let deadline = clock::now().mono + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    // A daemon that refuses us need not have read the request; what it said is still there to be read.
    match stream.write_all(request) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let mut answer = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(clock::now().mono);
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() as u64 > ANSWER_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer has no end",
            ));
        }
    }
}
