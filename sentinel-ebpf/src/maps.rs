//! The maps, and the one way to a listener's counts. All are bounded; none grows with the number of packets.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use sentinel_ebpf::{
    ListenerKey, ListenerStats, MAX_CONNECTIONS, MAX_LISTENERS, MAX_SOURCES, PORT_WORDS, SlotId, SourceKind,
    SourceStats,
};

/// The watched listeners; written by userspace.
#[map]
pub(crate) static WATCHED: HashMap<ListenerKey, SlotId> = HashMap::with_max_entries(MAX_LISTENERS, 0);

/// One bit a watched port: turns the host's other connections away before anything else is read. Written by userspace.
#[map]
static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// Counts by slot. Per CPU, because a maximum cannot be kept atomically on 5.10 (no compare-and-exchange before 5.12).
#[map]
static STATS: PerCpuArray<ListenerStats> = PerCpuArray::with_max_entries(MAX_LISTENERS, 0);

/// The current epoch of the high-water marks; userspace moves it on, once a second.
#[map]
pub(crate) static EPOCH: Array<u32> = Array::with_max_entries(1, 0);

/// The connections that are open, by the address of their `struct sock`.
#[map]
pub(crate) static CONNS: LruHashMap<u64, Conn> = LruHashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// How many went into [`CONNS`], less those that were taken out again; less the entries there are, it is how many were
/// forgotten.
#[map]
static FOLLOWED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static SOURCES_V4_HOST: LruHashMap<u32, SourceStats> =
    LruHashMap::with_max_entries(MAX_SOURCES, 0);
#[map]
pub(crate) static SOURCES_V4_NET: LruHashMap<u32, SourceStats> = LruHashMap::with_max_entries(MAX_SOURCES, 0);
#[map]
pub(crate) static SOURCES_V6_NET: LruHashMap<u64, SourceStats> = LruHashMap::with_max_entries(MAX_SOURCES, 0);

/// Insertions by [`SourceKind`]; less the entries there are, it is how many sources were forgotten.
#[map]
pub(crate) static SOURCE_INSERTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SourceKind::COUNT, 0);

/// A connection between its ESTABLISHED and its CLOSE.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Conn {
    /// The key again, as a number: sock_ops may not calculate with its own pointer to the socket, but it may with this.
    pub(crate) sk: u64,
    pub(crate) established_ns: u64,
    /// The prefix of a [`crate::sources::Client`].
    pub(crate) client: u64,
    pub(crate) id: SlotId,
    /// The constants below.
    pub(crate) flags: u32,
}

impl Conn {
    /// The client's address is IPv6, and not an IPv4 one in disguise.
    pub(crate) const CLIENT_V6: u32 = 1;
    /// The client sent a FIN while it waited in the accept queue: counted as early disconnect there and then.
    pub(crate) const LEFT_QUEUED: u32 = 2;
    /// The client sent a FIN after accept() and before we sent data; CLOSE tells whether it left or only half-closed.
    pub(crate) const LEFT_UNGREETED: u32 = 4;
    /// The greeting has its latency.
    pub(crate) const GREETED: u32 = 8;
}

/// Whether any listener is watched on the port (host byte order).
#[inline(always)]
pub(crate) fn port_is_watched(port: u16) -> bool {
    let word = u32::from(port) / u64::BITS;
    let bit = u32::from(port) % u64::BITS;
    PORTS.get(word).is_some_and(|bits| bits >> bit & 1 == 1)
}

/// This CPU's counts of the slot, unless the slot has another owner by now.
#[inline(always)]
pub(crate) fn stats(id: SlotId) -> Option<&'static mut ListenerStats> {
    let stats = STATS.get_ptr_mut(id.index())?;
    // SAFETY: a map value lives as long as the program, and is this CPU's own; a softirq that comes in between two
    // instructions goes through `add`, which is one instruction.
    let stats = unsafe { &mut *stats };
    (stats.id == id).then_some(stats)
}

/// Notes one more (1) or one less in [`CONNS`].
#[inline(always)]
pub(crate) fn note_followed(change: i64) {
    if let Some(followed) = FOLLOWED.get_ptr_mut(0) {
        // SAFETY: a live map value, this CPU's own.
        add(unsafe { &mut *followed }, change as u64);
    }
}

/// Adds in one instruction, which 5.10 knows too. `core` has no fetch_add for BPF: it wants compare-and-exchange.
#[inline(always)]
pub(crate) fn add(counter: &mut u64, amount: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: writes the eight bytes that the exclusive reference covers.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) core::ptr::from_mut(counter),
            amount = in(reg) amount,
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        *counter = counter.wrapping_add(amount);
    }
}
