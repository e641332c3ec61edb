//! The loaded object: its programs, and its maps as typed doors.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::programs::{CgroupAttachMode, ProgramError, RawTracePoint, SockOps};
use aya::{Ebpf, EbpfLoader};
use sentinel_ebpf::{AF_INET, AF_INET6, ListenerKey, ListenerStats, PORT_WORDS, SlotId};

use super::error::Error;
use super::evictions::Evictions;
use super::log::Drain;
use super::offsets;
use super::overflow::{self, OverflowSource};
use super::sources::{SourceMap, Sources};
use crate::privileges::{Capabilities, Capability};
use crate::signals::ListenerId;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sentinel-ebpf"));

/// Dropping it detaches the programs.
pub(super) struct Kernel {
    ebpf: Ebpf,
    watched: HashMap<MapData, ListenerKey, SlotId>,
    ports: Array<MapData, u64>,
    stats: PerCpuArray<MapData, ListenerStats>,
    epoch: Array<MapData, u32>,
    evictions: PerCpuArray<MapData, u64>,
    sources: SourceMap,
    /// What `ports` says, so that only words that change are written.
    watched_ports: BTreeSet<u16>,
}

impl Kernel {
    /// Makes the maps and reads the kernel's layout; nothing runs yet.
    pub(super) fn load(capabilities: &Capabilities) -> Result<Self, Error> {
        if let Some(missing) = capabilities.missing(&[Capability::Bpf, Capability::Perfmon]) {
            return Err(Error::Capability { missing });
        }
        let offsets = offsets::of_running_kernel()?;
        // No BTF of the kernel for aya: there are no CO-RE relocations to do, and parsing it takes a while.
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("OFFSETS", &offsets, true)
            .load(OBJECT)?;
        Ok(Self {
            watched: take(&mut ebpf, "WATCHED")?,
            ports: take(&mut ebpf, "PORTS")?,
            stats: take(&mut ebpf, "STATS")?,
            epoch: take(&mut ebpf, "EPOCH")?,
            evictions: take(&mut ebpf, "EVICTIONS")?,
            sources: SourceMap(take(&mut ebpf, "SOURCES")?),
            watched_ports: BTreeSet::new(),
            ebpf,
        })
    }

    /// Before the programs are attached.
    pub(super) fn take_log(&mut self) -> Result<Drain, Error> {
        Drain::new(&mut self.ebpf).map_err(|error| Error::Object {
            reason: error.to_string(),
        })
    }

    pub(super) fn attach_state(&mut self) -> Result<(), Error> {
        let program: &mut RawTracePoint = program(&mut self.ebpf, "state")?;
        program.load()?;
        program.attach("inet_sock_set_state")?;
        Ok(())
    }

    /// Says what it does not see, if anything.
    pub(super) fn attach_greeting(&mut self, capabilities: &Capabilities) -> Result<Option<String>, Error> {
        if let Some(missing) = capabilities.missing(&[Capability::NetAdmin]) {
            return Err(Error::Capability { missing });
        }
        let path = cgroup2_mount()?;
        let cgroup = File::open(&path).map_err(|source| Error::Cgroup2 {
            path: path.clone(),
            source,
        })?;
        let program: &mut SockOps = program(&mut self.ebpf, "greeting")?;
        program.load()?;
        // A BPF link takes no flags (AllowMultiple is EINVAL), and stands beside other programs by itself.
        program.attach(cgroup, CgroupAttachMode::Single)?;
        Ok(is_below_root(&path).then(|| {
            format!(
                "{} is not the root of cgroup2: greetings of processes outside of it are not seen",
                path.display()
            )
        }))
    }

    /// Says by which source overflows are counted, or why each of them is not to be had.
    pub(super) fn attach_overflow(
        &mut self,
        sources: &[OverflowSource],
        capabilities: &Capabilities,
    ) -> Result<OverflowSource, Vec<(OverflowSource, Error)>> {
        overflow::attach(&mut self.ebpf, sources, capabilities)
    }

    /// Counts the listener in the slot, from zero.
    pub(super) fn watch(&mut self, listener: &ListenerId, slot: SlotId) -> Result<(), Error> {
        let cpus = self.stats.get(&slot.index(), 0)?.len();
        let zeroes =
            PerCpuValues::try_from(vec![ListenerStats::new(slot); cpus]).map_err(MapError::IoError)?;
        self.stats.set(slot.index(), zeroes, 0)?;
        self.watched.insert(key(listener), slot, 0)?;
        Ok(())
    }

