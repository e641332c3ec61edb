//! What senders and attackers share: a thread inside the client namespace with its own runtime, arrivals, addresses, and a
//! stop.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::clock;
use crate::netns::{Namespace, SERVER};

/// A stop that any number of tasks can await.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Returns once the load is to stop, also when its owner is gone.
    pub(crate) async fn wait(&mut self) {
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }
}

/// A running load. Dropping it stops it and waits for its end.
#[derive(Debug)]
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    /// Runs `work` on a thread and a single-threaded runtime inside `namespace`: tokio makes its sockets on the thread
    /// that asks, so one thread is what ties them all to the namespace.
    pub(crate) fn start<F>(
        namespace: &Namespace,
        name: &str,
        work: impl FnOnce(Stop) -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = watch::channel(false);
        let thread = namespace.spawn(name, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(work(Stop(stopped)));
            Ok(())
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Tells the load to stop and waits for its end.
    ///
    /// # Errors
    /// The load could not run at all.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.send_replace(true);
        match self.thread.take() {
            Some(thread) => thread.join().ok().context("the thread of the load panicked")?,
            None => Ok(()),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Arrivals by a schedule of their own: what starting one costs, or a machine that stalls, does not thin the load out.
pub(crate) struct Arrivals {
    next: tokio::time::Instant,
}

impl Arrivals {
    pub(crate) fn begin() -> Self {
        Self {
            next: clock::now().into(),
        }
    }

    /// Waits until `gap` after the last arrival was due.
    pub(crate) async fn after(&mut self, gap: Duration) {
        self.next += gap;
        tokio::time::sleep_until(self.next).await;
    }
}

/// The pause until the next arrival of a Poisson process.
pub(crate) fn poisson_gap(random: &mut Rng, per_second: f64) -> Duration {
    // 1 - [0, 1) is never 0, so the logarithm is finite.
    Duration::from_secs_f64(-(1.0 - random.f64()).ln() / per_second)
}

/// Any client address, or any of 10.77.`network`.0/24; the scripted clients keep 10.77.0.x for themselves.
pub(crate) fn address(random: &mut Rng, network: Option<u8>) -> Ipv4Addr {
    let any = random.u8(1..=254);
    Ipv4Addr::new(10, 77, network.unwrap_or(any), random.u8(1..=254))
}

/// Connects to port 25 from `source`.
pub(crate) async fn connect(source: Ipv4Addr) -> std::io::Result<TcpStream> {
    let server: Ipv4Addr = SERVER.parse().map_err(std::io::Error::other)?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    socket.connect(SocketAddr::from((server, 25))).await
}
