//! What the bounded maps had to forget.

use sentinel_ebpf::{MAX_CONNECTIONS, MAX_SOURCES, SourceKind};

/// Entries that were dropped to make room for newer ones, since the daemon began. At least these: a map begins to forget
/// when up to some hundred of its places, which each CPU keeps at hand for itself, are still free (kernel/bpf/bpf_lru_list.c).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evictions {
    /// IPv4 addresses.
    pub v4_hosts: u64,
    /// IPv4 /24.
    pub v4_nets: u64,
    /// IPv6 /64.
    pub v6_nets: u64,
    /// Connections whose end and greeting are not counted.
    pub connections: u64,
}

impl Evictions {
    /// Takes in what has gone into the maps and was not taken out again. Never goes down: of the connections only those
    /// beyond the map are known to be gone, and those that end make the sum smaller.
    pub(super) fn see(&mut self, sources: [u64; SourceKind::COUNT as usize], connections: u64) {
        let beyond = |kind: SourceKind| sources[kind as usize].saturating_sub(u64::from(MAX_SOURCES));
        self.v4_hosts = beyond(SourceKind::V4Host);
        self.v4_nets = beyond(SourceKind::V4Net);
        self.v6_nets = beyond(SourceKind::V6Net);
        // Read on one CPU after the other, the sum can be off to below zero.
        let connections = connections.cast_signed().max(0).cast_unsigned();
        let beyond = connections.saturating_sub(u64::from(MAX_CONNECTIONS));
        self.connections = self.connections.max(beyond);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_maps_is_gone_and_stays_so() {
        let mut evictions = Evictions::default();
        evictions.see([u64::from(MAX_SOURCES), 0, 0], u64::MAX);
        assert_eq!(evictions, Evictions::default());
        evictions.see([u64::from(MAX_SOURCES) + 7, 3, 0], u64::from(MAX_CONNECTIONS) + 2);
        assert_eq!(
            (evictions.v4_hosts, evictions.v4_nets, evictions.connections),
            (7, 0, 2)
        );
        evictions.see([u64::from(MAX_SOURCES) + 7, 3, 0], 0);
        assert_eq!(evictions.connections, 2);
    }
}
