//! A local API server, as far as the sentinel asks one: HTTPS with a certificate of its own, a token, `list` and `watch` of
//! pods with bookmarks, expiry and disconnects, and `create` of Events, each with the JSON and the checks of the real one
//! (kube-apiserver 1.20 and later).
//!
//! The sentinel's unit tests have it on loopback, and the lab in the network of the daemon's container.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test itself")]

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{self, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::{fs, io, thread};

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

/// The node whose pods a unit test puts here.
pub const NODE: &str = "worker-1";
const TOKEN: &str = "a.service.account";

/// What the server has, and the server itself while it listens.
pub struct ApiServer {
    /// Token and root certificate, as the kubelet would mount them.
    account: tempfile::TempDir,
    tls: TlsAcceptor,
    state: Arc<State>,
    listening: Option<Listening>,
}

/// Ends when it is dropped, and with it every connection.
struct Listening {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[derive(Default)]
struct State {
    inner: Mutex<Cluster>,
    /// Counts changes of `inner`, to wake the watches.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Cluster {
    version: u64,
    pods: BTreeMap<String, Value>,
    /// What a watch sees: versions and lines.
    log: Vec<(u64, Value)>,
    /// Versions below it are gone.
    oldest: u64,
    expiry: Expiry,
    /// Every watch that was opened before this one of its kind is over, and how.
    cut: (u64, Cut),
    watches: u64,
    /// Every watch ends as soon as it has begun.
    closes_at_once: bool,
    /// Answers for the next requests of a kind, instead of the real ones.
    refusals: BTreeMap<&'static str, VecDeque<u16>>,
    /// The same for all requests.
    outage: Option<u16>,
    /// No request is answered.
    stalled: bool,
    requests: Vec<String>,
    events: Vec<Value>,
}

/// How a version that is gone is told: both are seen in the wild.
#[derive(Clone, Copy, Default)]
pub enum Expiry {
    #[default]
    Event,
    Status,
}

/// How a watch ends.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Cut {
    #[default]
    Clean,
    /// In the middle of a line.
    Broken,
}

type Body = http_body_util::combinators::BoxBody<Bytes, io::Error>;

impl ApiServer {
    /// Listens on loopback.
    pub fn start() -> Self {
        let mut server = Self::closed();
        server.listen(net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        server
    }

    /// One that nobody reaches yet, whose certificate is for 127.0.0.1.
    pub fn closed() -> Self {
        let account = tempfile::tempdir().unwrap();
        let key = rcgen::generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()]).unwrap();
        fs::write(account.path().join("token"), TOKEN).unwrap();
        fs::write(account.path().join("ca.crt"), key.cert.pem()).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                key.signing_key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        Self {
            account,
            tls: TlsAcceptor::from(Arc::new(tls)),
            state: Arc::default(),
            listening: None,
        }
    }

    /// Serves who comes to this socket, of whatever network it is.
    pub fn listen(&mut self, listener: net::TcpListener) {
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = oneshot::channel();
        let (tls, state) = (self.tls.clone(), Arc::clone(&self.state));
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, tls, state) => {}
                    _ = stopped => {}
                }
            });
        });
        self.listening = Some(Listening {
            address,
            stop: Some(stop),
            thread: Some(thread),
        });
    }

    /// Goes away: nobody listens, and every connection breaks. What it has it keeps.
    pub fn leave(&mut self) {
        self.listening = None;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.as_ref().unwrap().address
    }

    pub fn account(&self) -> &Path {
        self.account.path()
    }

    /// Certificate and token of another cluster.
    pub fn foreign_account(&self) -> PathBuf {
        let path = self.account.path().join("foreign");
        fs::create_dir(&path).unwrap();
        let key = rcgen::generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()]).unwrap();
        fs::write(path.join("token"), TOKEN).unwrap();
        fs::write(path.join("ca.crt"), key.cert.pem()).unwrap();
        path
    }

    pub fn set_token(&self, token: &str) {
        fs::write(self.account.path().join("token"), token).unwrap();
    }

    /// Creates the pod, or replaces it.
    pub fn put(&self, pod: Value) {
        self.change(|cluster| {
            let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
            let kind = if cluster.pods.contains_key(&uid) {
                "MODIFIED"
            } else {
                "ADDED"
            };
            cluster.version += 1;
            let mut pod = pod;
            pod["metadata"]["resourceVersion"] = json!(cluster.version.to_string());
            cluster.pods.insert(uid, pod.clone());
            cluster.say(kind, pod);
        });
    }

    pub fn delete(&self, uid: &str) {
        self.change(|cluster| {
            cluster.version += 1;
            let mut pod = cluster.pods.remove(uid).unwrap();
            pod["metadata"]["resourceVersion"] = json!(cluster.version.to_string());
            cluster.say("DELETED", pod);
        });
    }

    /// Tells every watch the version that it has reached, with none of its pods changed.
    pub fn bookmark(&self) -> u64 {
        self.change(|cluster| {
            cluster.version += 10;
            let metadata = json!({"resourceVersion": cluster.version.to_string(), "creationTimestamp": null});
            cluster.say(
                "BOOKMARK",
                json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata}),
            );
            cluster.version
        })
    }

    /// Ends every watch that is open.
    pub fn cut(&self, how: Cut) {
        self.change(|cluster| cluster.cut = (cluster.watches, how));
    }

    pub fn close_at_once(&self) {
        self.change(|cluster| cluster.closes_at_once = true);
        self.cut(Cut::Clean);
    }

    /// Forgets what has happened up to now.
    pub fn compact(&self, how: Expiry) {
        self.change(|cluster| {
            cluster.version += 1;
            cluster.log.clear();
            cluster.oldest = cluster.version;
            cluster.expiry = how;
        });
    }

    /// The next requests of this kind ("list", "watch", "create") get these answers.
    pub fn refuse(&self, kind: &'static str, codes: &[u16]) {
        self.change(|cluster| cluster.refusals.entry(kind).or_default().extend(codes));
    }

    /// All requests get this answer from now on; `None` ends it. Watches that are open end.
    pub fn outage(&self, code: Option<u16>) {
        self.change(|cluster| cluster.outage = code);
        self.cut(Cut::Broken);
    }

    pub fn stall(&self, stalled: bool) {
        self.change(|cluster| cluster.stalled = stalled);
    }

    /// Each as its kind and its query.
    pub fn requests(&self, kind: &str) -> Vec<String> {
        let cluster = self.state.lock();
        let mine = cluster.requests.iter().filter(|one| one.starts_with(kind));
        mine.cloned().collect()
    }

    pub fn events(&self) -> Vec<Value> {
        self.state.lock().events.clone()
    }

    fn change<T>(&self, with: impl FnOnce(&mut Cluster) -> T) -> T {
        let result = with(&mut self.state.lock());
        self.state.changed.send_modify(|n| *n += 1);
        result
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.inner.lock().unwrap()
    }
}

