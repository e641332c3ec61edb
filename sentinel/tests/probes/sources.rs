//! Connections and early disconnects by source prefix.

use std::net::Ipv4Addr;

use smtp_sentinel::probes::SourcePrefix;

use crate::harness::{Server, connect_from, probes, read_when, source_when};

#[test]
fn each_address_and_each_net_has_its_count() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let from = |a, b| connect_from(Ipv4Addr::new(127, 0, a, b).into(), server.id.address);
    let _open = [from(1, 1), from(1, 2), from(2, 1)];
    drop([from(1, 2), from(1, 2)]);
    read_when(&mut probes, server.id, |reading| reading.counts.early_queued == 2);

    source_when(&probes, "127.0.1.0/24", |source| source.early == 2);
    let sources = probes.sources(3);
    let source = |prefix: &str, connections, early| SourcePrefix {
        prefix: prefix.to_owned(),
        connections,
        early,
    };
    assert_eq!(
        sources.prefixes,
        [
            source("127.0.1.0/24", 4, 2),
            source("127.0.1.2/32", 3, 2),
            source("127.0.1.1/32", 1, 0)
        ]
    );
    assert_eq!(sources.forgotten, 0);
    assert_eq!(probes.sources(usize::MAX).prefixes.len(), 5);
}

#[test]
fn the_self_test_leaves_no_source_behind() {
    assert_eq!(probes().sources(usize::MAX), Default::default());
}
