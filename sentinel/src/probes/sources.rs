//! Source prefixes: who connects, and who leaves early.

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::maps::{Array, MapData, MapError};
use sentinel_ebpf::{SOURCE_SETS, SOURCE_WAYS, SourceKind, SourceSet};

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

/// The kernel's map of them.
pub(super) struct SourceMap(pub(super) Array<MapData, SourceSet>);

impl SourceMap {
    /// The `top` ones of all.
    pub(super) fn read(&self, top: usize) -> Result<Vec<SourcePrefix>, MapError> {
        let mut prefixes = Vec::new();
        for kind in SourceKind::ALL {
            for index in indices(kind) {
                prefixes.extend(known(kind, &self.0.get(&index, 0)?));
            }
        }
        prefixes.sort_unstable_by(|a, b| {
            (b.early, b.connections)
                .cmp(&(a.early, a.connections))
                .then_with(|| a.prefix.cmp(&b.prefix))
        });
        prefixes.truncate(top);
        Ok(prefixes)
    }

    /// Forgets an IPv4 client, as if it had never come.
    pub(super) fn forget(&mut self, client: Ipv4Addr) -> Result<(), MapError> {
        let [a, b, c, _] = client.octets();
        for (kind, prefix) in [
            (SourceKind::V4Host, client),
            (SourceKind::V4Net, Ipv4Addr::new(a, b, c, 0)),
        ] {
            let prefix = u64::from(u32::from_ne_bytes(prefix.octets()));
            let index = kind.set_of(prefix);
            let mut set = self.0.get(&index, 0)?;
            for place in 0..SOURCE_WAYS {
                if set.prefix[place] == prefix {
                    set.last_ns[place] = 0;
                }
            }
            self.0.set(index, set, 0)?;
        }
        Ok(())
    }
}

fn indices(kind: SourceKind) -> std::ops::Range<u32> {
    let first = kind as u32 * SOURCE_SETS;
    first..first + SOURCE_SETS
}

/// The prefixes of one set.
fn known(kind: SourceKind, set: &SourceSet) -> impl Iterator<Item = SourcePrefix> {
    let taken = (0..SOURCE_WAYS).filter(|&place| set.last_ns[place] != 0);
    taken.map(move |place| SourcePrefix {
        prefix: match kind {
            SourceKind::V4Host => format!("{}/32", v4(set.prefix[place] as u32)),
            SourceKind::V4Net => format!("{}/24", v4(set.prefix[place] as u32)),
            SourceKind::V6Net => format!("{}/64", v6(set.prefix[place])),
        },
        connections: set.connections[place],
        early: set.early[place],
    })
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
