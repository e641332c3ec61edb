//! The kernel's own socket table over netlink (sock_diag(7)): listening sockets with their accept queue, the
//! connections of one local port with who moved last, and the way to close one of them.
//!
//! A [`SockDiag`] sees the network namespace in which its netlink socket was opened, for as long as it lives; so
//! setns(2) is needed once a namespace and not once a look. Which connection is closed is decided in [`crate::shed`].

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_CLOSE_WAIT};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::unix::nlas::UnixDiagName;
use netlink_packet_sock_diag::unix::{self, UnixRequest};
use netlink_packet_sock_diag::{SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, SockDiagMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// The kernel answers a dump while we read it; it can only be late when the machine is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// One reply datagram of the kernel is at most 32 KiB (net/netlink/af_netlink.c, netlink_dump).
const REPLY_BYTES: usize = 64 * 1024;

/// A window into the socket table of one network namespace.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
    sequence: u32,
    reply: Vec<u8>,
}

/// A listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenSocket {
    pub address: SocketAddr,
    pub inode: u32,
    /// Connections waiting for accept().
    pub depth: u32,
    /// The backlog in force, somaxconn applied.
    pub backlog: u32,
}

/// A listening socket of the file system, as postscreen hands connections over through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixListener {
    /// As it was bound: relative to the queue directory for Postfix's.
    pub path: PathBuf,
    pub inode: u32,
    pub depth: u32,
    pub backlog: u32,
}

/// A server-side connection that is ESTABLISHED or CLOSE_WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Unique to the socket for the life of the kernel.
    pub cookie: [u8; 8],
    /// The interface that it is bound to, 0 for none.
    pub interface: u32,
    /// Given by the kernel at accept; 0 while it waits in the accept queue.
    pub inode: u32,
    /// The client has sent its FIN.
    pub client_closed: bool,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Since the server sent data last; since the handshake when it never did.
    pub since_sent: Duration,
    /// Since the client sent data last; since the handshake when it never did.
    pub since_received: Duration,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

impl Connection {
    /// A process has accepted it; else it waits in the accept queue.
    pub fn accepted(&self) -> bool {
        self.inode != 0
    }
}

