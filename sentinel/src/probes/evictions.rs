//! What the bounded maps had to forget.

use aya::maps::{MapData, MapError, PerCpuArray};
use sentinel_ebpf::{CONNECTION_EVICTIONS, SourceKind};

/// Entries that were dropped to make room for newer ones, since the daemon began.
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
    pub(super) fn read(counts: &PerCpuArray<MapData, u64>) -> Result<Self, MapError> {
        let of = |index: u32| Ok::<_, MapError>(counts.get(&index, 0)?.iter().sum());
        Ok(Self {
            v4_hosts: of(SourceKind::V4Host as u32)?,
            v4_nets: of(SourceKind::V4Net as u32)?,
            v6_nets: of(SourceKind::V6Net as u32)?,
            connections: of(CONNECTION_EVICTIONS)?,
        })
    }

    pub(super) fn of_sources(&self) -> u64 {
        self.v4_hosts + self.v4_nets + self.v6_nets
    }
}
