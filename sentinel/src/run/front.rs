//! What the outside sees of the daemon: HTTP, the control socket, and the signals that stop it. On a thread of its own
//! with a single-threaded runtime, so that neither can hold up the tick.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::RunError;
use crate::clock;
use crate::status::Board;
use crate::{control, metrics};

/// The running front; ends when it is dropped.
pub(super) struct Front {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Everything that can fail, or that takes a privilege, done before the daemon says that it runs. No thread yet.
pub(super) struct Bound {
    runtime: Runtime,
    sockets: Sockets,
}

struct Sockets {
    http: Option<metrics::http::Server>,
    control: control::Server,
    stops: [Signal; 2],
    hangup: Signal,
}

impl Bound {
    /// Binds the sockets. From here on clients can connect, and wait for [`Bound::serve`].
    pub(super) fn bind(listen: Option<SocketAddr>, control_socket: &Path) -> Result<Self, RunError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(RunError::Runtime)?;
        let sockets = runtime.block_on(bind(listen, control_socket))?;
        Ok(Self { runtime, sockets })
    }

    /// Serves, on a thread of its own. `stopped` gets the name of the signal that is to end the daemon.
    pub(super) fn serve(
        self,
        board: Arc<Board>,
        stopped: SyncSender<&'static str>,
    ) -> Result<Front, RunError> {
        let Self { runtime, sockets } = self;
        let (stop, asked) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("front".into())
            .spawn(move || runtime.block_on(serve(sockets, board, stopped, asked)))
            .map_err(RunError::Runtime)?;
        Ok(Front {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that serves HTTP and the control socket had panicked");
        }
    }
}

async fn bind(listen: Option<SocketAddr>, control_socket: &Path) -> Result<Sockets, RunError> {
    // Before anything else: from here on SIGTERM means "give back and stop".
    let on = |kind| signal(kind).map_err(RunError::Runtime);
    let stops = [on(SignalKind::terminate())?, on(SignalKind::interrupt())?];
    let hangup = on(SignalKind::hangup())?;
    let control = control::Server::bind(control_socket)?;
    let http = match listen {
        Some(address) => Some(metrics::http::Server::bind(address).await?),
        None => None,
    };
    if let Some(http) = &http {
        tracing::info!("metrics on http://{}/metrics", http.address());
    }
    Ok(Sockets {
        http,
        control,
        stops,
        hangup,
    })
}

async fn serve(
    sockets: Sockets,
    board: Arc<Board>,
    stopped: SyncSender<&'static str>,
    mut asked: oneshot::Receiver<()>,
) {
    let Sockets {
        http,
        control,
        stops: [mut terminate, mut interrupt],
        mut hangup,
    } = sockets;
    let http = async {
        match http {
            Some(http) => http.serve(Arc::clone(&board), clock::now).await,
            None => std::future::pending().await,
        }
    };
    let control = control.serve(Arc::clone(&board));
    tokio::pin!(http, control);
    loop {
        tokio::select! {
            () = &mut http => return,
            () = &mut control => return,
            _ = &mut asked => return,
            // Full: it has been asked to stop before, and is at it.
            Some(()) = terminate.recv() => drop(stopped.try_send("SIGTERM")),
            Some(()) = interrupt.recv() => drop(stopped.try_send("SIGINT")),
            Some(()) = hangup.recv() => tracing::info!("SIGHUP: the configuration is read at start only; restart to have a new one"),
        }
    }
}
