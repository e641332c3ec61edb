//! Probe "greeting".
//!
//! Hook: sock_ops at the root of cgroup2, callbacks PASSIVE_ESTABLISHED and RTT.
//! Minimum kernel: 5.10 is the oldest tried (the RTT callback is of 5.3).
//! Counts: per watched listener the time from ESTABLISHED to the first byte sent (the wait in the accept queue is part
//! of it), as a log2 histogram.
//! Costs: some runs a connection, none a packet: the RTT callback is asked for on watched ports only, and no longer
//! after the first data that was acknowledged.
//! Without it: greeting latency is unknown; nothing else changes.
//!
//! The callback flags are one set a socket, shared by all programs: ours is or-ed in. Taking it out again cannot be
//! told apart from another program's having wanted it too; such a program gets no RTT callbacks on watched ports after
//! the greeting.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG},
    helpers::bpf_ktime_get_ns,
    macros::sock_ops,
    programs::SockOpsContext,
};
use sentinel_ebpf::GREETING_BUCKETS;

use crate::{
    conns::{self, Conn},
    maps::{add, port_is_watched, stats},
    sock::Sock,
};

#[sock_ops]
pub(crate) fn greeting(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if on_watched_port(&ctx) => ask_for_rtt(&ctx),
        BPF_SOCK_OPS_RTT_CB if on_watched_port(&ctx) => acknowledged(&ctx),
        _ => {}
    }
    // The verifier wants 1 of every sock_ops program from 5.17 on; it means nothing here.
    1
}

#[inline(always)]
fn on_watched_port(ctx: &SockOpsContext) -> bool {
    port_is_watched(ctx.local_port() as u16)
}

/// This comes before the change to ESTABLISHED that [`crate::state`] sees (net/ipv4/tcp_input.c,
/// tcp_rcv_state_process), so the port is all there is to go by.
#[inline(always)]
fn ask_for_rtt(ctx: &SockOpsContext) {
    // Fails only for a socket that is no full one, and this one is.
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
}

#[inline(always)]
fn no_more_rtt(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
}

/// The client acknowledged something.
#[inline(always)]
fn acknowledged(ctx: &SockOpsContext) {
    // SAFETY: the context is the kernel's for as long as the program runs.
    let (sk, data_segs_out) = unsafe { ((*ctx.ops).__bindgen_anon_2.sk as u64, (*ctx.ops).data_segs_out) };
    if data_segs_out == 0 {
        // Our FIN alone.
        return;
    }
    let sk = Sock::of_pointer(sk);
    let Some(conn) = conns::get(sk.0) else {
        // Another namespace's connection to a port of the same number.
        return no_more_rtt(ctx);
    };
    no_more_rtt(ctx);
    if conn.flags & Conn::GREETED != 0 {
        return;
    }
    conn.flags |= Conn::GREETED;
    let Some(stats) = stats(conn.id) else { return };
    if data_segs_out > 1 {
        // A greeting is one segment. It was sent again, so the time may be that of the second try or, without TCP
        // timestamps, of later data.
        add(&mut stats.greetings_unsure, 1);
        return;
    }

    let us = sent_ns(ctx, sk).saturating_sub(conn.established_ns) / 1000;
    add(&mut stats.greetings_sum_us, us);
    add(&mut stats.greetings_log2_us[bucket(us)], 1);
}

/// When the greeting left, CLOCK_MONOTONIC. Without the kernel's own note of it, it is the time of the acknowledgement
/// less the round trip, which the callback brings from 6.12 on (before, that argument is 0).
#[inline(always)]
fn sent_ns(ctx: &SockOpsContext, sk: Sock) -> u64 {
    match sk.rack_mstamp() {
        // SAFETY: a helper without arguments.
        0 => unsafe { bpf_ktime_get_ns() }.saturating_sub(u64::from(ctx.arg(0)) * 1000),
        us => us * 1000,
    }
}

#[inline(always)]
fn bucket(us: u64) -> usize {
    let log2 = us.max(1).ilog2() as usize;
    // The mask tells the verifier what the comparison tells the reader.
    log2.min(GREETING_BUCKETS - 1) & (GREETING_BUCKETS - 1)
}
