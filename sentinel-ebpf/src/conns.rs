//! The connections between their ESTABLISHED and their CLOSE, by the address of their `struct sock`.
//!
//! An array of sets of places, and not the kernel's hash: each connection is put in, found twice and taken out, and a place
//! in an array is found without a call, a lock or a list. Two CPUs that fill the last free place of a set in the same few
//! nanoseconds lose one connection; that one's end and greeting are not counted.

use aya_ebpf::{macros::map, maps::Array};
use sentinel_ebpf::{CONNECTION_EVICTIONS, MAX_CONNECTIONS, SlotId, set_of};

use crate::maps::count_eviction;

const WAYS: usize = 8;
const SETS: u32 = MAX_CONNECTIONS / WAYS as u32;

/// Written by the programs alone.
#[map]
static CONNS: Array<ConnSet> = Array::with_max_entries(SETS, 0);

#[repr(C)]
struct ConnSet {
    /// The address; 0 for a free place. Beside each other, so that a search reads one line of the cache.
    socks: [u64; WAYS],
    conns: [Conn; WAYS],
}

/// A connection between its ESTABLISHED and its CLOSE.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Conn {
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

/// Whether there was a place for a connection.
#[derive(PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    /// Another was forgotten for it, as many before.
    None,
    /// Another was forgotten for it, and is the first on this CPU.
    NoMore,
}

/// Follows the connection from now on.
#[inline(always)]
pub(crate) fn insert(sk: u64, conn: Conn) -> Room {
    let Some(set) = set(sk) else { return Room::None };
    let mut room = Room::Enough;
    let mut place = 0;
    // One that was here before under this address has ended unseen.
    while place < WAYS && set.socks[place] != 0 && set.socks[place] != sk {
        place += 1;
    }
    if place == WAYS {
        // Any will do; the lower bits of the clock are as good as a die.
        place = (conn.established_ns >> 4) as usize;
        room = match count_eviction(CONNECTION_EVICTIONS) {
            1 => Room::NoMore,
            _ => Room::None,
        };
    }
    // For the verifier, which has lost sight of it.
    let place = place % WAYS;
    set.conns[place] = conn;
    set.socks[place] = sk;
    room
}

/// The connection, if it is followed.
#[inline(always)]
pub(crate) fn get(sk: u64) -> Option<&'static mut Conn> {
    let set = set(sk)?;
    let place = place_of(set, sk)?;
    Some(&mut set.conns[place])
}

/// The connection, if it was followed; it is no longer.
#[inline(always)]
pub(crate) fn remove(sk: u64) -> Option<Conn> {
    let set = set(sk)?;
    let place = place_of(set, sk)?;
    set.socks[place] = 0;
    Some(set.conns[place])
}

#[inline(always)]
fn set(sk: u64) -> Option<&'static mut ConnSet> {
    let set = CONNS.get_ptr_mut(set_of(sk, SETS))?;
    // SAFETY: a map value lives as long as the program. Others use other places of it at the same time; the kernel holds the
    // socket's lock, so none uses the same.
    Some(unsafe { &mut *set })
}

#[inline(always)]
fn place_of(set: &ConnSet, sk: u64) -> Option<usize> {
    let mut place = 0;
    while place < WAYS {
        if set.socks[place] == sk {
            return Some(place % WAYS);
        }
        place += 1;
    }
    None
}
