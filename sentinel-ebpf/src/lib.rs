//! The layouts that the BPF programs and userspace share.
//!
//! Only plain data: fixed widths, every byte of padding spelt out, sizes asserted, so that a change on one side cannot
//! shift a field under the other. Addresses are in network byte order, as the kernel keeps them; all else is native.
#![no_std]

/// How many listeners can be watched at once.
pub const MAX_LISTENERS: u32 = 256;
/// How many connections can be followed at once. Eight places make a set, and each connection has its set: with 13,000 open,
/// one newcomer in 500,000 finds no free place, with 26,000 one in 4,000, and another is forgotten for it.
pub const MAX_CONNECTIONS: u32 = 131_072;
/// How many source prefixes of each kind can be remembered. Four places make a set ([`SourceSet`]): of 8,192 prefixes one in
/// 200 is forgotten, of 16,384 one in 27, of 32,768 one in five.
pub const MAX_SOURCES: u32 = 32_768;
/// Places of a [`SourceSet`].
pub const SOURCE_WAYS: usize = 4;
/// Sets of each kind of source; those of a kind follow each other, in the order of [`SourceKind`].
pub const SOURCE_SETS: u32 = MAX_SOURCES / SOURCE_WAYS as u32;
/// Words of the bitmap of watched ports: one bit a port.
pub const PORT_WORDS: u32 = 65_536 / u64::BITS;
/// Buckets of the greeting histogram: the last one begins at 2^31 us, 36 minutes.
pub const GREETING_BUCKETS: usize = 32;

/// `sk_family`, and the family in a [`ListenerKey`].
pub const AF_INET: u16 = 2;
/// `sk_family`, and the family in a [`ListenerKey`]. A dual-stack listener and its IPv4 children are of this family.
pub const AF_INET6: u16 = 10;

/// Byte offsets of kernel fields, read by userspace from /sys/kernel/btf/vmlinux: aya writes no CO-RE relocations for
/// Rust programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// From `struct sock`, which every inet and tcp socket begins with.
    pub skc_num: u32,
    pub skc_family: u32,
    pub skc_daddr: u32,
    pub skc_rcv_saddr: u32,
    pub skc_v6_daddr: u32,
    pub skc_v6_rcv_saddr: u32,
    pub skc_net: u32,
    pub sk_protocol: u32,
    pub sk_socket: u32,
    pub sk_err: u32,
    pub sk_ack_backlog: u32,
    pub sk_max_ack_backlog: u32,
    pub inet_sport: u32,
    pub data_segs_out: u32,
    pub bytes_acked: u32,
    /// 0 when the kernel has no such field; no real one lies at 0.
    pub rack_mstamp: u32,
    /// From `struct net`.
    pub net_inum: u32,
    /// From `struct sk_buff`.
    pub skb_protocol: u32,
}

/// What a listener is found by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerKey {
    /// `net.ns.inum`: the inode of /proc/PID/ns/net.
    pub netns: u32,
    /// Host byte order.
    pub port: u16,
    /// [`AF_INET`] or [`AF_INET6`].
    pub family: u16,
    /// All zero for the unspecified address; IPv4 in the first four bytes.
    pub address: [u64; 2],
}

/// The life of a slot of [`ListenerStats`]: the index in the low byte, and above it how often the slot was given away.
/// A connection remembers the whole, so that one that outlives the watch of its listener is not counted on the slot's
/// next owner.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId(pub u32);

impl SlotId {
    pub const fn index(self) -> u32 {
        self.0 % MAX_LISTENERS
    }

    /// The same slot for its next owner.
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(MAX_LISTENERS))
    }
}

