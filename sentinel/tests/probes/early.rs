//! Early disconnects, and what only looks like one.

use std::net::{Shutdown, TcpStream};

use crate::harness::{Server, greet, probes, read, read_when, reset, source_when, ss};

/// A connection that is counted as left before the greeting, and by its arrival in the counts shows that everything
/// before it has been counted too.
fn leave_before_greeting(server: &Server) {
    reset_accepted(server.connect(), server.accept());
}

fn reset_accepted(client: TcpStream, accepted: TcpStream) {
    reset(client);
    drop(accepted);
}

#[test]
fn fin_and_rst_while_queued() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    drop(server.connect());
    drop(server.connect());
    // By the time of ->CLOSE the socket has given its port back (skc_num is 0).
    reset(server.connect());
    // Nobody has accepted them yet: they are counted at once.
    let reading = read_when(&mut probes, server.id, |reading| reading.counts.early_queued == 3);
    assert_eq!(reading.counts.early_before_greeting, 0);
    // And they keep their places.
    assert_eq!(server.queues_by_ss()[0].0, 3);

    // What becomes of them is not counted again.
    drop([server.accept(), server.accept(), server.accept()]);
    leave_before_greeting(&server);
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.early_before_greeting == 1
    });
    assert_eq!(reading.counts.early_queued, 3);
    assert_eq!(reading.counts.connections, 4);
}

#[test]
fn fin_and_rst_after_accept_and_before_the_greeting() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    leave_before_greeting(&server);
    let client = server.connect();
    let accepted = server.accept();
    drop(client);
    // Only the end shows that the FIN was no half-close.
    drop(accepted);
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.early_before_greeting == 2
    });
    assert_eq!(reading.counts.early_queued, 0);
    let source = source_when(&probes, "127.0.0.1/32", |source| source.early == 2);
    assert_eq!(source.connections, 2);
}

#[test]
fn a_client_that_left_before_accept_does_not_get_greeted_by_a_late_greeting() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    drop(server.connect());
    read_when(&mut probes, server.id, |reading| reading.counts.early_queued == 1);
    let mut accepted = server.accept();
    // Into a connection that nobody reads: answered by a RST, and sk_err is EPIPE this time.
    std::io::Write::write_all(&mut accepted, b"220 too late\r\n").unwrap();
    drop(accepted);
    leave_before_greeting(&server);
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.early_before_greeting == 1
    });
    assert_eq!(reading.counts.early_queued, 1);
    source_when(&probes, "127.0.0.1/32", |source| source.early == 2);
}

#[test]
fn a_half_close_while_queued_is_taken_back_once_the_greeting_is_read() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let mut client = server.connect();
    client.shutdown(Shutdown::Write).unwrap();
    source_when(&probes, "127.0.0.1/32", |source| source.early == 1);
    let mut accepted = server.accept();
    greet(&mut accepted, &mut client);
    drop(accepted);
    drop(client);
    source_when(&probes, "127.0.0.1/32", |source| source.early == 0);
    source_when(&probes, "127.0.0.0/24", |source| source.early == 0);
    let counts = read(&mut probes, server.id).counts;
    assert_eq!((counts.early_queued, counts.early_before_greeting), (0, 0));
}

#[test]
fn a_half_close_before_the_greeting_is_no_early_disconnect() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let mut client = server.connect();
    let mut accepted = server.accept();
    client.shutdown(Shutdown::Write).unwrap();
    // The FIN is there before the greeting is sent.
    assert_eq!(std::io::Read::read(&mut accepted, &mut [0; 1]).unwrap(), 0);
    greet(&mut accepted, &mut client);
    drop(accepted);
    drop(client);
    leave_before_greeting(&server);
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.early_before_greeting > 0
    });
    assert_eq!(reading.counts.early_before_greeting, 1);
    assert_eq!(reading.counts.early_queued, 0);
}

#[test]
fn leaving_after_the_greeting_is_not_early() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    for leave in [drop as fn(TcpStream), reset] {
        let mut client = server.connect();
        let mut accepted = server.accept();
        greet(&mut accepted, &mut client);
        leave(client);
        drop(accepted);
    }
    leave_before_greeting(&server);
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.early_before_greeting > 0
    });
    assert_eq!(reading.counts.early_before_greeting, 1);
    assert_eq!(reading.counts.early_queued, 0);
}

#[test]
fn a_server_that_closes_first_has_not_been_left() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let client = server.connect();
    drop(server.accept());
    drop(client);
    let client = server.connect();
    reset(server.accept());
    drop(client);
    leave_before_greeting(&server);
    let reading = read_when(&mut probes, server.id, |reading| {
        reading.counts.early_before_greeting > 0
    });
    assert_eq!(reading.counts.early_before_greeting, 1);
    assert_eq!(reading.counts.early_queued, 0);
}

#[test]
fn sock_destroy_is_no_early_disconnect() {
    let mut probes = probes();
    let server = Server::new(16);
    probes.watch(&[server.id]);
    let accepted_client = server.connect();
    let accepted = server.accept();
    let queued_client = server.connect();
    read_when(&mut probes, server.id, |reading| reading.counts.connections == 2);
    for client in [&accepted_client, &queued_client] {
        let client_port = client.local_addr().unwrap().port();
        ss(&[
            "-K",
            "-tn",
            &format!("sport = :{} and dport = :{client_port}", server.port()),
        ]);
    }
    let reading = read_when(&mut probes, server.id, |reading| reading.destroyed == 2);
    assert_eq!(
        (reading.counts.early_queued, reading.counts.early_before_greeting),
        (0, 0)
    );
    drop((accepted, accepted_client, queued_client));
}

/// A reload of a mail server whose listener closes with clients in the queue.
#[test]
fn a_listener_that_closes_on_its_queue_was_not_left_by_it() {
    let mut probes = probes();
    let Server { socket, id } = Server::new(16);
    probes.watch(&[id]);
    let clients: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(socket.local_addr().unwrap().as_socket().unwrap()).unwrap())
        .collect();
    read_when(&mut probes, id, |reading| reading.counts.connections == 3);
    // Closes its children before it returns.
    drop(socket);
    let reading = read(&mut probes, id);
    assert_eq!(
        (reading.counts.early_queued, reading.counts.early_before_greeting),
        (0, 0)
    );
    drop(clients);
}
