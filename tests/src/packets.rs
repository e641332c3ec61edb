//! Clients made of packets: they speak just enough TCP on the client's end of the wire, so that neither a socket, a port nor
//! a state of this kernel is spent on them. So there can be a client from every address of the Internet, a SYN that nobody
//! follows up, and a cost that is the server's alone.
//!
//! Stateless: each answer follows from the packet that it answers. The kernel of the client namespace must not have these
//! addresses, or it would answer too, with a reset.

use std::io::IoSliceMut;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    self, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage,
};

use crate::clock;
use crate::netns::{Namespace, SERVER};

const SERVER_PORT: u16 = 25;

/// What the clients do once the server has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// Nothing: a SYN flood.
    Silent,
    /// Complete the handshake and leave at once with a reset.
    Reset,
    /// Complete the handshake, read the greeting, and leave with a FIN.
    Polite,
}

/// Who comes, and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    pub manners: Manners,
    pub count: u64,
    pub per_second: u64,
    /// How many addresses they come from, in turn.
    pub addresses: u32,
    /// From one address to the next: 256 for a /24 each.
    pub stride: u32,
}

/// What has become of them so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub syns: u64,
    /// Handshakes that the server took part in.
    pub established: u64,
    /// The server closed after the client had.
    pub finished: u64,
}

#[derive(Debug, Default)]
struct Counts {
    syns: AtomicU64,
    established: AtomicU64,
    finished: AtomicU64,
}

/// A running crowd. Dropping it stops it.
#[derive(Debug)]
pub struct Packets {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Lays a wire between the two whose far end has no address: what comes to the server from any address but its own goes out
/// there, and nobody but [`Packets`] answers.
///
/// # Errors
/// `ip` refuses.
pub fn join(server: &Namespace, clients: &Namespace) -> Result<()> {
    server.ip(&[
        "link",
        "add",
        "wire",
        "type",
        "veth",
        "peer",
        "name",
        "wire",
        "netns",
        &clients.path(),
    ])?;
    clients.ip(&["link", "set", "wire", "up"])?;
    server.ip(&["addr", "add", &format!("{SERVER}/24"), "dev", "wire"])?;
    server.ip(&["link", "set", "wire", "up"])?;
    let (_, mac) = clients.run(wire)?;
    server.ip(&[
        "neigh",
        "add",
        GATEWAY,
        "lladdr",
        &text(mac),
        "nud",
        "permanent",
        "dev",
        "wire",
    ])?;
    server.ip(&["route", "add", "default", "via", GATEWAY])
}

const GATEWAY: &str = "10.76.0.2";

/// The first client's address; the others follow in steps of [`Crowd::stride`].
const FIRST_CLIENT: u32 = u32::from_be_bytes([16, 0, 0, 1]);

impl Packets {
    /// # Errors
    /// No raw socket: not root.
    pub fn start(server: &Namespace, clients: &Namespace, crowd: Crowd) -> Result<Self> {
        let (_, server_mac) = server.run(wire)?;
        let counts = Arc::new(Counts::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&counts), Arc::clone(&stop));
        let thread = clients.spawn("packets", move || {
            let end = End::open(server_mac)?;
            end.serve(crowd, &theirs, &stopped)
        })?;
        Ok(Self {
            counts,
            stop,
            thread: Some(thread),
        })
    }

    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            syns: read(&self.counts.syns),
            established: read(&self.counts.established),
            finished: read(&self.counts.finished),
        }
    }

    /// No more of them, and no more answers.
    ///
    /// # Errors
    /// Why the crowd ended before.
    pub fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .ok()
                .context("the thread of the packets panicked")??;
        }
        Ok(self.tally())
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// This namespace's end of the wire, and its hardware address.
fn wire() -> Result<(LinkAddr, [u8; 6])> {
    let address = getifaddrs()?
        .filter(|one| one.interface_name == "wire")
        .find_map(|one| one.address?.as_link_addr().copied())
        .context("there is no wire in this namespace")?;
    let mac = address.addr().context("the wire has no hardware address")?;
    Ok((address, mac))
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The clients' end of the wire.
struct End {
    socket: OwnedFd,
    /// Destination, source, type: what every frame begins with.
    ethernet: [u8; 14],
    server: Ipv4Addr,
}

/// How long the thread sleeps when nothing is to be done.
const NAP: Duration = Duration::from_micros(300);

impl End {
    fn open(server_mac: [u8; 6]) -> Result<Self> {
        let (address, mac) = wire()?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthIp)?;
        socket::setsockopt(&socket, socket::sockopt::RcvBuf, &(4 << 20))?;
        bind(&socket, address)?;
        let mut ethernet = [0; 14];
        ethernet[..6].copy_from_slice(&server_mac);
        ethernet[6..12].copy_from_slice(&mac);
        ethernet[12..].copy_from_slice(&[0x08, 0x00]);
        Ok(Self {
            socket,
            ethernet,
            server: SERVER.parse()?,
        })
    }

    fn serve(&self, crowd: Crowd, counts: &Counts, stop: &AtomicBool) -> Result<()> {
        let start = clock::now();
        let mut frame = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            let due = start.elapsed().as_micros() * u128::from(crowd.per_second) / 1_000_000;
            let due = u64::try_from(due)?.min(crowd.count);
            let mut sent = counts.syns.load(Ordering::Relaxed);
            // In small portions, so that the answers are not kept waiting.
            let until = due.min(sent + 64);
            let mut idle = sent == until;
            while sent < until {
                self.send(&syn(sent, crowd, self.server))?;
                sent += 1;
            }
            counts.syns.store(sent, Ordering::Relaxed);
            for _ in 0..256 {
                let Some(length) = self.receive(&mut frame)? else {
                    break;
                };
                idle = false;
                if let Some(segment) = Segment::parse(frame.get(14..length).unwrap_or_default()) {
                    self.answer(&segment, crowd.manners, counts)?;
                }
            }
            if idle {
                thread::sleep(NAP);
            }
        }
        Ok(())
    }

    fn answer(&self, segment: &Segment, manners: Manners, counts: &Counts) -> Result<()> {
        let reply = |flags: u8, taken: u32| Segment {
            client: segment.client,
            client_port: segment.client_port,
            server: segment.server,
            seq: segment.ack,
            ack: segment.seq.wrapping_add(taken),
            flags,
            length: 0,
        };
        if manners == Manners::Silent || segment.flags & RST != 0 {
            return Ok(());
        }
        if segment.flags & (SYN | ACK) == SYN | ACK {
            counts.established.fetch_add(1, Ordering::Relaxed);
            self.send(&reply(ACK, 1))?;
            if manners == Manners::Reset {
                self.send(&reply(RST | ACK, 1))?;
            }
        } else if segment.flags & FIN != 0 {
            // Our own FIN took a number, and the server has acknowledged it by now.
            counts.finished.fetch_add(1, Ordering::Relaxed);
            self.send(&reply(ACK, segment.length + 1))?;
        } else if segment.length > 0 {
            self.send(&reply(FIN | ACK, segment.length))?;
        }
        Ok(())
    }

    fn send(&self, segment: &Segment) -> Result<()> {
        let mut frame = [0; 54];
        frame[..14].copy_from_slice(&self.ethernet);
        segment.write(&mut frame[14..]);
        match socket::send(self.socket.as_raw_fd(), &frame, MsgFlags::empty()) {
            // A full queue loses packets, as networks do.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error).context("sending on the wire"),
        }
    }

    fn receive(&self, frame: &mut [u8]) -> Result<Option<usize>> {
        let mut parts = [IoSliceMut::new(frame)];
        match socket::recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, None, MsgFlags::empty())
        {
            Ok(message) => Ok(Some(message.bytes)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("receiving on the wire"),
        }
    }
}

