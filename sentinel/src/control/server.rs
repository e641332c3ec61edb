//! The daemon's end of the control socket.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Answer, ControlError, REQUEST_MAX, Request};
use crate::status::Board;

/// At once; more wait in the socket's own queue.
const CONNECTIONS: usize = 16;
/// From connect to the last byte of the answer.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(5);

/// The bound socket. Gone from the file system when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    socket: PathBuf,
    /// Locked for as long as we live: whoever gets the lock knows that no daemon uses the directory, and that a socket
    /// in it is a dead one's. The kernel lets go of it whichever way we die.
    _dir: File,
}

impl Server {
    /// Binds `socket`, makes its directory if need be, and replaces the socket of a daemon that is dead. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When another daemon lives there, others can write the directory, or the socket cannot be made.
    pub fn bind(socket: &Path) -> Result<Self, ControlError> {
        let dir = socket.parent().unwrap_or(Path::new("/"));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| ControlError::Io { path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(failed(dir))?;
        let held = lock(dir)?;
        // Bound under another name, and moved when its mode is right: at no time can others connect, and at no time
        // does a client find a socket that nobody listens on. umask(2) would do it too, for all threads at once.
        let fresh = dir.join(format!(".control.sock.{}", std::process::id()));
        remove_if_there(&fresh).map_err(failed(&fresh))?;
        let listener = UnixListener::bind(&fresh).map_err(failed(&fresh))?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&fresh, socket))
            .map_err(|source| {
                let _ = fs::remove_file(&fresh);
                failed(socket)(source)
            })?;
        Ok(Self {
            listener,
            socket: socket.to_owned(),
            _dir: held,
        })
    }

    /// Serves until it is dropped, and all connections with it.
    pub async fn serve(self, board: Arc<Board>) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let board = Arc::clone(&board);
                    connections.spawn(async move {
                        let done = tokio::time::timeout(CONNECTION_LIFETIME, attend(stream, &board)).await;
                        if let Ok(Err(error)) = done {
                            tracing::debug!(%error, "connection to the control socket ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the control socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    /// Still under the lock, so it is ours that goes, and not a successor's.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

/// The directory, locked by flock(2).
fn lock(dir: &Path) -> Result<File, ControlError> {
    let failed = |source: io::Error| ControlError::Io {
        path: dir.to_owned(),
        source,
    };
    let held = File::open(dir).map_err(failed)?;
    let mode = held.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(ControlError::NotPrivate {
            dir: dir.to_owned(),
            mode,
        });
    }
    match rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(held),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ControlError::AlreadyRunning { dir: dir.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn attend(mut stream: UnixStream, board: &Board) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    // Read before it is judged: closing on bytes that were not read resets the connection, and the answer is lost.
    let mut line = Vec::new();
    let (reader, _) = stream.split();
    BufReader::new(reader.take(REQUEST_MAX))
        .read_until(b'\n', &mut line)
        .await?;
    let answer = if peer == 0 || peer == own {
        answer(&line, board)
    } else {
        Answer::NotPermitted(format!(
            "user {peer} may not ask this daemon; run the command as root"
        ))
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

fn answer(line: &[u8], board: &Board) -> Answer {
    if line.last() != Some(&b'\n') {
        return Answer::Error(format!("a request is one line of at most {REQUEST_MAX} bytes"));
    }
    match serde_json::from_slice(line) {
        Ok(Request::Status {}) => match board.report() {
            Some(report) => match serde_json::value::to_raw_value(&*report) {
                Ok(raw) => Answer::Status(raw),
                Err(error) => Answer::Error(format!("the report cannot be put into JSON: {error}")),
            },
            None => Answer::Error(
                "the daemon has just started and has no sample yet; ask again in a second".to_owned(),
            ),
        },
        Err(error) => Answer::Error(format!(
            "the daemon does not know this request ({error}); restart it if smtp-sentinel has just been upgraded"
        )),
    }
}