impl SockDiag {
    /// Opens the window on our own network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        let limit = TimeVal::milliseconds(i64::try_from(ANSWER_WITHIN.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
        Ok(Self {
            socket,
            sequence: 0,
            reply: vec![0; REPLY_BYTES],
        })
    }

    /// Opens the window on the namespace behind `path` (/proc/PID/ns/net). Needs CAP_SYS_ADMIN.
    ///
    /// A thread of its own enters the namespace and ends: no other thread of ours ever leaves home.
    pub fn open_in(path: &Path) -> io::Result<Self> {
        let namespace = std::fs::File::open(path)?;
        let entered = thread::Builder::new().name("setns".into()).spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Self::open()
        })?;
        entered
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that enters the namespace panicked")))
    }

    /// All listening TCP sockets, IPv4 and IPv6.
    pub fn listeners(&mut self) -> io::Result<Vec<ListenSocket>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.dump(
                family,
                StateFlags::LISTEN,
                ExtensionFlags::empty(),
                0,
                |response| {
                    found.push(ListenSocket {
                        address: local(response),
                        inode: response.header.inode,
                        depth: response.header.recv_queue,
                        backlog: response.header.send_queue,
                    });
                },
            )?;
        }
        Ok(found)
    }

    /// All listening sockets of the file system that were bound in this network namespace.
    pub fn unix_listeners(&mut self) -> io::Result<Vec<UnixListener>> {
        let request = UnixRequest {
            state_flags: unix::StateFlags::LISTEN,
            inode: 0,
            show_flags: unix::ShowFlags::NAME | unix::ShowFlags::RQLEN,
            cookie: [0xff; 8],
        };
        self.send(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST | NLM_F_DUMP,
            SockDiagMessage::UnixRequest(request),
        )?;
        let mut found = Vec::new();
        self.replies(|message| {
            if let SockDiagMessage::UnixResponse(response) = message
                && let Some(UnixDiagName::Pathname(path)) = response.name()
            {
                found.push(UnixListener {
                    path: path.into(),
                    inode: response.header.inode,
                    depth: response.number_of_pending_connection().unwrap_or(0),
                    backlog: response.max_number_of_pending_connection().unwrap_or(0),
                });
            }
        })?;
        Ok(found)
    }

    /// The connections that came in through one of `listeners`.
    ///
    /// Each family costs a walk over the kernel's whole table of established connections, 1 ms for 262,144 buckets
    /// (kernel 6.18), so only the families that are listened on are asked for.
    pub fn connections(&mut self, listeners: &[SocketAddr]) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        let mut asked: Vec<(u8, u16)> = listeners
            .iter()
            .map(|listener| (family(*listener), listener.port()))
            .collect();
        asked.sort_unstable();
        asked.dedup();
        let owners = Owners::among(listeners.iter().copied());
        for (family, port) in asked {
            let states = StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT;
            self.dump(family, states, ExtensionFlags::INFO, port, |response| {
                found.extend(connection(response).filter(|connection| owners.of(connection.local).is_some()));
            })?;
        }
        Ok(found)
    }

    /// Closes a connection (SOCK_DESTROY, Linux 4.5 with CONFIG_INET_DIAG_DESTROY): the client gets a reset, the server
    /// ECONNABORTED. The cookie names this very socket, so a port that was used again meanwhile is not hit. `false`
    /// when it was gone already. Needs CAP_NET_ADMIN in the user namespace of the network namespace.
    pub fn destroy(&mut self, connection: &Connection) -> io::Result<bool> {
        let id = SocketId {
            source_port: connection.local.port(),
            destination_port: connection.remote.port(),
            source_address: connection.local.ip(),
            destination_address: connection.remote.ip(),
            interface_id: connection.interface,
            cookie: connection.cookie,
        };
        let request = InetRequest {
            family: family(connection.local),
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: id,
        };
        self.send(
            SOCK_DESTROY,
            NLM_F_REQUEST | NLM_F_ACK,
            SockDiagMessage::InetRequest(request),
        )?;
        loop {
            let length = self.receive()?;
            let message = parse(&self.reply[..length])?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            return match message.payload {
                NetlinkPayload::Error(error) if error.code.is_none() => Ok(true),
                NetlinkPayload::Error(error) if error.to_io().kind() == io::ErrorKind::NotFound => Ok(false),
                NetlinkPayload::Error(error) => Err(error.to_io()),
                _ => Err(io::Error::other(
                    "sock_diag answered a SOCK_DESTROY with something else than a result",
                )),
            };
        }
    }

    fn dump(
        &mut self,
        family: u8,
        states: StateFlags,
        extensions: ExtensionFlags,
        port: u16,
        mut each: impl FnMut(&InetResponse),
    ) -> io::Result<()> {
        // The kernel skips sockets of other ports before it formats them (net/ipv4/inet_diag.c,
        // inet_diag_dump_icsk: idiag_sport), so a busy proxy on the same host costs no copies.
        let id = if family == AF_INET {
            SocketId::new_v4()
        } else {
            SocketId::new_v6()
        };
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions,
            states,
            socket_id: SocketId {
                source_port: port,
                ..id
            },
        };
        self.send(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST | NLM_F_DUMP,
            SockDiagMessage::InetRequest(request),
        )?;
        self.replies(|message| {
            if let SockDiagMessage::InetResponse(response) = message {
                each(&response);
            }
        })
    }

    /// Hands on every message of a dump.
    fn replies(&mut self, mut each: impl FnMut(SockDiagMessage)) -> io::Result<()> {
        loop {
            let length = self.receive()?;
            let mut offset = 0;
            while offset < length {
                let message = parse(&self.reply[offset..length])?;
                // Messages are aligned to 4 bytes (NLMSG_ALIGN); a length of 0 would never end.
                offset += (message.header.length as usize).max(16).next_multiple_of(4);
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, request: SockDiagMessage) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        // The crate knows the number of SOCK_DESTROY, but finalizes every message as a query.
        message.header.message_type = kind;
        let mut bytes = vec![0; message.header.length as usize];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut room = &mut self.reply[..];
        let received = self.socket.recv(&mut room, 0)?;
        if received > REPLY_BYTES {
            return Err(io::Error::other(
                "a sock_diag reply was longer than the kernel ever sends",
            ));
        }
        Ok(received)
    }
}

fn parse(bytes: &[u8]) -> io::Result<NetlinkMessage<SockDiagMessage>> {
    NetlinkMessage::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("sock_diag reply: {error}")))
}

