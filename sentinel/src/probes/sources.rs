//! Source prefixes: who connects, and who leaves early.

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::maps::{HashMap, IterableMap, MapData, MapError, PerCpuArray};
use sentinel_ebpf::{SourceKind, SourceStats};

/// What is known of the sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Most early disconnects first, then most connections.
    pub prefixes: Vec<SourcePrefix>,
    /// How many prefixes were dropped to make room for newer ones; theirs are the longest unseen.
    pub forgotten: u64,
}

/// One prefix: an IPv4 /32 or /24, or an IPv6 /64. A client is counted in each kind that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePrefix {
    /// `192.0.2.1/32`, `192.0.2.0/24`, `2001:db8::/64`.
    pub prefix: String,
    pub connections: u64,
    /// Early disconnects of either kind.
    pub early: u64,
}

/// The kernel's maps of them.
pub(super) struct SourceMaps {
    pub(super) v4_host: HashMap<MapData, u32, SourceStats>,
    pub(super) v4_net: HashMap<MapData, u32, SourceStats>,
    pub(super) v6_net: HashMap<MapData, u64, SourceStats>,
    pub(super) inserts: PerCpuArray<MapData, u64>,
}

impl SourceMaps {
    /// How many entries each kind of prefix has had, by [`SourceKind`].
    pub(super) fn inserted(&self) -> Result<[u64; SourceKind::COUNT as usize], MapError> {
        let mut inserted = [0; SourceKind::COUNT as usize];
        for (kind, sum) in (0..).zip(&mut inserted) {
            *sum = self.inserts.get(&kind, 0)?.iter().sum();
        }
        Ok(inserted)
    }

    pub(super) fn read(&self, top: usize) -> Result<Sources, MapError> {
        let inserted: u64 = self.inserted()?.iter().sum();
        let mut prefixes = Vec::new();
        collect(&self.v4_host, &mut prefixes, |key| format!("{}/32", v4(key)))?;
        collect(&self.v4_net, &mut prefixes, |key| format!("{}/24", v4(key)))?;
        collect(&self.v6_net, &mut prefixes, |key| format!("{}/64", v6(key)))?;

        let forgotten = inserted.saturating_sub(prefixes.len() as u64);
        prefixes.sort_unstable_by(|a, b| {
            (b.early, b.connections)
                .cmp(&(a.early, a.connections))
                .then_with(|| a.prefix.cmp(&b.prefix))
        });
        prefixes.truncate(top);
        Ok(Sources { prefixes, forgotten })
    }

    /// Forgets every source, as if none had been seen.
    pub(super) fn clear(&mut self) -> Result<(), MapError> {
        remove_all(&mut self.v4_host)?;
        remove_all(&mut self.v4_net)?;
        remove_all(&mut self.v6_net)?;
        for kind in 0..SourceKind::COUNT {
            let zeroes = vec![0; self.inserts.get(&kind, 0)?.len()];
            self.inserts
                .set(kind, zeroes.try_into().map_err(MapError::IoError)?, 0)?;
        }
        Ok(())
    }
}

fn collect<K: aya::Pod>(
    map: &HashMap<MapData, K, SourceStats>,
    into: &mut Vec<SourcePrefix>,
    text: impl Fn(K) -> String,
) -> Result<(), MapError> {
    for entry in map.iter() {
        let (key, stats) = entry?;
        into.push(SourcePrefix {
            prefix: text(key),
            connections: stats.connections,
            early: stats.early,
        });
    }
    Ok(())
}

fn remove_all<K: aya::Pod>(map: &mut HashMap<MapData, K, SourceStats>) -> Result<(), MapError>
where
    HashMap<MapData, K, SourceStats>: IterableMap<K, SourceStats>,
{
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| map.remove(key))
}

/// The kernel keeps addresses in network byte order.
fn v4(key: u32) -> Ipv4Addr {
    Ipv4Addr::from(key.to_ne_bytes())
}

fn v6(key: u64) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&key.to_ne_bytes());
    Ipv6Addr::from(octets)
}