impl Cluster {
    fn say(&mut self, kind: &str, object: Value) {
        self.log
            .push((self.version, json!({"type": kind, "object": object})));
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            // A client that does not like our certificate goes away here.
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let answer = service_fn(|request| answer(Arc::clone(&state), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    let watches = query
        .split('&')
        .any(|pair| matches!(pair, "watch=1" | "watch=true"));
    let kind = match (request.method(), path.as_str()) {
        (&Method::GET, "/api/v1/pods") if watches => "watch",
        (&Method::GET, "/api/v1/pods") => "list",
        (&Method::POST, _) => "create",
        _ => "other",
    };
    let mut changes = state.changed.subscribe();
    state.lock().requests.push(format!("{kind} {query}"));
    while state.lock().stalled {
        let _ = changes.changed().await;
    }
    let authorized = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    if authorized != Some(&format!("Bearer {TOKEN}")) {
        return Ok(status(401, "Unauthorized"));
    }
    let refusal = {
        let mut cluster = state.lock();
        let next = cluster.refusals.get_mut(kind).and_then(VecDeque::pop_front);
        next.or(cluster.outage)
    };
    if let Some(code) = refusal {
        return Ok(status(code, "as the test wants it"));
    }
    Ok(match kind {
        "list" => list(&state.lock(), &query),
        "watch" => watch(state, &query),
        "create" => {
            let namespace = path
                .strip_prefix("/apis/events.k8s.io/v1/namespaces/")
                .and_then(|rest| rest.strip_suffix("/events"))
                .map(str::to_owned);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            match namespace {
                Some(namespace) => create(&state, &namespace, &body),
                None => status(404, "no such path"),
            }
        }
        _ => status(403, "the service account may not do that"),
    })
}

fn list(cluster: &Cluster, query: &str) -> Response<Body> {
    let items: Vec<_> = cluster.pods.values().filter(|pod| selected(pod, query)).collect();
    let list = json!({
        "kind": "PodList", "apiVersion": "v1",
        "metadata": {"resourceVersion": cluster.version.to_string()}, "items": items,
    });
    whole(200, list.to_string())
}

fn watch(state: Arc<State>, query: &str) -> Response<Body> {
    let from = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("resourceVersion="))
        .and_then(|version| version.parse::<u64>().ok());
    let Some(from) = from else {
        return status(400, "a version is wanted");
    };
    let number = {
        let mut cluster = state.lock();
        if from < cluster.oldest && matches!(cluster.expiry, Expiry::Status) {
            return status(410, "too old resource version");
        }
        cluster.watches += 1;
        cluster.watches
    };
    let watch = Watch {
        changes: state.changed.subscribe(),
        state,
        query: query.to_owned(),
        at: from,
        number,
        over: false,
    };
    let lines: BoxStream<'static, _> = stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((line.map(|line| Frame::data(Bytes::from(line))), watch))
    })
    .boxed();
    let body = BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(lines))));
    Response::builder()
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

