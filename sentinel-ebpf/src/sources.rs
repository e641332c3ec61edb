//! Connections and early disconnects by source prefix, over all watched listeners.
//!
//! Places of its own for each kind of prefix, so that a flood from IPv6 addresses cannot push the IPv4 ones out. They are
//! shared between the CPUs: their counts go up by [`add`]. Two sources that take the same place in the same few nanoseconds
//! may get some counts of each other's.

use aya_ebpf::{macros::map, maps::Array};
use sentinel_ebpf::{AF_INET6, SOURCE_SETS, SOURCE_WAYS, SourceKind, SourceSet};

use crate::{
    conns::Conn,
    maps::{add, count_eviction},
    sock::{Head, Sock},
};

/// Read by userspace.
#[map]
static SOURCES: Array<SourceSet> = Array::with_max_entries(SOURCE_SETS * SourceKind::COUNT, 0);

/// A client: an IPv4 address, or the /64 of an IPv6 one; in network byte order. Not an enum: the compiler keeps the
/// payload of the other variant in a register that it never sets, and the verifier refuses to see that one copied.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    prefix: u64,
    /// [`Conn::CLIENT_V6`] or 0.
    family_flag: u32,
}

impl Client {
    /// An IPv4 client of a dual-stack listener is an IPv4 client.
    #[inline(always)]
    pub(crate) fn of(sk: Sock, head: Head) -> Self {
        if head.family != AF_INET6 {
            return Self {
                prefix: u64::from(head.client_v4),
                family_flag: 0,
            };
        }
        let [net, host] = sk.client_v6();
        // ::ffff:a.b.c.d
        if net == 0 && host as u32 == 0xffff_u32.to_be() {
            return Self {
                prefix: host >> 32,
                family_flag: 0,
            };
        }
        Self {
            prefix: net,
            family_flag: Conn::CLIENT_V6,
        }
    }

    #[inline(always)]
    pub(crate) fn from_conn(conn: &Conn) -> Self {
        Self {
            prefix: conn.client,
            family_flag: conn.flags & Conn::CLIENT_V6,
        }
    }

    /// `Conn::client` and the flag that goes with it.
    #[inline(always)]
    pub(crate) fn to_conn(self) -> (u64, u32) {
        (self.prefix, self.family_flag)
    }

    #[inline(always)]
    pub(crate) fn count_connection(self, now: u64) {
        if self.family_flag != 0 {
            count_connection(SourceKind::V6Net, self.prefix, now);
        } else {
            count_connection(SourceKind::V4Host, self.prefix, now);
            count_connection(SourceKind::V4Net, net_of(self.prefix as u32).into(), now);
        }
    }

    #[inline(always)]
    pub(crate) fn count_early(self) {
        self.change_early(1);
    }

    /// Takes one early disconnect back.
    #[inline(always)]
    pub(crate) fn retract_early(self) {
        self.change_early(1_u64.wrapping_neg());
    }

    #[inline(always)]
    fn change_early(self, change: u64) {
        if self.family_flag != 0 {
            change_early(SourceKind::V6Net, self.prefix, change);
        } else {
            change_early(SourceKind::V4Host, self.prefix, change);
            change_early(SourceKind::V4Net, net_of(self.prefix as u32).into(), change);
        }
    }
}

/// The /24.
#[inline(always)]
fn net_of(address: u32) -> u32 {
    address & u32::from_ne_bytes([255, 255, 255, 0])
}

#[inline(always)]
fn count_connection(kind: SourceKind, prefix: u64, now: u64) {
    let Some(set) = set(kind, prefix) else { return };
    if let Some(place) = place_of(set, prefix) {
        set.last_ns[place] = now;
        add(&mut set.connections[place], 1);
        return;
    }
    let mut place = 0;
    let mut other = 1;
    while other < SOURCE_WAYS {
        if set.last_ns[other] < set.last_ns[place % SOURCE_WAYS] {
            place = other;
        }
        other += 1;
    }
    // For the verifier, which has lost sight of it.
    let place = place % SOURCE_WAYS;
    if set.last_ns[place] != 0 {
        count_eviction(kind as u32);
    }
    set.prefix[place] = prefix;
    set.last_ns[place] = now;
    set.connections[place] = 1;
    set.early[place] = 0;
}

#[inline(always)]
fn change_early(kind: SourceKind, prefix: u64, change: u64) {
    let Some(set) = set(kind, prefix) else { return };
    let Some(place) = place_of(set, prefix) else {
        return;
    };
    // Not below zero: the source may have been forgotten and begun anew since its early disconnect was counted.
    if change == 1 || set.early[place] > 0 {
        add(&mut set.early[place], change);
    }
}

#[inline(always)]
fn set(kind: SourceKind, prefix: u64) -> Option<&'static mut SourceSet> {
    let set = SOURCES.get_ptr_mut(kind.set_of(prefix))?;
    // SAFETY: a map value lives as long as the program; what other CPUs do to it meanwhile is said above.
    Some(unsafe { &mut *set })
}

#[inline(always)]
fn place_of(set: &SourceSet, prefix: u64) -> Option<usize> {
    let mut place = 0;
    while place < SOURCE_WAYS {
        if set.prefix[place] == prefix && set.last_ns[place] != 0 {
            return Some(place % SOURCE_WAYS);
        }
        place += 1;
    }
    None
}
