//! The thread that speaks with the API server: watches on one side, creates Events on the other.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc::{Receiver, WeakSender};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::connection::Connection;
use super::events::Poster;
use super::notice::Notice;
use super::shared::Shared;
use super::watch::Watcher;
use crate::clock::Now;

/// How patient it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// With the beginning of an answer.
    pub(super) answer: Duration,
    /// How long the server is asked to keep a watch open; below the 295 s after which load balancers are known to cut.
    pub(super) watch: Duration,
    /// Between two attempts; doubled for each that comes to nothing.
    pub(super) pause: Duration,
    pub(super) longest_pause: Duration,
    /// With what is still to be told when the daemon stops.
    pub(super) last_words: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(15),
            watch: Duration::from_secs(240),
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            last_words: Duration::from_secs(2),
        }
    }
}

/// All that the thread needs.
pub(super) struct Room {
    pub(super) connection: Connection,
    pub(super) timing: Timing,
    pub(super) shared: Arc<Shared>,
    /// Weak: the queue ends when the daemon lets go of it.
    pub(super) notices: WeakSender<Notice>,
    /// Whether notices become Events, or lines of the log only.
    pub(super) events: bool,
    pub(super) clock: fn() -> Now,
}

/// The running thread; ends when it is dropped.
pub(super) struct Thread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Room {
    pub(super) fn open(self, waiting: Receiver<Notice>) -> io::Result<Thread> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("kubernetes".into()).spawn(move || {
            runtime.block_on(self.serve(waiting, stopped));
            // Not waited for: a connection attempt may still be under way.
            runtime.shutdown_background();
        })?;
        Ok(Thread {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    async fn serve(self, waiting: Receiver<Notice>, stopped: oneshot::Receiver<()>) {
        let last_words = self.timing.last_words;
        let work = async {
            let client = self.client().await;
            let poster = Poster::new(
                client.clone(),
                &self.connection.node,
                self.events,
                self.timing,
                Arc::clone(&self.shared),
                (self.clock)(),
            );
            let watcher = Watcher::new(
                client,
                &self.connection.node,
                self.timing,
                Arc::clone(&self.shared),
                self.notices.clone(),
                self.clock,
            );
            tokio::select! {
                never = watcher.run() => match never {},
                () = poster.run(waiting) => {}
            }
        };
        tokio::select! {
            () = work => {}
            () = async { let _ = stopped.await; sleep(last_words).await } => {}
        }
    }

    /// As soon as the service account can be read.
    async fn client(&self) -> Client {
        let mut pause = self.timing.pause;
        loop {
            match self.connection.client() {
                Ok(client) => return client,
                Err(error) => self.shared.lost(error.to_string(), None),
            }
            sleep(pause).await;
            pause = (pause * 2).min(self.timing.longest_pause);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that speaks with the Kubernetes API had panicked");
        }
    }
}
