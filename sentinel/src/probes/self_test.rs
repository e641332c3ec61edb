//! Proves on a listener of our own that a new connection carries its listener's queue.
//!
//! That it does is how the kernel happens to clone a socket, and no promise of its (sentinel-ebpf, sock.rs, backlog). It
//! held on every kernel tried from 5.10 to 7.3; where it does not, the depths must not be believed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use sentinel_ebpf::{ListenerStats, SlotId};
use socket2::{Domain, Protocol, Socket, Type};

use super::kernel::{Kernel, listener_here};
use super::slots::Slots;
use super::watched::{Sees, Watched};
use super::{Error, ListenerReading};
use crate::signals::AcceptQueue;

/// What the listener asks for; below any somaxconn that leaves a mail server working.
const BACKLOG: u32 = 8;
/// On loopback a connection is counted before connect() returns, or right after on another CPU.
const PATIENCE: Duration = Duration::from_millis(2);
const TRIES: u32 = 25;

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no connection over loopback ({0})")]
    Loopback(#[from] io::Error),
    #[error("{0}")]
    Kernel(#[from] Error),
    #[error("connection {nth} was not seen")]
    Unseen { nth: u32 },
    #[error("connection {nth} carried {seen}, not depth {nth} of {BACKLOG}")]
    Wrong { nth: u32, seen: Queue },
}

/// Connects twice to an own listener and compares what was counted. Leaves no trace in the counts, the slots or the
/// sources.
pub(super) fn run(kernel: &mut Kernel, slots: &mut Slots) -> Result<(), Failure> {
    let listener = listen()?;
    let address = listener.local_addr()?;
    let id = listener_here(address.ip(), address.port())?;
    let slot = slots.take().ok_or(Failure::Unseen { nth: 0 })?;
    kernel.watch(&id, slot)?;
    kernel.set_ports([address.port()].into_iter())?;

    let outcome = connect_twice(kernel, slot, address);

    // Closed before the watch ends: else its children would be left in the table of connections.
    drop(listener);
    kernel.unwatch(&id)?;
    kernel.set_ports(std::iter::empty())?;
    kernel.forget_source(Ipv4Addr::LOCALHOST)?;
    slots.free(slot);
    outcome
}

/// The standard library's listener asks for a backlog of its own choice.
fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG as i32)?;
    Ok(socket.into())
}

fn connect_twice(kernel: &Kernel, slot: SlotId, address: SocketAddr) -> Result<(), Failure> {
    let mut clients = Vec::new();
    for nth in 1..=2 {
        clients.push(TcpStream::connect_timeout(&address, PATIENCE * TRIES)?);
        let seen = wait_for(kernel, slot, nth)?;
        if seen.depth != nth || seen.limit != BACKLOG {
            return Err(Failure::Wrong {
                nth,
                seen: Queue(seen),
            });
        }
    }
    Ok(())
}

fn wait_for(kernel: &Kernel, slot: SlotId, nth: u32) -> Result<AcceptQueue, Failure> {
    for _ in 0..TRIES {
        let stats = kernel.stats(slot)?;
        if let ListenerReading {
            counts,
            queue: Some(queue),
            ..
        } = read(slot, &stats)
            && counts.connections >= u64::from(nth)
        {
            return Ok(queue);
        }
        thread::sleep(PATIENCE);
    }
    Err(Failure::Unseen { nth })
}

fn read(slot: SlotId, stats: &[ListenerStats]) -> ListenerReading {
    let sees = Sees {
        queue: true,
        overflows: false,
    };
    Watched::new(slot).read(stats, 0, sees)
}

#[derive(Debug)]
pub(super) struct Queue(AcceptQueue);

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "depth {} of {}", self.0.depth, self.0.limit)
    }
}
