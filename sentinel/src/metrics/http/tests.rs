use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::clock;
use crate::status::Report;
use crate::status::tests::report;

/// A server on a port of its own; it ends with the test.
struct Running {
    address: SocketAddr,
    board: Arc<Board>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const QUICK: Limits = Limits {
    connections: 3,
    header: Duration::from_millis(300),
    lifetime: Duration::from_millis(900),
};

async fn start(limits: Limits, clock: fn() -> Now) -> Running {
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = server.address();
    let board = Arc::new(Board::new(clock::now().mono));
    let task = tokio::spawn(server.serve_within(limits, Arc::clone(&board), clock));
    Running { address, board, task }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `bytes`, and reads until the server closes. Fails when it does not within ten seconds.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        drain(&mut stream).await
    }

    async fn get(&self, path: &str, headers: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").as_bytes())
            .await
    }
}

async fn drain(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well: the server closes on clients that have sent more than it read.
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes))
        .await
        .expect("no close");
    String::from_utf8(bytes).unwrap()
}

fn late() -> Now {
    let now = clock::now();
    Now {
        mono: now.mono + HEALTHY_AGE + Duration::from_secs(5),
        ..now
    }
}

#[tokio::test]
async fn before_the_first_sample_it_is_alive_and_not_ready() {
    let server = start(LIMITS, clock::now).await;
    assert!(server.get("/healthz", "").await.starts_with("HTTP/1.1 200 "));
    assert!(server.get("/readyz", "").await.starts_with("HTTP/1.1 503 "));
    assert!(
        server
            .get("/api/v1/status", "")
            .await
            .starts_with("HTTP/1.1 503 ")
    );
    let metrics = server.get("/metrics", "").await;
    assert!(
        metrics.contains("smtp_sentinel_build_info{version=") && !metrics.contains("smtp_sentinel_pressure")
    );

    server.board.publish(report(), clock::now().mono);
    assert!(server.get("/readyz", "").await.starts_with("HTTP/1.1 200 "));
    let status = server.get("/api/v1/status", "").await;
    let (head, body) = status.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{head}");
    let served: Report = serde_json::from_str(body).unwrap();
    assert_eq!(served.instances.len(), 2);
}

#[tokio::test]
async fn a_tick_that_hangs_is_not_healthy() {
    let server = start(LIMITS, late).await;
    server.board.publish(report(), clock::now().mono);
    let answer = server.get("/healthz", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("hangs"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_scraper_gets_the_format_that_it_asks_for() {
    let server = start(LIMITS, clock::now).await;
    let prometheus_asks =
        "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n";
    let openmetrics = server.get("/metrics", prometheus_asks).await;
    assert!(
        openmetrics.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{openmetrics}"
    );
    assert!(openmetrics.ends_with("# EOF\n"));
    for accept in [
        "",
        "Accept: */*\r\n",
        "Accept: application/openmetrics-text;q=0\r\n",
        "Accept: \u{ff}\r\n",
    ] {
        let text = server.get("/metrics", accept).await;
        assert!(
            text.contains("content-type: text/plain; version=0.0.4"),
            "{accept:?}: {text}"
        );
        assert!(!text.contains("# EOF"));
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let server = start(LIMITS, clock::now).await;
    assert!(server.get("/", "").await.starts_with("HTTP/1.1 404 "));
    assert!(
        server
            .get("/metrics/../api/v1/status", "")
            .await
            .starts_with("HTTP/1.1 404 ")
    );
    let post =
        server.raw(b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc");
    let post = post.await;
    assert!(
        post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"),
        "{post}"
    );
    let head = server
        .raw(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn it_only_reads() {
    let server = start(LIMITS, clock::now).await;
    server.board.publish(report(), clock::now().mono);
    let before = server.get("/api/v1/status", "").await;
    for method in [
        "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "STRESS",
    ] {
        for path in ["/metrics", "/healthz", "/readyz", "/api/v1/status"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            let answer = server.raw(request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 4"), "{method} {path}: {answer}");
        }
    }
    let body = |answer: &str| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(&server.get("/api/v1/status", "").await), body(&before));
}

/// The body would be endless; the answer comes, and the connection goes.
#[tokio::test]
async fn a_request_body_is_not_read_to_its_end() {
    let server = start(QUICK, clock::now).await;
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        .await
        .unwrap();
    let writer = async {
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), writer)
        .await
        .expect("the body was read on and on");
}

#[tokio::test]
async fn garbage_is_answered_or_dropped_and_the_next_client_is_served() {
    let server = start(LIMITS, clock::now).await;
    let long_header = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    let many_headers = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    for bytes in [
        &b"\0\x01\x02\xff\xfe\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"EHLO example.org\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://[:: HTTP/1.1\r\n\r\n",
        long_header.as_bytes(),
        many_headers.as_bytes(),
    ] {
        let mut stream = server.connect().await;
        let _ = stream.write_all(bytes).await;
        let answer = drain(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert!(server.get("/healthz", "").await.starts_with("HTTP/1.1 200 "));
    }
}

/// As many clients as there are places send a byte now and then, others connect and say nothing.
#[tokio::test]
async fn slow_clients_are_cut_off_and_others_get_their_turn() {
    let server = start(QUICK, clock::now).await;
    let mut slow = Vec::new();
    for _ in 0..QUICK.connections {
        let mut stream = server.connect().await;
        slow.push(tokio::spawn(async move {
            for byte in b"GET /metrics HTTP/1.1\r\nHost: slow.example.org and more" {
                if stream.write_all(&[*byte]).await.is_err() {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false
        }));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let silent = server.connect().await;
    assert!(server.get("/healthz", "").await.starts_with("HTTP/1.1 200 "));
    for task in slow {
        assert!(task.await.unwrap(), "a slow client was heard out");
    }
    drop(silent);
}

/// Half-open as TCP has it: the client has closed its side, or is gone without a word.
#[tokio::test]
async fn half_closed_and_idle_connections_end() {
    let server = start(QUICK, clock::now).await;
    let mut half = server.connect().await;
    half.write_all(b"GET /healthz HTTP/1.1\r\nHo").await.unwrap();
    half.shutdown().await.unwrap();
    assert!(!drain(&mut half).await.contains(" 200 "));

    let mut kept = server.connect().await;
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = drain(&mut kept).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 "),
        "closed after its idle time: {answer}"
    );
}

/// A client that asks and never reads fills the socket; its lifetime ends it.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let server = start(
        Limits {
            connections: 1,
            ..QUICK
        },
        clock::now,
    )
    .await;
    server.board.publish(report(), clock::now().mono);
    let mut deaf = server.connect().await;
    let requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
    let flood = async { while deaf.write_all(&requests).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), flood)
        .await
        .expect("never cut off");
    assert!(server.get("/healthz", "").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn an_address_in_use_names_the_key() {
    let server = start(LIMITS, clock::now).await;
    let error = Server::bind(server.address).await.unwrap_err();
    assert!(matches!(error, HttpError::InUse { .. }));
    assert!(error.to_string().contains("[metrics] listen"), "{error}");
    let nowhere = Server::bind("203.0.113.1:9825".parse().unwrap())
        .await
        .unwrap_err();
    assert!(
        nowhere.to_string().contains("an address that this machine has"),
        "{nowhere}"
    );
}