/// What is counted of one listener, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerStats {
    /// Whose counts these are; a program that holds another one does not count.
    pub id: SlotId,
    /// Which epoch `high_water` is of; 0 before the first arrival.
    pub epoch: u32,
    /// Deepest accept queue in `epoch`.
    pub high_water: u32,
    /// Deepest accept queue in the epoch before it.
    pub previous_high_water: u32,
    /// Accept queue right after the last arrival on this CPU.
    pub last_depth: u32,
    /// The listener's backlog at that time.
    pub last_limit: u32,
    /// When that was, CLOCK_MONOTONIC; 0 before the first.
    pub last_ns: u64,
    pub connections: u64,
    /// Arrivals that filled the queue: the kernel drops the next one.
    pub filled: u64,
    /// The client left (FIN or RST) while it waited in the accept queue.
    pub early_queued: u64,
    /// Of those, the ones that turned out to be half-closed and did read the greeting.
    pub early_queued_retracted: u64,
    /// The client left after accept() and before the first byte of the greeting.
    pub early_before_greeting: u64,
    /// Connections that the kernel dropped because the accept queue was full.
    pub overflows: u64,
    /// Closed by SOCK_DESTROY, ours or another's.
    pub destroyed: u64,
    /// First data that was acknowledged after it had been sent more than once, or together with more: no latency taken.
    pub greetings_unsure: u64,
    /// Sum of the latencies in `greetings_log2_us`, microseconds.
    pub greetings_sum_us: u64,
    /// Element i: greetings that took [2^i, 2^(i+1)) microseconds; element 0 also those below 1.
    pub greetings_log2_us: [u64; GREETING_BUCKETS],
}

impl ListenerStats {
    /// Nothing counted yet.
    pub const fn new(id: SlotId) -> Self {
        Self {
            id,
            epoch: 0,
            high_water: 0,
            previous_high_water: 0,
            last_depth: 0,
            last_limit: 0,
            last_ns: 0,
            connections: 0,
            filled: 0,
            early_queued: 0,
            early_queued_retracted: 0,
            early_before_greeting: 0,
            overflows: 0,
            destroyed: 0,
            greetings_unsure: 0,
            greetings_sum_us: 0,
            greetings_log2_us: [0; GREETING_BUCKETS],
        }
    }
}

/// What is counted of source prefixes, over all watched listeners: a prefix has one of the places of its set, each place one
/// element of the arrays. A newcomer takes the place of the longest unseen. The kernel's own LRU map would keep exactly the
/// last ones, and costs three times as much for each new prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceSet {
    /// The prefix in network byte order.
    pub prefix: [u64; SOURCE_WAYS],
    /// CLOCK_MONOTONIC; 0 for a free place.
    pub last_ns: [u64; SOURCE_WAYS],
    pub connections: [u64; SOURCE_WAYS],
    /// Early disconnects of either kind.
    pub early: [u64; SOURCE_WAYS],
}

/// A kind of source prefix: index of its count of evictions, and of its part of the sets.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// IPv4 address.
    V4Host = 0,
    /// IPv4 /24.
    V4Net = 1,
    /// IPv6 /64.
    V6Net = 2,
}

impl SourceKind {
    pub const COUNT: u32 = 3;
    /// All of them, by index.
    pub const ALL: [Self; Self::COUNT as usize] = [Self::V4Host, Self::V4Net, Self::V6Net];

    /// Index of the [`SourceSet`] of a prefix.
    #[inline(always)]
    pub const fn set_of(self, prefix: u64) -> u32 {
        self as u32 * SOURCE_SETS + set_of(prefix, SOURCE_SETS)
    }
}

/// Which of `sets` (a power of two) a key belongs to: the upper bits of a product with 2^64 / golden ratio (Knuth, The Art of
/// Computer Programming 6.4), in which all bits of the key have a say.
#[inline(always)]
pub const fn set_of(key: u64, sets: u32) -> u32 {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - sets.ilog2())) as u32
}

/// Index of the count of forgotten connections, after those of the kinds of sources.
pub const CONNECTION_EVICTIONS: u32 = SourceKind::COUNT;
/// How many counts of evictions there are.
pub const EVICTION_COUNTS: u32 = CONNECTION_EVICTIONS + 1;

const _: () = assert!(size_of::<Offsets>() == 72);
const _: () = assert!(size_of::<ListenerKey>() == 24);
const _: () = assert!(size_of::<ListenerStats>() == 360);
const _: () = assert!(size_of::<SourceSet>() == 128);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya wants the promise that these are plain bytes")]
mod pod {
    use super::{ListenerKey, ListenerStats, Offsets, SlotId, SourceSet};

    // SAFETY: repr(C) or repr(transparent), integers only, no padding (the sizes above are the sums of the fields).
    unsafe impl aya::Pod for Offsets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SlotId {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListenerStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceSet {}
}
