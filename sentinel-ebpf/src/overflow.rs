//! Probe "overflow".
//!
//! Hook: entry of the three functions in which the kernel finds an accept queue full and counts ListenOverflows:
//! tcp_conn_request (drops a SYN), tcp_v4_syn_recv_sock and tcp_v6_syn_recv_sock (drop the last ACK of a handshake).
//! Two kinds of programs for the same three: fentry, which costs least, and kprobes for where it is refused.
//! Minimum kernel: 5.10 is the oldest tried (fentry is of 5.5).
//! Counts: per watched listener the connections that were dropped because its accept queue was full.
//! Costs: two runs a handshake, none a packet; each ends after two reads as long as the queue has room.
//! Without it: ListenOverflows of netstat, the same count for a whole network namespace.
//!
//! The kernel's own test comes first in each function (net/ipv4/tcp_input.c, net/ipv4/tcp_ipv4.c, net/ipv6/tcp_ipv6.c),
//! so that nothing changes the queue's depth between ours and its. One thing comes before it: with SYN cookies off, a
//! SYN that finds the SYN queue full too is dropped without being counted as overflow, and is counted here.
//!
//! Left out is the raw tracepoint kfree_skb with its reason TCP_LISTEN_OVERFLOW (6.18 and later): it runs for every
//! packet that the machine drops, whoever it was meant for, and of a full queue it shows the ACKs and not the SYNs.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};

use crate::{
    maps::{WATCHED, add, port_is_watched, stats},
    sock::{Packet, Sock},
};

/// `int tcp_conn_request(request_sock_ops *, tcp_request_sock_ops *, sock *sk, sk_buff *)`
#[fentry]
pub(crate) fn overflow_syn(ctx: FEntryContext) -> i32 {
    count_if_full(Sock(ctx.arg(2)));
    0
}

/// `sock *tcp_v4_syn_recv_sock(sock *sk, sk_buff *, ...)`
#[fentry]
pub(crate) fn overflow_ack_v4(ctx: FEntryContext) -> i32 {
    count_if_full(Sock(ctx.arg(0)));
    0
}

/// `sock *tcp_v6_syn_recv_sock(sock *sk, sk_buff *skb, ...)`
#[fentry]
pub(crate) fn overflow_ack_v6(ctx: FEntryContext) -> i32 {
    count_if_full_v6(Sock(ctx.arg(0)), Packet(ctx.arg(1)));
    0
}

#[kprobe]
pub(crate) fn overflow_syn_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg(2) {
        count_if_full(Sock(sk));
    }
    0
}

#[kprobe]
pub(crate) fn overflow_ack_v4_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg(0) {
        count_if_full(Sock(sk));
    }
    0
}

#[kprobe]
pub(crate) fn overflow_ack_v6_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg(0), ctx.arg(1)) {
        count_if_full_v6(Sock(sk), Packet(skb));
    }
    0
}

/// An IPv4 client of a dual-stack listener is handed on to tcp_v4_syn_recv_sock, and counted there.
#[inline(always)]
fn count_if_full_v6(listener: Sock, packet: Packet) {
    if packet.is_ipv6() {
        count_if_full(listener);
    }
}

/// The kernel is about to drop a connection of this listener, if its queue is full.
#[inline(always)]
fn count_if_full(listener: Sock) {
    // The kernel's own test, sk_acceptq_is_full().
    let (depth, limit) = listener.backlog();
    if depth <= limit {
        return;
    }
    let head = listener.head();
    if !port_is_watched(head.port) {
        return;
    }
    // The listener itself: its address is the one it is watched under, wildcard or not.
    let key = listener.listener_key(head);
    // SAFETY: the value is four bytes, copied at once; userspace frees a slot long before it gives it away again.
    let Some(id) = (unsafe { WATCHED.get(key) }).copied() else {
        return;
    };
    if let Some(stats) = stats(id) {
        add(&mut stats.overflows, 1);
    }
}
