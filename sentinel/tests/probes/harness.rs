//! Listeners, clients, and patience.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use smtp_sentinel::clock;
use smtp_sentinel::probes::{ListenerReading, OverflowSource, Probes, SourcePrefix};
use smtp_sentinel::signals::ListenerId;
use smtp_sentinel::status::ProbeState;
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) const GREETING: &[u8] = b"220 test ESMTP\r\n";

/// Probes that all work, or no test.
pub(crate) fn probes() -> Probes {
    probes_with(&OverflowSource::ALL)
}

/// The same, with these sources of overflows. They may all be refused: some kernels are built without them, and what
/// stands in then is tested too.
pub(crate) fn probes_with(sources: &[OverflowSource]) -> Probes {
    let probes = Probes::start_with(sources);
    for probe in probes.health().iter().filter(|probe| probe.name != "overflow") {
        assert_eq!(
            probe.state,
            ProbeState::Ok,
            "these tests need root with BPF; probe {}: {}",
            probe.name,
            probe.reason
        );
    }
    probes
}

/// A listener and the name that it is counted under.
pub(crate) struct Server {
    pub(crate) socket: Socket,
    pub(crate) id: ListenerId,
}

impl Server {
    /// On 127.0.0.1.
    pub(crate) fn new(backlog: i32) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), backlog, Protocol::TCP)
    }

    pub(crate) fn at(address: SocketAddr, backlog: i32, protocol: Protocol) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(backlog).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self {
            socket,
            id: ListenerId {
                netns: netns(),
                address,
            },
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.id.address.port()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect((Ipv4Addr::LOCALHOST, self.port()).into())
    }

    pub(crate) fn accept(&self) -> TcpStream {
        self.socket.accept().unwrap().0.into()
    }

    /// What the kernel says: each listening socket's accept queue and its limit.
    pub(crate) fn queues_by_ss(&self) -> Vec<(u32, u32)> {
        let output = ss(&["-Hltn", &format!("sport = :{}", self.port())]);
        let number = |field: Option<&str>| field.unwrap().parse().unwrap();
        output
            .lines()
            .map(|line| {
                let mut fields = line.split_whitespace().skip(1);
                (number(fields.next()), number(fields.next()))
            })
            .collect()
    }
}

/// Runs ss(8).
pub(crate) fn ss(arguments: &[&str]) -> String {
    let output = Command::new("ss").args(arguments).output().unwrap();
    assert!(output.status.success(), "ss {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap()
}

pub(crate) fn connect_from(ip: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// Closes with a RST.
pub(crate) fn reset(client: TcpStream) {
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Has the client read the greeting.
pub(crate) fn greet(server: &mut TcpStream, client: &mut TcpStream) {
    server.write_all(GREETING).unwrap();
    client.read_exact(&mut [0; GREETING.len()]).unwrap();
}

/// Says what was counted beside what the kernel says; `cargo xtask kernels` makes its table of it.
pub(crate) fn fact(name: &str, ours: impl fmt::Display, kernel: impl fmt::Display) {
    println!("fact {name} ours={ours} kernel={kernel}");
}

/// Gives the calling thread a network namespace of its own, with a loopback.
pub(crate) fn enter_own_netns() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Of the calling thread.
pub(crate) fn netns() -> u32 {
    fs::metadata("/proc/thread-self/ns/net")
        .unwrap()
        .ino()
        .try_into()
        .unwrap()
}

/// The listener's counts, now.
pub(crate) fn read(probes: &mut Probes, id: ListenerId) -> ListenerReading {
    probes
        .read(clock::now().mono)
        .remove(&id)
        .expect("the listener is watched")
}

/// The listener's counts as soon as `done` says so; the kernel takes its time over the end of a connection.
pub(crate) fn read_when(
    probes: &mut Probes,
    id: ListenerId,
    done: impl Fn(&ListenerReading) -> bool,
) -> ListenerReading {
    wait(|| {
        let reading = read(probes, id);
        if done(&reading) {
            Ok(reading)
        } else {
            Err(format!("{reading:?}"))
        }
    })
}

/// The source prefix as soon as `done` says so.
pub(crate) fn source_when(
    probes: &Probes,
    prefix: &str,
    done: impl Fn(&SourcePrefix) -> bool,
) -> SourcePrefix {
    wait(|| {
        let sources = probes.sources(usize::MAX);
        let found = sources
            .prefixes
            .iter()
            .find(|source| source.prefix == prefix && done(source));
        found.cloned().ok_or(format!("{prefix} in {sources:?}"))
    })
}

/// Asks until there is an answer, and panics with the last refusal after some seconds.
pub(crate) fn wait<T>(mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline: Instant = clock::now().mono + Duration::from_secs(5);
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(refusal) => assert!(clock::now().mono < deadline, "still not: {refusal}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}
