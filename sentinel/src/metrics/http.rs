//! The HTTP server: GET and HEAD of /metrics, /healthz, /readyz and /api/v1/status, and nothing else.
//!
//! Whoever connects gets a bounded share, see `Limits`; request bodies are never read. So a slow, broken or hostile
//! client costs memory that is bounded, and the tick does not notice it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::families::Exposition;
use crate::clock::Now;
use crate::status::Board;

/// /healthz says no when the tick has not reported for longer. Far above any interval between two ticks, and above
/// the wait for Postfix to take a reload in.
pub const HEALTHY_AGE: Duration = Duration::from_secs(30);

/// What one client, and all of them together, may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Connections at once; more wait in the kernel's accept queue.
    connections: usize,
    /// For the whole head of a request, and so for how long an idle connection is kept.
    header: Duration,
    /// Of a connection, however busy: a client that reads one byte a second ends with it.
    lifetime: Duration,
}

const LIMITS: Limits = Limits {
    connections: 32,
    header: Duration::from_secs(5),
    lifetime: Duration::from_secs(60),
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Why there is no HTTP server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(
        "[metrics] listen = \"{address}\" is in use by another process; write another address there, or \"\" for none"
    )]
    InUse { address: SocketAddr },
    #[error(
        "cannot listen on [metrics] listen = \"{address}\": {source}; write an address that this machine has"
    )]
    Bind { address: SocketAddr, source: io::Error },
}

/// The bound, not yet served address.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// # Errors
    /// When the address is in use or cannot be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => HttpError::InUse { address },
            _ => HttpError::Bind { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address })
    }

    /// With the port that the kernel chose, when it was asked to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped, and all connections with it. `clock` is only read for the age of the report.
    pub async fn serve(self, board: Arc<Board>, clock: fn() -> Now) {
        self.serve_within(LIMITS, board, clock).await;
    }

    async fn serve_within(self, limits: Limits, board: Arc<Board>, clock: fn() -> Now) {
        let site = Arc::new(Site {
            exposition: Exposition::new(Arc::clone(&board)),
            board,
            clock,
            limits,
        });
        let permits = Arc::new(Semaphore::new(limits.connections));
        let mut connections = JoinSet::new();
        loop {
            // Before accept: what is not accepted costs us nothing. The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let site = Arc::clone(&site);
                    connections.spawn(async move {
                        site.attend(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: the connection stays in the queue, so do not spin on it.
                    tracing::warn!(%error, "cannot accept a connection on [metrics] listen");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

struct Site {
    exposition: Exposition,
    board: Arc<Board>,
    clock: fn() -> Now,
    limits: Limits,
}

impl Site {
    /// One connection to its end. What the client did wrong is of no interest to anybody but the client.
    async fn attend(&self, stream: TcpStream) {
        let service = service_fn(|request: Request<Incoming>| {
            let response = self.answer(
                request.method(),
                request.uri().path(),
                request.headers().get(ACCEPT),
            );
            async { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        if let Ok(Err(error)) = tokio::time::timeout(self.limits.lifetime, connection).await {
            tracing::debug!(%error, "connection to [metrics] listen ended");
        }
    }

    fn answer(&self, method: &Method, path: &str, accept: Option<&HeaderValue>) -> Response<Full<Bytes>> {
        let known = ["/metrics", "/healthz", "/readyz", "/api/v1/status"].contains(&path);
        if !known {
            return reply(
                StatusCode::NOT_FOUND,
                PLAIN,
                "try /metrics, /healthz, /readyz or /api/v1/status\n",
            );
        }
        if ![Method::GET, Method::HEAD].contains(method) {
            let mut response = reply(
                StatusCode::METHOD_NOT_ALLOWED,
                PLAIN,
                "only GET and HEAD are answered\n",
            );
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => self.metrics(accept),
            "/healthz" => self.healthz(),
            "/readyz" => self.readyz(),
            _ => self.status(),
        }
    }

    fn metrics(&self, accept: Option<&HeaderValue>) -> Response<Full<Bytes>> {
        let (kind, text) = if wants_openmetrics(accept) {
            (OPENMETRICS, self.exposition.openmetrics())
        } else {
            (PROMETHEUS, self.exposition.prometheus())
        };
        match text {
            Ok(text) => reply(StatusCode::OK, kind, text),
            Err(error) => broken(&error),
        }
    }

    fn healthz(&self) -> Response<Full<Bytes>> {
        let age = self.board.age((self.clock)().mono);
        if age <= HEALTHY_AGE {
            return reply(StatusCode::OK, PLAIN, "ok\n");
        }
        let text = format!(
            "no report for {} s: the daemon hangs; restart it\n",
            age.as_secs()
        );
        reply(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        match self.board.report() {
            Some(_) => reply(StatusCode::OK, PLAIN, "ok\n"),
            None => not_yet(),
        }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let Some(report) = self.board.report() else {
            return not_yet();
        };
        match serde_json::to_vec(&*report) {
            Ok(json) => reply(StatusCode::OK, JSON, json),
            Err(error) => broken(&error),
        }
    }
}

/// Prometheus names it first among several, with weights; a client that names it at all can read it.
fn wants_openmetrics(accept: Option<&HeaderValue>) -> bool {
    let Some(accept) = accept.and_then(|value| value.to_str().ok()) else {
        return false;
    };
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        // RFC 9110 12.4.2: a weight of 0 is "not acceptable".
        let refused = parts.any(|p| p.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32)));
        named && !refused
    })
}

fn not_yet() -> Response<Full<Bytes>> {
    reply(
        StatusCode::SERVICE_UNAVAILABLE,
        PLAIN,
        "the first sample is not done yet\n",
    )
}

fn broken(error: &dyn std::error::Error) -> Response<Full<Bytes>> {
    tracing::error!(%error, "cannot encode an answer");
    reply(
        StatusCode::INTERNAL_SERVER_ERROR,
        PLAIN,
        "cannot encode the answer; see the daemon's log\n",
    )
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
