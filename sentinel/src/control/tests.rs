use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::*;
use crate::clock;
use crate::status::tests::report;
use crate::status::{Board, Report};

struct Running {
    dir: TempDir,
    board: Arc<Board>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let board = Arc::new(Board::new(clock::now().mono));
    let server = Server::bind(&dir.path().join("control.sock")).unwrap();
    let task = tokio::spawn(server.serve(Arc::clone(&board)));
    Running { dir, board, task }
}

impl Running {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// The client blocks, so it gets a thread of its own.
    async fn ask(&self) -> Result<Report, AskError> {
        let socket = self.socket();
        let raw = tokio::task::spawn_blocking(move || status(&socket))
            .await
            .unwrap()?;
        Ok(serde_json::from_str(raw.get()).unwrap())
    }

    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        // A reset instead of an end is allowed where we sent more than was read.
        let _ = tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .expect("no end");
        answer
    }
}

#[tokio::test]
async fn the_report_goes_through() {
    let server = start();
    let error = server.ask().await.unwrap_err();
    assert!(
        matches!(&error, AskError::NoAnswer(sentence) if sentence.contains("no sample yet")),
        "{error}"
    );
    server.board.publish(report(), clock::now().mono);
    let answer = server.ask().await.unwrap();
    assert_eq!(
        serde_json::to_value(answer).unwrap(),
        serde_json::to_value(report()).unwrap()
    );
}

#[tokio::test]
async fn nonsense_gets_a_sentence_and_the_next_client_an_answer() {
    let server = start();
    server.board.publish(report(), clock::now().mono);
    for request in [
        "\n",
        "{}\n",
        "{\"cmd\":\"reboot\"}\n",
        "\u{0}\u{1}\n",
        "{\"cmd\":\"status\",\"x\":1}\n",
    ] {
        assert!(
            server.raw(request.as_bytes()).await.starts_with("{\"error\":"),
            "{request:?}"
        );
    }
    let long = "x".repeat(4 << 10);
    assert!(server.raw(long.as_bytes()).await.contains("one line of at most"));
    assert_eq!(server.ask().await.unwrap().instances.len(), 2);
}

#[tokio::test]
async fn silent_clients_are_cut_off() {
    let server = start();
    server.board.publish(report(), clock::now().mono);
    let silent: Vec<_> = (0..20)
        .map(|_| std::os::unix::net::UnixStream::connect(server.socket()).unwrap())
        .collect();
    let started = clock::now().mono;
    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
    stream.write_all(b"{\"cmd\":\"status\"}\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(15), stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("{\"status\":"), "{answer}");
    assert!(
        clock::now().mono - started > Duration::from_secs(3),
        "they should have been in the way"
    );
    drop(silent);
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let server = start();
    let meta = std::fs::metadata(server.socket()).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!(
        std::fs::read_dir(server.dir.path()).unwrap().count(),
        1,
        "no temporary name is left"
    );
    server.task.abort();
    while !server.task.is_finished() {
        tokio::task::yield_now().await;
    }
    assert!(!server.socket().exists());
}

/// The mode alone keeps others out, in a directory that everybody may enter.
#[tokio::test]
async fn another_user_is_not_permitted() {
    assert!(
        rustix::process::geteuid().is_root(),
        "only root can become another user: `cargo xtask test` runs the tests as root"
    );
    let server = start();
    std::fs::set_permissions(server.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = server.socket();
    let asked = tokio::task::spawn_blocking(move || {
        // Of this thread only (setfsuid(2)); it also drops the capabilities that would overrule the mode.
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        let asked = status(&socket);
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
        asked
    });
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, AskError::NotPermitted { .. }), "{error}");
}

#[tokio::test]
async fn a_live_daemon_is_left_alone_and_a_dead_ones_socket_replaced() {
    let server = start();
    let second = Server::bind(&server.socket()).unwrap_err();
    assert!(matches!(second, ControlError::AlreadyRunning { .. }), "{second}");
    server.board.publish(report(), clock::now().mono);
    server.ask().await.expect("the first one still answers");

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(
        matches!(status(&socket), Err(AskError::NotRunning { .. })),
        "the stale socket refuses"
    );
    Server::bind(&socket).unwrap();
}

#[tokio::test]
async fn a_directory_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let error = Server::bind(&dir.path().join("control.sock")).unwrap_err();
    assert!(
        matches!(error, ControlError::NotPrivate { mode: 0o1777, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_directory_that_is_missing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(&dir.path().join("a/b/control.sock")).unwrap();
    drop(server);
    let blocked = dir.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    assert!(matches!(
        Server::bind(&blocked.join("x/control.sock")),
        Err(ControlError::Io { .. })
    ));
}

#[test]
fn no_daemon_is_told_apart_from_a_broken_one() {
    assert!(matches!(
        status(Path::new("/nonexistent/control.sock")),
        Err(AskError::NotRunning { .. })
    ));

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mute = std::thread::spawn(move || drop(listener.accept().unwrap()));
    assert!(matches!(status(&socket), Err(AskError::Broken { .. })));
    mute.join().unwrap();
}