    pub(super) fn unwatch(&mut self, listener: &ListenerId) -> Result<(), Error> {
        Ok(self.watched.remove(&key(listener))?)
    }

    /// Makes `ports` the ones whose connections are looked at.
    pub(super) fn set_ports(&mut self, ports: impl Iterator<Item = u16>) -> Result<(), Error> {
        let wanted: BTreeSet<u16> = ports.collect();
        let changed: BTreeSet<u32> = wanted
            .symmetric_difference(&self.watched_ports)
            .map(|port| u32::from(*port) / u64::BITS)
            .collect();
        for word in changed.into_iter().filter(|word| *word < PORT_WORDS) {
            let bits = wanted
                .iter()
                .filter(|port| u32::from(**port) / u64::BITS == word)
                .fold(0_u64, |bits, port| bits | 1 << (u32::from(*port) % u64::BITS));
            self.ports.set(word, bits, 0)?;
        }
        self.watched_ports = wanted;
        Ok(())
    }

    /// The counts of a slot, one element a CPU.
    pub(super) fn stats(&self, slot: SlotId) -> Result<PerCpuValues<ListenerStats>, Error> {
        Ok(self.stats.get(&slot.index(), 0)?)
    }

    /// Whether this thread may read the maps at all.
    pub(super) fn readable(&self) -> bool {
        self.epoch.get(&0, 0).is_ok()
    }

    pub(super) fn set_epoch(&mut self, epoch: u32) -> Result<(), Error> {
        Ok(self.epoch.set(0, epoch, 0)?)
    }

    pub(super) fn sources(&self, top: usize) -> Result<Sources, Error> {
        Ok(Sources {
            prefixes: self.sources.read(top)?,
            forgotten: self.evictions()?.of_sources(),
        })
    }

    pub(super) fn evictions(&self) -> Result<Evictions, Error> {
        Ok(Evictions::read(&self.evictions)?)
    }

    /// How often the programs have run; only counted while a descriptor of `enable_stats` is open.
    #[cfg(test)]
    pub(super) fn runs(&self) -> u64 {
        self.ebpf
            .programs()
            // Of the programs of a source that does not serve there is nothing to know.
            .filter_map(|(_, program)| program.info().ok())
            .map(|info| info.run_count())
            .sum()
    }

    /// Takes an IPv4 client out of the sources.
    pub(super) fn forget_source(&mut self, client: Ipv4Addr) -> Result<(), Error> {
        Ok(self.sources.forget(client)?)
    }
}

fn take<M>(ebpf: &mut Ebpf, name: &str) -> Result<M, Error>
where
    M: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| Error::Object {
        reason: format!("no map {name}"),
    })?;
    Ok(map.try_into()?)
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Object {
        reason: format!("no program {name}"),
    })?;
    Ok(program.try_into()?)
}

fn key(listener: &ListenerId) -> ListenerKey {
    let mut octets = [0; 16];
    let family = match listener.address.ip() {
        IpAddr::V4(v4) => {
            octets[..4].copy_from_slice(&v4.octets());
            AF_INET
        }
        IpAddr::V6(v6) => {
            octets = v6.octets();
            AF_INET6
        }
    };
    let address = u128::from_ne_bytes(octets);
    // The first eight bytes are the lower half: BPF is little-endian here (bpfel), and so is the machine.
    let address = [address as u64, (address >> 64) as u64];
    ListenerKey {
        netns: listener.netns,
        port: listener.address.port(),
        family,
        address,
    }
}

/// The listener at `address` in the network namespace of the calling thread.
pub(super) fn listener_here(ip: IpAddr, port: u16) -> io::Result<ListenerId> {
    let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
    let netns = u32::try_from(inode).map_err(io::Error::other)?;
    Ok(ListenerId {
        netns,
        address: SocketAddr::new(ip, port),
    })
}

/// Where cgroup2 is mounted: alone, or beside version 1 (/sys/fs/cgroup/unified).
fn cgroup2_mount() -> Result<PathBuf, Error> {
    procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .ok()
        .into_iter()
        .flatten()
        // A bind mount of a part of the tree is listed too.
        .find(|mount| mount.fs_type == "cgroup2" && mount.root == "/")
        .map(|mount| mount.mount_point)
        .ok_or(Error::NoCgroup2)
}

/// In a cgroup namespace the mount's root looks like the root and is not; only the real one has no cgroup.events.
fn is_below_root(cgroup: &Path) -> bool {
    cgroup.join("cgroup.events").exists()
}
