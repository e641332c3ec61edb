//! Greeting latency, against the client's own clock.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use smtp_sentinel::clock;
use smtp_sentinel::probes::{ListenerReading, Probes, quantile_ms};

use crate::harness::{GREETING, Server, fact, greet, probes, read, read_when};

/// One greeting, the given times before accept() and after it, as the client's clock has it and as the probe has it.
fn one_greeting(probes: &mut Probes, server: &Server, queued: Duration, slow: Duration) -> (f64, f64) {
    let before = read(probes, server.id).counts;
    // Both still open, so that no FIN brings the acknowledgement along.
    let ((client_ms, _client), _accepted) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = server.connect();
            let connected = clock::now().mono;
            // Keeps the acknowledgement back for some 40 ms: the latency must not grow by it.
            socket2::SockRef::from(&client).set_tcp_quickack(false).unwrap();
            client.read_exact(&mut [0; GREETING.len()]).unwrap();
            ((clock::now().mono - connected).as_secs_f64() * 1000.0, client)
        });
        read_when(probes, server.id, |reading| {
            reading.counts.connections > before.connections
        });
        thread::sleep(queued);
        let mut accepted = server.accept();
        thread::sleep(slow);
        accepted.write_all(GREETING).unwrap();
        (client.join().unwrap(), accepted)
    });
    let greetings = |log2: &[u64]| log2.iter().sum::<u64>();
    let after = read_when(probes, server.id, |reading| {
        greetings(&reading.counts.greeting_log2_us) > greetings(&before.greeting_log2_us)
    });
    assert_eq!(
        greetings(&after.counts.greeting_log2_us),
        greetings(&before.greeting_log2_us) + 1
    );
    (
        client_ms,
        (after.counts.greeting_sum_us - before.greeting_sum_us) as f64 / 1000.0,
    )
}

#[test]
fn agrees_with_the_clients_clock() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let (mut clients_ms, mut probes_ms) = (Vec::new(), Vec::new());
    for (queued, slow) in [(0, 60), (60, 0), (30, 30), (0, 0), (100, 100), (0, 200), (200, 0)] {
        let (queued, slow) = (Duration::from_millis(queued), Duration::from_millis(slow));
        let (client_ms, probe_ms) = one_greeting(&mut probes, &server, queued, slow);
        // The wait in the queue is part of it.
        assert!(
            probe_ms >= (queued + slow).as_secs_f64() * 1000.0 - 1.0,
            "{probe_ms} ms for {queued:?} + {slow:?}"
        );
        clients_ms.push(client_ms);
        probes_ms.push(probe_ms);
    }
    let sum = |times: &[f64]| times.iter().sum::<f64>().round();
    fact(
        "greeting latency in ms, sum of 7",
        sum(&probes_ms),
        sum(&clients_ms),
    );
    // A busy machine may wake one client late, not most of them; the acknowledgement is late by 40 ms each time.
    let differences = clients_ms.iter().zip(&probes_ms);
    let difference = median(differences.map(|(client, probe)| (client - probe).abs()));
    assert!(difference < 30.0, "{clients_ms:?} and {probes_ms:?} ms");

    let histogram = read(&mut probes, server.id).counts.greeting_log2_us;
    let (coarse, exact) = (quantile_ms(&histogram, 0.5).unwrap(), median(probes_ms));
    assert!(
        (exact / 2.0..=exact * 2.0).contains(&coarse),
        "median {coarse} ms of {histogram:?}, not {exact}"
    );
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn only_the_first_data_is_the_greeting() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let mut client = server.connect();
    let mut accepted = server.accept();
    for _ in 0..5 {
        greet(&mut accepted, &mut client);
        client.write_all(b"NOOP\r\n").unwrap();
        accepted.read_exact(&mut [0; 6]).unwrap();
    }
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.greeting_log2_us.iter().sum::<u64>() > 0
    });
    assert_eq!(reading.counts.greeting_log2_us.iter().sum::<u64>(), 1);
    assert_eq!(reading.greetings_unsure, 0);
}

#[test]
fn a_connection_that_is_closed_without_a_greeting_has_no_latency() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    // Our FIN is acknowledged, and that is an RTT sample too.
    let client = server.connect();
    drop(server.accept());
    drop(client);
    let mut client = server.connect();
    let mut accepted = server.accept();
    greet(&mut accepted, &mut client);
    client.write_all(b"QUIT\r\n").unwrap();
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.greeting_log2_us.iter().sum::<u64>() > 0
    });
    assert_eq!(reading.counts.greeting_log2_us.iter().sum::<u64>(), 1);
}

/// The callback flags of a socket are shared by all programs: two sentinels must not clobber each other's.
#[test]
fn two_sentinels_see_the_same_greeting() {
    let mut first = probes();
    let mut second = probes();
    let server = Server::new(16);
    first.watch(&[server.id]);
    second.watch(&[server.id]);
    let (mut before, mut differences) = ((0, 0), Vec::new());
    for nth in 1..=7 {
        let mut client = server.connect();
        let mut accepted = server.accept();
        thread::sleep(Duration::from_millis(20));
        greet(&mut accepted, &mut client);
        client.write_all(b"QUIT\r\n").unwrap();
        let greetings = |reading: &ListenerReading| reading.counts.greeting_log2_us.iter().sum::<u64>();
        let latency = |probes: &mut Probes, before: &mut u64| {
            let reading = read_when(probes, server.id, |reading| greetings(reading) >= nth);
            assert_eq!(greetings(&reading), nth);
            let sum = reading.counts.greeting_sum_us;
            sum - std::mem::replace(before, sum)
        };
        let one = latency(&mut first, &mut before.0);
        let two = latency(&mut second, &mut before.1);
        assert!(one >= 20_000 && two >= 20_000, "{one} and {two} us");
        differences.push(one.abs_diff(two) as f64);
    }
    // A busy machine may stop between the program of the one and that of the other, not most times.
    let difference = median(differences.iter().copied());
    assert!(difference < 1000.0, "{differences:?} us");
}
