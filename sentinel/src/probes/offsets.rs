//! Where the fields that the programs read lie in this kernel's structures.

use std::path::Path;
use std::sync::OnceLock;

use btf_rs::{Btf, BtfType, Struct, Type};
use sentinel_ebpf::Offsets;

use super::Error;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The offsets of the running kernel. Parsing its BTF takes 40 to 120 ms, and is done once: no process outlives its
/// kernel.
pub(super) fn of_running_kernel() -> Result<Offsets, Error> {
    static KNOWN: OnceLock<Offsets> = OnceLock::new();
    if let Some(offsets) = KNOWN.get() {
        return Ok(*offsets);
    }
    let path = Path::new(VMLINUX);
    let btf = Btf::from_file(path).map_err(|error| Error::NoBtf {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let offsets = of(&btf)?;
    Ok(*KNOWN.get_or_init(|| offsets))
}

fn of(btf: &Btf) -> Result<Offsets, Error> {
    let field = |path: &'static str| offset(btf, path).ok_or(Error::NoField { field: path });
    Ok(Offsets {
        skc_num: field("sock.__sk_common.skc_num")?,
        skc_family: field("sock.__sk_common.skc_family")?,
        skc_daddr: field("sock.__sk_common.skc_daddr")?,
        skc_rcv_saddr: field("sock.__sk_common.skc_rcv_saddr")?,
        skc_v6_daddr: field("sock.__sk_common.skc_v6_daddr")?,
        skc_v6_rcv_saddr: field("sock.__sk_common.skc_v6_rcv_saddr")?,
        skc_net: field("sock.__sk_common.skc_net.net")?,
        sk_protocol: field("sock.sk_protocol")?,
        sk_socket: field("sock.sk_socket")?,
        sk_err: field("sock.sk_err")?,
        sk_ack_backlog: field("sock.sk_ack_backlog")?,
        sk_max_ack_backlog: field("sock.sk_max_ack_backlog")?,
        inet_sport: field("inet_sock.inet_sport")?,
        data_segs_out: field("tcp_sock.data_segs_out")?,
        bytes_acked: field("tcp_sock.bytes_acked")?,
        // The greeting probe has a second source for this one.
        rack_mstamp: offset(btf, "tcp_sock.rack.mstamp").unwrap_or(0),
        net_inum: field("net.ns.inum")?,
        skb_protocol: field("sk_buff.protocol")?,
    })
}

/// Byte offset of a dotted path that begins with the structure's name.
fn offset(btf: &Btf, path: &str) -> Option<u32> {
    let (structure, fields) = path.split_once('.')?;
    // A name can belong to a forward declaration or a function too.
    let types = btf.resolve_types_by_name(structure).ok()?;
    let mut at = types.into_iter().find_map(composite)?;
    let mut bits = 0;
    let mut fields = fields.split('.').peekable();
    while let Some(name) = fields.next() {
        let (offset, member) = member(btf, &at, name)?;
        bits += offset;
        if fields.peek().is_some() {
            at = composite(member)?;
        }
    }
    (bits % 8 == 0).then_some(bits / 8)
}

/// A member's offset in bits and its type, looked for in anonymous structures and unions too, as in C.
fn member(btf: &Btf, at: &Struct, name: &str) -> Option<(u32, Type)> {
    at.members.iter().find_map(|member| {
        let found = btf.resolve_name(member).unwrap_or_default();
        if found == name {
            return Some((member.bit_offset(), resolved(btf, member)?));
        }
        if !found.is_empty() {
            return None;
        }
        let inner = composite(resolved(btf, member)?)?;
        let (offset, kind) = self::member(btf, &inner, name)?;
        Some((member.bit_offset() + offset, kind))
    })
}

/// The type of a member without the typedefs and qualifiers around it.
fn resolved(btf: &Btf, member: &dyn BtfType) -> Option<Type> {
    btf.chained_type_iter(member).find(|kind| {
        !matches!(
            kind,
            Type::Typedef(_) | Type::Const(_) | Type::Volatile(_) | Type::TypeTag(_)
        )
    })
}

fn composite(kind: Type) -> Option<Struct> {
    match kind {
        Type::Struct(inner) | Type::Union(inner) => Some(inner),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields whose place is part of the kernel's ABI or has been the same from 5.10 to 7.3.
    #[test]
    fn finds_the_fields_of_the_running_kernel() {
        let offsets = of_running_kernel().unwrap();
        assert_eq!(offsets.skc_daddr, 0);
        assert_eq!(offsets.skc_rcv_saddr, 4);
        assert_eq!(offsets.skc_num, 14);
        assert_eq!(offsets.skc_family, 16);
        assert_eq!(offsets.sk_max_ack_backlog, offsets.sk_ack_backlog + 4);
        assert_ne!(offsets.rack_mstamp, 0);
    }

    #[test]
    fn a_field_that_is_not_there_is_not_made_up() {
        let btf = Btf::from_file(VMLINUX).unwrap();
        assert_eq!(offset(&btf, "sock.sk_no_such_field"), None);
        assert_eq!(offset(&btf, "no_such_struct.sk_err"), None);
        assert_eq!(offset(&btf, "sock.sk_err.inner"), None);
    }
}
