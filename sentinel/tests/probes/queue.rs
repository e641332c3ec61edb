//! The accept queue: depth, high-water mark, limit.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::sync::mpsc;
use std::thread;

use smtp_sentinel::signals::AcceptQueue;
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{Server, connect, enter_own_netns, fact, greet, probes, read, read_when, reset};
use smtp_sentinel::probes::ListenerReading;

#[test]
fn ten_queued_connections_are_a_high_water_mark_of_ten() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let clients: Vec<TcpStream> = (0..10).map(|_| server.connect()).collect();

    let reading = read_when(&mut probes, server.id, |reading| reading.counts.connections == 10);
    assert_eq!(
        reading.queue,
        Some(AcceptQueue {
            depth: 10,
            limit: 16,
            high_water: 10
        })
    );
    assert_eq!(server.queues_by_ss(), [(10, 16)]);
    let (depth, limit) = server.queues_by_ss()[0];
    fact(
        "accept queue, depth of limit",
        reading
            .queue
            .map(|queue| format!("{} of {}", queue.depth, queue.limit))
            .unwrap(),
        format!("{depth} of {limit}"),
    );

    let accepted: Vec<TcpStream> = (0..10).map(|_| server.accept()).collect();
    let last = server.connect();
    let reading = read_when(&mut probes, server.id, |reading| reading.counts.connections == 11);
    assert_eq!(
        reading.queue,
        Some(AcceptQueue {
            depth: 1,
            limit: 16,
            high_water: 10
        })
    );
    assert_eq!(reading.filled, 0);
    drop((clients, accepted, last));
}

#[test]
fn no_arrival_is_no_queue_rather_than_an_empty_one() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    assert_eq!(read(&mut probes, server.id).queue, None);
}

#[test]
fn the_limit_is_the_kernels_own() {
    let mut probes = probes();
    let server = Server::new(1_000_000);
    probes.watch(&[server.id]);
    let _client = server.connect();
    let reading = read_when(&mut probes, server.id, |reading| reading.counts.connections == 1);
    let somaxconn: u32 = fs::read_to_string("/proc/sys/net/core/somaxconn")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(reading.queue.unwrap().limit, somaxconn);
    assert_eq!(server.queues_by_ss(), [(1, somaxconn)]);
}

#[test]
fn a_full_queue_holds_one_more_than_its_limit() {
    let mut probes = probes();
    let server = Server::new(2);
    probes.watch(&[server.id]);
    let _clients: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    let reading = read_when(&mut probes, server.id, |reading| reading.counts.connections == 3);
    assert_eq!(
        reading.queue,
        Some(AcceptQueue {
            depth: 3,
            limit: 2,
            high_water: 3
        })
    );
    assert_eq!(reading.filled, 1);
}

#[test]
fn connections_on_all_cpus_are_counted_once_each() {
    let mut probes = probes();
    let server = Server::new(1024);
    probes.watch(&[server.id]);
    let clients: Vec<TcpStream> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..100).map(|_| server.connect()).collect::<Vec<_>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(clients.len(), 400);
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.connections == 400
    });
    let (high_water, depth) = (reading.queue.unwrap().high_water, server.queues_by_ss()[0].0);
    assert_eq!((high_water, depth), (400, 400));
    fact("high water of 4 x 100 connections at once", high_water, depth);
}

#[test]
fn both_protocols_of_a_dual_stack_listener_count_as_one() {
    let mut probes = probes();
    let server = Server::at((Ipv6Addr::UNSPECIFIED, 0).into(), 16, Protocol::TCP);
    probes.watch(&[server.id]);
    let _v4 = server.connect();
    let _v6 = connect((Ipv6Addr::LOCALHOST, server.port()).into());
    let reading = read_when(&mut probes, server.id, |reading| reading.counts.connections == 2);
    assert_eq!(reading.queue.unwrap().high_water, 2);
    let sources = probes.sources(usize::MAX).prefixes;
    let mut prefixes: Vec<&str> = sources.iter().map(|source| source.prefix.as_str()).collect();
    prefixes.sort_unstable();
    assert_eq!(prefixes, ["127.0.0.0/24", "127.0.0.1/32", "::/64"]);
}

#[test]
fn an_ipv4_listener_is_not_the_ipv6_wildcard_of_its_port() {
    let mut probes = probes();
    let server = Server::at((Ipv4Addr::UNSPECIFIED, 0).into(), 16, Protocol::TCP);
    let mut other = server.id;
    other.address = (Ipv6Addr::UNSPECIFIED, server.port()).into();
    probes.watch(&[server.id, other]);
    let _client = connect((Ipv4Addr::new(127, 0, 0, 5), server.port()).into());
    read_when(&mut probes, server.id, |reading| reading.counts.connections == 1);
    assert_eq!(read(&mut probes, other).counts.connections, 0);
}