/// A body must be shareable between threads; a stream is polled by one.
struct SyncStream(Mutex<BoxStream<'static, io::Result<Frame<Bytes>>>>);

impl stream::Stream for SyncStream {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.lock().unwrap().poll_next_unpin(context)
    }
}

struct Watch {
    state: Arc<State>,
    changes: watch::Receiver<u64>,
    query: String,
    at: u64,
    number: u64,
    over: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<io::Result<String>> {
        loop {
            if self.over {
                return None;
            }
            self.changes.mark_unchanged();
            if let Some(line) = self.line() {
                return line;
            }
            let _ = self.changes.changed().await;
        }
    }

    /// What is to be said now; outer `None`: nothing, inner: no more.
    fn line(&mut self) -> Option<Option<io::Result<String>>> {
        let cluster = self.state.lock();
        if self.at < cluster.oldest {
            self.over = true;
            let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410});
            return Some(Some(Ok(format!(
                "{}\n",
                json!({"type": "ERROR", "object": gone})
            ))));
        }
        let after = cluster.log.iter().find(|(version, line)| {
            *version > self.at && (line["type"] == "BOOKMARK" || selected(&line["object"], &self.query))
        });
        if let Some((version, line)) = after {
            self.at = *version;
            return Some(Some(Ok(format!("{line}\n"))));
        }
        if cluster.closes_at_once || (self.number <= cluster.cut.0 && cluster.cut.1 == Cut::Clean) {
            return Some(None);
        }
        if self.number <= cluster.cut.0 {
            self.over = true;
            return Some(Some(Err(io::Error::other("the connection breaks"))));
        }
        None
    }
}

/// The field selector of the query, for the fields that it can name here.
fn selected(pod: &Value, query: &str) -> bool {
    let selector = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("fieldSelector="))
        .unwrap_or_default();
    let selector = selector
        .replace("%3D", "=")
        .replace("%2C", ",")
        .replace("%21", "!");
    selector.split(',').all(|term| {
        let (field, wanted, equal) = match term.split_once("!=") {
            Some((field, wanted)) => (field, wanted, false),
            None => term
                .split_once('=')
                .map(|(field, wanted)| (field, wanted, true))
                .expect("a selector is field=value"),
        };
        let value = match field {
            "spec.nodeName" => &pod["spec"]["nodeName"],
            "status.phase" => &pod["status"]["phase"],
            other => panic!("no selector for {other}"),
        };
        (value == wanted) == equal
    })
}

/// What validation of the real one asks of a new Event (pkg/apis/core/validation/events.go, legacyValidateEvent and
/// ValidateEventCreate).
fn create(state: &State, namespace: &str, body: &[u8]) -> Response<Body> {
    let event: Value = serde_json::from_slice(body).unwrap();
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let name = event["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let faults = [
        (
            event["apiVersion"] == "events.k8s.io/v1" && event["kind"] == "Event",
            "kind",
        ),
        (is_subdomain(&name), "metadata.name"),
        (event["metadata"]["namespace"] == namespace, "metadata.namespace"),
        (
            event["regarding"]["namespace"] == namespace,
            "regarding.namespace",
        ),
        (is_micro_time(&text("eventTime")), "eventTime"),
        (["Normal", "Warning"].contains(&&*text("type")), "type"),
        ((1..=128).contains(&text("reason").len()), "reason"),
        ((1..=128).contains(&text("action").len()), "action"),
        (text("note").len() <= 1024, "note"),
        (
            text("reportingController").split('/').count() == 2,
            "reportingController",
        ),
        (
            (1..=128).contains(&text("reportingInstance").len()),
            "reportingInstance",
        ),
    ];
    if let Some((_, field)) = faults.iter().find(|(fine, _)| !fine) {
        return status(422, &format!("Event is invalid: {field}"));
    }
    let mut cluster = state.lock();
    if cluster
        .events
        .iter()
        .any(|known| known["metadata"]["name"] == name)
    {
        return status(409, "already exists");
    }
    cluster.events.push(event.clone());
    whole(201, event.to_string())
}

/// RFC 1123, as the names of most objects (validation.IsDNS1123Subdomain).
fn is_subdomain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().next_back()];
        ends.iter().all(|byte| byte.is_some_and(plain))
            && label.bytes().all(|byte| plain(byte) || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Go's RFC3339Micro: it refuses any other number of decimals.
fn is_micro_time(text: &str) -> bool {
    let form = text.len() == "2006-01-02T15:04:05.000000Z".len() && text.ends_with('Z');
    form && text.parse::<jiff::Timestamp>().is_ok()
}

fn status(code: u16, message: &str) -> Response<Body> {
    let reason = StatusCode::from_u16(code)
        .unwrap()
        .canonical_reason()
        .unwrap_or_default();
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    whole(code, body.to_string())
}

fn whole(code: u16, text: String) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(
            Full::new(Bytes::from(text))
                .map_err(|never| match never {})
                .boxed(),
        )
        .unwrap()
}
