//! Overflows of the accept queue, by listener, against the kernel's own count (TcpExt ListenOverflows).
//!
//! Every scenario has a network namespace of its own, which that count is of. On a kernel that gives a source to nobody
//! the test holds the probe to saying so; `cargo xtask kernels` demands the numbers of every source on every kernel.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread;

// sockopt_impl finds the other two by their bare names.
use nix::{libc, setsockopt_impl, sockopt_impl};
use smtp_sentinel::probes::{OverflowSource, Probes};
use smtp_sentinel::signals::overflows::listen_overflows;
use smtp_sentinel::status::ProbeState;
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{Server, connect, enter_own_netns, fact, probes_with, read, wait};

const BACKLOG: i32 = 8;
/// One more fits than the limit says.
const FULL: usize = BACKLOG as usize + 1;

#[test]
fn dropped_syns_are_those_that_the_kernel_counts() {
    for source in OverflowSource::ALL {
        let Some(mut probes) = started_with(source) else {
            continue;
        };
        for (family, at) in listeners() {
            in_own_netns(|| {
                let server = Server::at(at, BACKLOG, Protocol::TCP);
                let other = Server::at(at, BACKLOG, Protocol::TCP);
                probes.watch(&[server.id, other.id]);
                let client = client_of(family, &server);
                let _queued: Vec<TcpStream> = (0..FULL).map(|_| connect(client)).collect();
                assert_eq!(
                    overflows(&mut probes, &server),
                    0,
                    "a queue that has just become full"
                );
                let _dropped: Vec<Socket> = (0..6).map(|_| begin_to_connect(client)).collect();

                let counted = agree(&mut probes, &server, 6);
                assert_eq!(overflows(&mut probes, &other), 0, "a neighbour with room");
                fact(&format!("dropped SYNs, {family}, {source}"), counted, counted);
            });
        }
    }
}

/// Handshakes whose last ACK comes while the queue is full. The listener waits for data, so that the ACK that counts is
/// the one that brings them, and the test says when.
#[test]
fn dropped_acks_are_those_that_the_kernel_counts() {
    for source in OverflowSource::ALL {
        let Some(mut probes) = started_with(source) else {
            continue;
        };
        for (family, at) in listeners() {
            in_own_netns(|| {
                let server = Server::at(at, BACKLOG, Protocol::TCP);
                nix::sys::socket::setsockopt(&server.socket, DeferAccept, &60).unwrap();
                probes.watch(&[server.id]);
                let client = client_of(family, &server);
                let mut waiting: Vec<TcpStream> = (0..6).map(|_| connect(client)).collect();
                let mut queued = Vec::new();
                for nth in 1..=FULL {
                    let mut stream = connect(client);
                    stream.write_all(b"x").unwrap();
                    queued.push(stream);
                    wait(|| match read(&mut probes, server.id).counts.connections {
                        connections if connections == nth as u64 => Ok(()),
                        connections => Err(format!("{connections} of {nth} queued")),
                    });
                }
                assert_eq!(
                    overflows(&mut probes, &server),
                    0,
                    "a queue that has just become full"
                );
                waiting
                    .iter_mut()
                    .for_each(|stream| stream.write_all(b"x").unwrap());

                let counted = agree(&mut probes, &server, 6);
                fact(&format!("dropped ACKs, {family}, {source}"), counted, counted);
            });
        }
    }
}

#[test]
fn without_a_source_overflows_are_unknown_and_health_says_what_stands_in() {
    let mut probes = Probes::start_with(&[]);
    let server = Server::new(BACKLOG);
    probes.watch(&[server.id]);
    let health = &probes.health()[4];
    assert_eq!(
        (health.name.as_str(), health.state),
        ("overflow", ProbeState::Fallback)
    );
    assert!(health.reason.contains("ListenOverflows"), "{health:?}");
    assert!(!probes.sees_overflows());
    assert_eq!(read(&mut probes, server.id).counts.overflows, None);
}

fn in_own_netns(scenario: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            enter_own_netns();
            scenario();
        });
    });
}

/// A kind of client, and where its listener listens.
fn listeners() -> [(&'static str, SocketAddr); 3] {
    [
        ("IPv4", (Ipv4Addr::LOCALHOST, 0).into()),
        ("IPv6", (Ipv6Addr::LOCALHOST, 0).into()),
        ("IPv4 of a dual-stack listener", (Ipv6Addr::UNSPECIFIED, 0).into()),
    ]
}

fn client_of(family: &str, server: &Server) -> SocketAddr {
    if family == "IPv6" {
        (Ipv6Addr::LOCALHOST, server.port()).into()
    } else {
        (Ipv4Addr::LOCALHOST, server.port()).into()
    }
}

/// Probes that count by this source and no other; None where the kernel refuses it, and then health says which.
fn started_with(source: OverflowSource) -> Option<Probes> {
    let probes = probes_with(&[source]);
    let health = &probes.health()[4];
    if health.state == ProbeState::Ok {
        assert!(health.reason.ends_with(&source.to_string()), "{health:?}");
        return Some(probes);
    }
    assert!(health.reason.starts_with(&source.to_string()), "{health:?}");
    println!("refused {source}: {}", health.reason);
    None
}

/// A SYN that nobody answers must not keep the test waiting.
fn begin_to_connect(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&to.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EINPROGRESS as i32));
    socket
}

fn overflows(probes: &mut Probes, server: &Server) -> u64 {
    read(probes, server.id)
        .counts
        .overflows
        .expect("a source is attached")
}

/// Our count, as soon as it is at least `least`; it must be the kernel's, of which more come by retransmission meanwhile.
fn agree(probes: &mut Probes, server: &Server, least: u64) -> u64 {
    wait(|| {
        let before = kernels_count().map_err(|error| error.to_string())?;
        let ours = overflows(probes, server);
        let after = kernels_count().map_err(|error| error.to_string())?;
        if before == after && ours == after && ours >= least {
            Ok(ours)
        } else {
            Err(format!(
                "ours {ours}, the kernel's {before} and then {after}, at least {least} expected"
            ))
        }
    })
}

/// Of the network namespace of the calling thread.
fn kernels_count() -> io::Result<u64> {
    listen_overflows(nix::unistd::gettid().as_raw())
}

sockopt_impl!(
    /// TCP_DEFER_ACCEPT (tcp(7)), in seconds.
    DeferAccept,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    u32
);
