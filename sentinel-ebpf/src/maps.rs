//! The maps, and the one way to a listener's counts. All are bounded; none grows with the number of packets.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use sentinel_ebpf::{EVICTION_COUNTS, ListenerKey, ListenerStats, MAX_LISTENERS, PORT_WORDS, SlotId};

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

/// What was forgotten to make room: by [`SourceKind`](sentinel_ebpf::SourceKind), then
/// [`CONNECTION_EVICTIONS`](sentinel_ebpf::CONNECTION_EVICTIONS).
#[map]
static EVICTIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVICTION_COUNTS, 0);

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

/// Notes that something was forgotten, and says how much of its kind has been on this CPU.
#[inline(always)]
pub(crate) fn count_eviction(of: u32) -> u64 {
    let Some(evictions) = EVICTIONS.get_ptr_mut(of) else {
        return 0;
    };
    // SAFETY: a live map value, this CPU's own.
    let evictions = unsafe { &mut *evictions };
    add(evictions, 1);
    *evictions
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