#[test]
fn the_exact_address_goes_before_the_wildcard() {
    let mut probes = probes();
    let wildcard = Server::at((Ipv4Addr::UNSPECIFIED, 0).into(), 16, Protocol::TCP);
    let exact = Server::at(
        (Ipv4Addr::new(127, 0, 0, 7), wildcard.port()).into(),
        16,
        Protocol::TCP,
    );
    probes.watch(&[wildcard.id, exact.id]);
    let _exact = connect(exact.id.address);
    let _wildcard = [wildcard.connect(), wildcard.connect()];
    read_when(&mut probes, wildcard.id, |reading| {
        reading.counts.connections == 2
    });
    assert_eq!(read(&mut probes, exact.id).counts.connections, 1);
}

#[test]
fn listeners_that_share_a_port_are_one_and_the_fullest_counts() {
    let mut probes = probes();
    let one = Server::new(64);
    let _two = Server::at(one.id.address, 64, Protocol::TCP);
    probes.watch(&[one.id]);
    let _clients: Vec<TcpStream> = (0..30).map(|_| one.connect()).collect();
    let reading = read_when(&mut probes, one.id, |reading| reading.counts.connections == 30);
    let queues = one.queues_by_ss();
    assert_eq!(queues.len(), 2);
    assert_eq!(queues.iter().map(|(depth, _)| depth).sum::<u32>(), 30);
    assert_eq!(
        reading.queue.unwrap().high_water,
        queues.iter().map(|(depth, _)| *depth).max().unwrap()
    );
}

/// The subflow under an MPTCP connection is a TCP socket (protocol 6), the connection itself is another (262) that, on some
/// kernels, goes through the same states: counted twice, the depth would be wrong too.
#[test]
fn an_mptcp_listener_counts_each_client_once() {
    let mut probes = probes();
    let server = Server::at((Ipv4Addr::LOCALHOST, 0).into(), 16, Protocol::MPTCP);
    probes.watch(&[server.id]);
    let mptcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
    mptcp.connect(&server.id.address.into()).unwrap();
    let tcp = server.connect();
    let reading = read_when(&mut probes, server.id, |reading| reading.counts.connections == 2);
    assert_eq!(
        reading.queue,
        Some(AcceptQueue {
            depth: 2,
            limit: 16,
            high_water: 2
        })
    );

    reset(tcp);
    read_when(&mut probes, server.id, |reading| reading.counts.early_queued == 1);

    let mut mptcp = TcpStream::from(mptcp);
    let mut accepted = server.accept();
    greet(&mut accepted, &mut mptcp);
    let greeted = |reading: &ListenerReading| reading.counts.greeting_log2_us.iter().sum::<u64>() == 1;
    read_when(&mut probes, server.id, greeted);
    drop((mptcp, accepted));
    drop(server.connect());
    let reading = read_when(&mut probes, server.id, |reading| reading.counts.early_queued == 2);
    assert_eq!(reading.counts.connections, 3);
    assert_eq!(reading.counts.early_before_greeting, 0);
}

#[test]
fn a_listener_in_another_network_namespace_is_told_apart() {
    let mut probes = probes();
    let here = Server::new(16);
    let port = here.port();
    let (to_test, from_thread) = mpsc::channel();
    let (to_thread, from_test) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        enter_own_netns();
        let there = Server::at((Ipv4Addr::LOCALHOST, port).into(), 16, Protocol::TCP);
        to_test.send(there.id).unwrap();
        from_test.recv().unwrap();
        let _clients = [there.connect(), there.connect()];
        to_test.send(there.id).unwrap();
        from_test.recv().unwrap();
    });
    let there = from_thread.recv().unwrap();
    assert_eq!(there.address, here.id.address);
    assert_ne!(there.netns, here.id.netns);

    probes.watch(&[there]);
    let _unwatched = here.connect();
    to_thread.send(()).unwrap();
    from_thread.recv().unwrap();
    let reading = read_when(&mut probes, there, |reading| reading.counts.connections >= 2);
    assert_eq!(reading.counts.connections, 2);
    assert_eq!(reading.queue.unwrap().high_water, 2);
    to_thread.send(()).unwrap();
    thread.join().unwrap();
}
