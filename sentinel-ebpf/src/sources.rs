//! Connections and early disconnects by source prefix, over all watched listeners.
//!
//! One map a kind of prefix, so that a flood from IPv6 addresses cannot push the IPv4 ones out. The maps are shared
//! between the CPUs: their counts go up by [`add`].

use aya_ebpf::{bindings::BPF_NOEXIST, maps::LruHashMap};
use sentinel_ebpf::{AF_INET6, SourceKind, SourceStats};

use crate::{
    maps::{Conn, SOURCE_INSERTS, SOURCES_V4_HOST, SOURCES_V4_NET, SOURCES_V6_NET, add},
    sock::Sock,
};

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
    pub(crate) fn of(sk: Sock, family: u16) -> Self {
        if family != AF_INET6 {
            return Self {
                prefix: u64::from(sk.client_v4()),
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
            count_connection(&SOURCES_V6_NET, SourceKind::V6Net, self.prefix, now);
        } else {
            let address = self.prefix as u32;
            count_connection(&SOURCES_V4_HOST, SourceKind::V4Host, address, now);
            count_connection(&SOURCES_V4_NET, SourceKind::V4Net, net_of(address), now);
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
            change_early(&SOURCES_V6_NET, self.prefix, change);
        } else {
            let address = self.prefix as u32;
            change_early(&SOURCES_V4_HOST, address, change);
            change_early(&SOURCES_V4_NET, net_of(address), change);
        }
    }
}

/// The /24.
#[inline(always)]
fn net_of(address: u32) -> u32 {
    address & u32::from_ne_bytes([255, 255, 255, 0])
}

#[inline(always)]
fn count_connection<K>(map: &LruHashMap<K, SourceStats>, kind: SourceKind, key: K, now: u64) {
    if touch(map, &key, now) {
        return;
    }
    let first = SourceStats {
        connections: 1,
        early: 0,
        first_ns: now,
        last_ns: now,
    };
    if map.insert(&key, first, u64::from(BPF_NOEXIST)).is_ok() {
        if let Some(inserts) = SOURCE_INSERTS.get_ptr_mut(kind as u32) {
            // SAFETY: a live map value, this CPU's own.
            add(unsafe { &mut *inserts }, 1);
        }
    } else {
        // Another CPU was first; or there is no room to be had, which the LRU does not know.
        touch(map, &key, now);
    }
}

#[inline(always)]
fn touch<K>(map: &LruHashMap<K, SourceStats>, key: &K, now: u64) -> bool {
    let Some(source) = map.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: a live map value; when the LRU gives it to another source in this instant, that one counts one too many.
    let source = unsafe { &mut *source };
    add(&mut source.connections, 1);
    source.last_ns = now;
    true
}

#[inline(always)]
fn change_early<K>(map: &LruHashMap<K, SourceStats>, key: K, change: u64) {
    if let Some(source) = map.get_ptr_mut(&key) {
        // SAFETY: as in `touch`.
        let source = unsafe { &mut *source };
        // Not below zero: the source may have been forgotten and begun anew since its early disconnect was counted.
        if change == 1 || source.early > 0 {
            add(&mut source.early, change);
        }
    }
}