/// A dual-stack listener is AF_INET6, and so are the children that its IPv4 clients get.
fn family(listener: SocketAddr) -> u8 {
    if listener.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn local(response: &InetResponse) -> SocketAddr {
    let id = &response.header.socket_id;
    SocketAddr::new(id.source_address, id.source_port)
}

fn connection(response: &InetResponse) -> Option<Connection> {
    let info = response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    })?;
    let header = &response.header;
    let id = &header.socket_id;
    Some(Connection {
        local: local(response),
        remote: SocketAddr::new(id.destination_address, id.destination_port),
        cookie: id.cookie,
        interface: id.interface_id,
        inode: header.inode,
        client_closed: header.state == TCP_CLOSE_WAIT,
        bytes_sent: info.bytes_sent,
        bytes_received: info.bytes_received,
        since_sent: Duration::from_millis(u64::from(info.last_data_sent)),
        since_received: Duration::from_millis(u64::from(info.last_data_recv)),
        rtt: Duration::from_micros(u64::from(info.rtt)),
    })
}

/// Tells which of some listeners a connection came in through.
#[derive(Debug)]
pub struct Owners(HashSet<SocketAddr>);

impl Owners {
    pub fn among(listeners: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(listeners.into_iter().collect())
    }

    /// By the local address of the connection. The kernel prefers a socket that is bound to the very address over a
    /// wildcard one.
    pub fn of(&self, local: SocketAddr) -> Option<SocketAddr> {
        let any: IpAddr = match local {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        [local, SocketAddr::new(any, local.port())]
            .into_iter()
            .find(|address| self.0.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn queue_and_connections_agree_with_what_this_process_did() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut diag = SockDiag::open().unwrap();
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();

        let seen = diag.listeners().unwrap();
        let ours = seen.iter().find(|socket| socket.address == address).unwrap();
        assert_eq!(ours.depth, 3);

        let (mut served, peer) = listener.accept().unwrap();
        served.write_all(b"220 hello\r\n").unwrap();
        let server_side = diag.connections(&[address]).unwrap();
        assert_eq!(server_side.len(), 3);
        let accepted: Vec<_> = server_side.iter().filter(|c| c.accepted()).collect();
        assert_eq!(accepted.len(), 1);
        assert_eq!(accepted[0].remote, peer);
        assert_eq!(accepted[0].bytes_sent, 11);
        drop(clients);
    }

    #[test]
    fn a_client_that_gave_up_in_the_queue_is_seen_as_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(TcpStream::connect(address).unwrap());
        let mut diag = SockDiag::open().unwrap();
        let gone = diag.connections(&[address]).unwrap();
        assert_eq!(gone.len(), 1);
        assert!(gone[0].client_closed && !gone[0].accepted());
    }

    #[test]
    fn a_connection_is_closed_once_and_only_under_its_own_cookie() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let served = listener.accept().unwrap();
        let mut diag = SockDiag::open().unwrap();
        let connection = diag.connections(&[address]).unwrap()[0];

        let other = Connection {
            cookie: [1; 8],
            ..connection
        };
        assert!(!matches!(diag.destroy(&other), Ok(true)));
        assert!(diag.destroy(&connection).unwrap());
        let error = client.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(!diag.destroy(&connection).unwrap());
        drop(served);
    }

    #[test]
    fn the_listener_bound_to_the_address_owns_it_before_the_wildcard() {
        let any: SocketAddr = "0.0.0.0:25".parse().unwrap();
        let one: SocketAddr = "192.0.2.1:25".parse().unwrap();
        let v6: SocketAddr = "[::]:25".parse().unwrap();
        let owner = |listeners: &[SocketAddr], local| Owners::among(listeners.iter().copied()).of(local);
        assert_eq!(owner(&[any, one], one), Some(one));
        assert_eq!(owner(&[any, one], "192.0.2.9:25".parse().unwrap()), Some(any));
        assert_eq!(owner(&[any, v6], "[2001:db8::1]:25".parse().unwrap()), Some(v6));
        assert_eq!(owner(&[any], "192.0.2.9:587".parse().unwrap()), None);
    }

    #[test]
    fn a_dual_stack_listener_owns_its_mapped_clients() {
        let v6: SocketAddr = "[::]:25".parse().unwrap();
        assert_eq!(
            Owners::among([v6]).of("[::ffff:192.0.2.9]:25".parse().unwrap()),
            Some(v6)
        );
    }
}
