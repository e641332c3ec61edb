//! Reading `struct sock` at the offsets that userspace found.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use sentinel_ebpf::{AF_INET6, ListenerKey, Offsets};

/// Set by userspace before the programs are loaded. Read field by field and volatile: the compiler must not take the
/// zeroes below for the truth, and the verifier sees constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    skc_num: 0,
    skc_family: 0,
    skc_daddr: 0,
    skc_rcv_saddr: 0,
    skc_v6_daddr: 0,
    skc_v6_rcv_saddr: 0,
    skc_net: 0,
    sk_protocol: 0,
    sk_socket: 0,
    sk_err: 0,
    sk_ack_backlog: 0,
    sk_max_ack_backlog: 0,
    inet_sport: 0,
    data_segs_out: 0,
    bytes_acked: 0,
    rack_mstamp: 0,
    net_inum: 0,
    skb_protocol: 0,
};

/// include/uapi/linux/if_ether.h
const ETH_P_IPV6: u16 = 0x86dd;

macro_rules! offset {
    ($field:ident) => {
        // SAFETY: reads an initialised static.
        u64::from(unsafe { core::ptr::read_volatile(&raw const OFFSETS.$field) })
    };
}

/// The address of a `struct sock` that the kernel handed to us. A field that cannot be read is 0, which every caller
/// treats as "not ours": the kernel's own sockets are always readable.
#[derive(Clone, Copy)]
pub(crate) struct Sock(pub(crate) u64);

/// What a `struct sock` begins with.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// Only meaningful for a socket of AF_INET, like the next.
    pub(crate) client_v4: u32,
    pub(crate) local_v4: u32,
    /// The local one, in host byte order.
    pub(crate) port: u16,
    pub(crate) family: u16,
}

impl Sock {
    /// Makes a number of a pointer that the verifier knows as one, and so lets nobody calculate with: it goes through memory,
    /// read by a helper that does not know what is in there.
    #[inline(always)]
    pub(crate) fn of_pointer(pointer: u64) -> Self {
        Self(read((&raw const pointer) as u64))
    }

    /// Port, family and IPv4 addresses, in one read where they lie beside each other as on every kernel tried; the port is 0
    /// once it is given back, which is before ->CLOSE: there, use [`Sock::source_port`].
    #[inline(always)]
    pub(crate) fn head(self) -> Head {
        let start = offset!(skc_daddr);
        let (local, port, family) = (offset!(skc_rcv_saddr), offset!(skc_num), offset!(skc_family));
        // The verifier knows the offsets, and keeps one of the two ways.
        if local == start + 4 && port == start + 14 && family == start + 16 {
            let [client_v4, local_v4, _, ports, family] = read::<[u32; 5]>(self.0 + start);
            Head {
                client_v4,
                local_v4,
                port: (ports >> 16) as u16,
                family: family as u16,
            }
        } else {
            Head {
                client_v4: read(self.0 + start),
                local_v4: read(self.0 + local),
                port: read(self.0 + port),
                family: read(self.0 + family),
            }
        }
    }

    /// The local port as it stays until the end (`inet_sport`), in host byte order.
    #[inline(always)]
    pub(crate) fn source_port(self) -> u16 {
        u16::from_be(read(self.0 + offset!(inet_sport)))
    }

    /// Two bytes wide: MPTCP is 262, and its low byte is TCP's 6.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u16 {
        read(self.0 + offset!(sk_protocol))
    }

    /// Errno as the kernel keeps it, positive.
    #[inline(always)]
    pub(crate) fn error(self) -> i32 {
        read(self.0 + offset!(sk_err))
    }

    /// Still in the accept queue: accept() is what ties a child to a `struct socket`.
    #[inline(always)]
    pub(crate) fn is_queued(self) -> bool {
        read::<u64>(self.0 + offset!(sk_socket)) == 0
    }

    /// The accept queue and its limit. A child is a copy of its listener, made before it was itself queued, so at its
    /// SYN_RECV -> ESTABLISHED the first is one short of the depth with the child in it.
    #[inline(always)]
    pub(crate) fn backlog(self) -> (u32, u32) {
        let (depth, limit) = (offset!(sk_ack_backlog), offset!(sk_max_ack_backlog));
        // The verifier knows both offsets, and keeps one of the two ways.
        if limit == depth + 4 {
            let [depth, limit] = read(self.0 + depth);
            (depth, limit)
        } else {
            (read(self.0 + depth), read(self.0 + limit))
        }
    }

    /// Segments with data that were sent, retransmissions included.
    #[inline(always)]
    pub(crate) fn data_segs_out(self) -> u32 {
        read(self.0 + offset!(data_segs_out))
    }

    /// Whether the client acknowledged any data. The FIN counts as one byte.
    #[inline(always)]
    pub(crate) fn has_acked_data(self) -> bool {
        read::<u64>(self.0 + offset!(bytes_acked)) > 1
    }

    /// When the newest segment that was acknowledged had been sent, CLOCK_MONOTONIC in microseconds; 0 if not known.
    #[inline(always)]
    pub(crate) fn rack_mstamp(self) -> u64 {
        match offset!(rack_mstamp) {
            0 => 0,
            offset => read(self.0 + offset),
        }
    }

    /// The key of the listener that is bound to exactly the child's own address.
    #[inline(always)]
    pub(crate) fn listener_key(self, head: Head) -> ListenerKey {
        let net: u64 = read(self.0 + offset!(skc_net));
        let netns = read(net + offset!(net_inum));
        let address = if head.family == AF_INET6 {
            read(self.0 + offset!(skc_v6_rcv_saddr))
        } else {
            [u64::from(head.local_v4), 0]
        };
        ListenerKey {
            netns,
            port: head.port,
            family: head.family,
            address,
        }
    }

    /// The client's address; only meaningful for a socket of AF_INET6.
    #[inline(always)]
    pub(crate) fn client_v6(self) -> [u64; 2] {
        read(self.0 + offset!(skc_v6_daddr))
    }
}

/// The address of a `struct sk_buff` that the kernel handed to us.
#[derive(Clone, Copy)]
pub(crate) struct Packet(pub(crate) u64);

impl Packet {
    #[inline(always)]
    pub(crate) fn is_ipv6(self) -> bool {
        u16::from_be(read(self.0 + offset!(skb_protocol))) == ETH_P_IPV6
    }
}

/// The helper fills the value with zeroes if it cannot read the address (kernel/trace/bpf_trace.c,
/// bpf_probe_read_kernel_common), so its answer is not asked for: half of the program would be branches on it.
#[inline(always)]
fn read<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: writes to a local of this size; the helper checks the address that it reads from.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    value
}
