//! Which listeners are counted, from when, and until when.

use smtp_sentinel::signals::ListenerId;
use smtp_sentinel::status::ProbeState;

use crate::harness::{Server, probes, read, read_when, reset};

#[test]
fn a_port_that_is_not_watched_counts_nothing() {
    let mut probes = probes();
    let watched = Server::new(16);
    let other = Server::new(16);
    probes.watch(&[watched.id]);
    drop(other.connect());
    let _client = watched.connect();
    let reading = read_when(&mut probes, watched.id, |reading| reading.counts.connections > 0);
    assert_eq!(reading.counts.connections, 1);
    assert_eq!(reading.counts.early_queued, 0);
    let sources = probes.sources(usize::MAX).prefixes;
    assert!(
        sources.iter().all(|source| source.connections == 1),
        "{sources:?}"
    );
}

#[test]
fn what_stays_watched_goes_on_and_what_comes_back_begins_anew() {
    let mut probes = probes();
    let (stays, comes_back) = (Server::new(16), Server::new(16));
    probes.watch(&[stays.id, comes_back.id]);
    let _clients = [stays.connect(), comes_back.connect()];
    read_when(&mut probes, stays.id, |reading| reading.counts.connections == 1);
    read_when(&mut probes, comes_back.id, |reading| {
        reading.counts.connections == 1
    });

    probes.watch(&[stays.id]);
    let _unseen = comes_back.connect();
    probes.watch(&[comes_back.id, stays.id]);
    assert_eq!(read(&mut probes, stays.id).counts.connections, 1);
    let reading = read(&mut probes, comes_back.id);
    assert_eq!((reading.counts.connections, reading.queue), (0, None));
}

/// Listeners that exist only as names.
fn names(count: u16) -> impl Iterator<Item = ListenerId> {
    (1..=count).map(|port| ListenerId {
        netns: 1,
        address: ([192, 0, 2, 1], port).into(),
    })
}

#[test]
fn the_next_owner_of_a_slot_does_not_inherit_its_connections() {
    let mut probes = probes();
    let (old, new) = (Server::new(16), Server::new(16));
    probes.watch(&[old.id]);
    let client = old.connect();
    read_when(&mut probes, old.id, |reading| reading.counts.connections == 1);
    probes.watch(&[]);

    // All 256 slots: the one that was freed last is the last to be given away, and goes to `new`. The port of `old`
    // stays watched for another listener's sake, so that its connection is still looked at.
    let namesake = ListenerId { netns: 1, ..old.id };
    let all: Vec<ListenerId> = names(254).chain([namesake, new.id]).collect();
    probes.watch(&all);
    reset(client);
    let _client = new.connect();
    let reading = read_when(&mut probes, new.id, |reading| reading.counts.connections == 1);
    assert_eq!(reading.counts.early_queued, 0);
    assert_eq!(probes.health()[0].state, ProbeState::Ok);
}

#[test]
fn listeners_beyond_the_last_slot_are_left_out_and_health_says_so() {
    let mut probes = probes();
    let server = Server::new(16);
    let all: Vec<ListenerId> = [server.id].into_iter().chain(names(258)).collect();
    probes.watch(&all);
    let state = &probes.health()[0];
    assert_eq!(state.state, ProbeState::Fallback);
    assert!(
        state.reason.starts_with("3 listeners are not counted"),
        "{}",
        state.reason
    );
    let _client = server.connect();
    read_when(&mut probes, server.id, |reading| reading.counts.connections == 1);

    probes.watch(&all[..256]);
    assert_eq!(probes.health()[0].state, ProbeState::Ok);
}