/// The address says which interface; the protocol in it is 0, which leaves that of the socket.
fn bind(socket: &OwnedFd, address: LinkAddr) -> Result<()> {
    ensure!(address.len() > 0, "an interface address has a length");
    Ok(socket::bind(socket.as_raw_fd(), &address)?)
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// One TCP segment between a client and the server, either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    client: Ipv4Addr,
    client_port: u16,
    server: Ipv4Addr,
    seq: u32,
    ack: u32,
    flags: u8,
    /// Bytes of data.
    length: u32,
}

fn syn(number: u64, crowd: Crowd, server: Ipv4Addr) -> Segment {
    let place = (number % u64::from(crowd.addresses)) as u32;
    Segment {
        // As far as 111.255.255.255: past that come the loopback and the multicast addresses.
        client: Ipv4Addr::from(FIRST_CLIENT + place.wrapping_mul(crowd.stride) % 0x6000_0000),
        client_port: 1024 + (number % 60_000) as u16,
        server,
        seq: number as u32,
        ack: 0,
        flags: SYN,
        length: 0,
    }
}

impl Segment {
    /// IPv4 and TCP without options, from the client to the server; no data.
    fn write(&self, packet: &mut [u8]) {
        packet[..12].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet[12..16].copy_from_slice(&self.client.octets());
        packet[16..20].copy_from_slice(&self.server.octets());
        let sum = checksum(0, &packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());

        let tcp = &mut packet[20..40];
        tcp[..2].copy_from_slice(&self.client_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&SERVER_PORT.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12..20].copy_from_slice(&[0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        // The pseudo header: both addresses, protocol 6, length 20.
        let pseudo = [self.client.octets(), self.server.octets(), [0, 6, 0, 20]].concat();
        let sum = checksum(ones(0, &pseudo), tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }

    /// From the server to a client; `None` for what is no TCP from our port.
    fn parse(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
        let header = usize::from(packet.first()? & 0xf) * 4;
        if packet.get(9) != Some(&6) || half(header)? != SERVER_PORT {
            return None;
        }
        let options = usize::from(packet.get(header + 12)? >> 4) * 4;
        Some(Self {
            server: Ipv4Addr::from(word(12)?),
            client: Ipv4Addr::from(word(16)?),
            client_port: half(header + 2)?,
            seq: word(header + 4)?,
            ack: word(header + 8)?,
            flags: *packet.get(header + 13)?,
            length: u32::from(half(2)?).checked_sub(u32::try_from(header + options).ok()?)?,
        })
    }
}

fn ones(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        sum + (u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
    })
}

/// The Internet checksum (RFC 1071).
fn checksum(sum: u32, bytes: &[u8]) -> u16 {
    let mut sum = ones(sum, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
