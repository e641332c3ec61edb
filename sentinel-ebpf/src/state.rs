//! Probe "state".
//!
//! Hook: raw tracepoint `inet_sock_set_state`.
//! Minimum kernel: 5.10 is the oldest tried (the hook is of 4.16, the raw tracepoint of 4.17).
//! Counts: per watched listener the connections, the accept queue's depth, high-water mark and limit, and the early
//! disconnects; per source prefix connections and early disconnects.
//! Costs: a few runs a connection, none a packet. All but three transitions end after two comparisons, and those of
//! unwatched ports after one read.
//! Without it: sock_diag polling gives sampled depths; early disconnects, sources and greeting latency are unknown.
//!
//! A run that interrupts another on the same CPU is left out by the kernel (6.1 and later); that is a window of some
//! hundred nanoseconds, and what is missed then is one count.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::raw_tracepoint, programs::RawTracePointContext};
use aya_log_ebpf::warn;
use sentinel_ebpf::{ListenerStats, SlotId};

use crate::{
    conns::{self, Conn, Room},
    maps::{EPOCH, WATCHED, add, port_is_watched, stats},
    sock::{Head, Sock},
    sources::Client,
};

// include/net/tcp_states.h
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;

const IPPROTO_TCP: u16 = 6;

/// `sk_err` of a connection that SOCK_DESTROY closed (net/ipv4/tcp.c, tcp_abort).
const ECONNABORTED: i32 = 103;
/// `sk_err` of one that the client reset before it had sent a FIN (net/ipv4/tcp_input.c, tcp_reset). The reset that a
/// closing listener sends to its queued children sets it only after the change of state (tcp_disconnect).
const ECONNRESET: i32 = 104;

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn state(ctx: RawTracePointContext) -> i32 {
    let sk = Sock(ctx.arg(0));
    match (ctx.arg::<i32>(1), ctx.arg::<i32>(2)) {
        (TCP_SYN_RECV, TCP_ESTABLISHED) => arrived(&ctx, sk),
        (TCP_ESTABLISHED, TCP_CLOSE_WAIT) => finished(sk),
        (old, TCP_CLOSE) => closed(sk, old),
        _ => {}
    }
    0
}

/// A handshake is complete: the connection is in the accept queue.
#[inline(always)]
fn arrived(ctx: &RawTracePointContext, sk: Sock) {
    let head = sk.head();
    // On some kernels an MPTCP connection goes through the same states as the TCP subflow under it (on 6.18 it jumps from
    // LISTEN to ESTABLISHED); only the subflow counts.
    if !port_is_watched(head.port) || sk.protocol() != IPPROTO_TCP {
        return;
    }
    let Some(id) = listener_of(sk, head) else {
        return;
    };
    let Some(stats) = stats(id) else { return };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let client = Client::of(sk, head);

    add(&mut stats.connections, 1);
    note_queue(stats, sk, now);
    client.count_connection(now);

    let (client, flags) = client.to_conn();
    let conn = Conn {
        established_ns: now,
        client,
        id,
        flags,
    };
    if conns::insert(sk.0, conn) == Room::NoMore {
        warn!(
            ctx,
            "more connections are open than can be followed: from now on some have an end and a greeting that are not counted"
        );
    }
}

/// Exact address first, then the wildcard, as the kernel itself prefers them.
#[inline(always)]
fn listener_of(sk: Sock, head: Head) -> Option<SlotId> {
    let mut key = sk.listener_key(head);
    // SAFETY: the value is four bytes, copied at once; userspace frees a slot long before it gives it away again.
    if let Some(id) = unsafe { WATCHED.get(key) } {
        return Some(*id);
    }
    key.address = [0; 2];
    // SAFETY: as above.
    unsafe { WATCHED.get(key) }.copied()
}

#[inline(always)]
fn note_queue(stats: &mut ListenerStats, sk: Sock, now: u64) {
    let (ahead, limit) = sk.backlog();
    let depth = ahead.wrapping_add(1);
    stats.last_depth = depth;
    stats.last_limit = limit;
    stats.last_ns = now;
    // The kernel's own test, sk_acceptq_is_full(): a queue takes one more than its limit.
    if depth > limit {
        add(&mut stats.filled, 1);
    }

    let epoch = EPOCH.get(0).copied().unwrap_or(0);
    if stats.epoch != epoch {
        let follows = stats.epoch.wrapping_add(1) == epoch;
        stats.previous_high_water = if follows { stats.high_water } else { 0 };
        stats.high_water = 0;
        stats.epoch = epoch;
    }
    if depth > stats.high_water {
        stats.high_water = depth;
    }
}

/// The client's FIN came first.
#[inline(always)]
fn finished(sk: Sock) {
    // Most have been greeted, and are done with here. Nobody sends data while the connection is queued.
    if !port_is_watched(sk.source_port()) || sk.data_segs_out() != 0 {
        return;
    }
    let Some(conn) = conns::get(sk.0) else { return };
    if sk.is_queued() {
        // Counted now, not at CLOSE: in a full queue that nobody empties, CLOSE may be minutes away.
        conn.flags |= Conn::LEFT_QUEUED;
        if let Some(stats) = stats(conn.id) {
            add(&mut stats.early_queued, 1);
        }
        Client::from_conn(conn).count_early();
    } else {
        conn.flags |= Conn::LEFT_UNGREETED;
    }
}

/// The end, and the last look at the socket.
#[inline(always)]
fn closed(sk: Sock, old: i32) {
    if !port_is_watched(sk.source_port()) {
        return;
    }
    let Some(conn) = conns::remove(sk.0) else { return };
    let Some(stats) = stats(conn.id) else { return };
    let client = Client::from_conn(&conn);
    let error = sk.error();

    if error == ECONNABORTED {
        add(&mut stats.destroyed, 1);
    }
    if conn.flags & Conn::LEFT_QUEUED != 0 {
        // shutdown(SHUT_WR) while queued looks like leaving, until the greeting is acknowledged after all.
        if sk.has_acked_data() {
            add(&mut stats.early_queued_retracted, 1);
            client.retract_early();
        }
    } else if conn.flags & Conn::LEFT_UNGREETED != 0 {
        if !sk.has_acked_data() {
            add(&mut stats.early_before_greeting, 1);
            client.count_early();
        }
    } else if old == TCP_ESTABLISHED && error == ECONNRESET {
        if sk.is_queued() {
            add(&mut stats.early_queued, 1);
            client.count_early();
        } else if sk.data_segs_out() == 0 {
            add(&mut stats.early_before_greeting, 1);
            client.count_early();
        }
    }
}
