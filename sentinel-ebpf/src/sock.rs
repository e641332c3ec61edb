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

impl Sock {
    /// Host byte order. 0 once the port is given back, which is before ->CLOSE: there, use [`Sock::source_port`].
    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        read(self.0 + offset!(skc_num))
    }

    /// The local port as it stays until the end (`inet_sport`), in host byte order.
    #[inline(always)]
    pub(crate) fn source_port(self) -> u16 {
        u16::from_be(read(self.0 + offset!(inet_sport)))
    }

    #[inline(always)]
    pub(crate) fn family(self) -> u16 {
        read(self.0 + offset!(skc_family))
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
        (
            read(self.0 + offset!(sk_ack_backlog)),
            read(self.0 + offset!(sk_max_ack_backlog)),
        )
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
    pub(crate) fn listener_key(self, family: u16, port: u16) -> ListenerKey {
        let net: u64 = read(self.0 + offset!(skc_net));
        let netns = read(net + offset!(net_inum));
        let address = if family == AF_INET6 {
            read(self.0 + offset!(skc_v6_rcv_saddr))
        } else {
            [u64::from(read::<u32>(self.0 + offset!(skc_rcv_saddr))), 0]
        };
        ListenerKey {
            netns,
            port,
            family,
            address,
        }
    }

    /// The client's address; only meaningful for a socket of AF_INET.
    #[inline(always)]
    pub(crate) fn client_v4(self) -> u32 {
        read(self.0 + offset!(skc_daddr))
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
