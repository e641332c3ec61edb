use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(10),
    min_data_rate: Some(500),
    junk_commands: 1,
    calm_timeout: Duration::from_secs(300),
};
const FLOOR: Duration = Duration::from_secs(5);
const FULL: Situation = Situation {
    slots: 20,
    busy: 20,
    waiting: 3,
};
const EASY: Situation = Situation {
    slots: 20,
    busy: 5,
    waiting: 0,
};

/// A client that was greeted `age` seconds ago and has not said a word.
fn mute(age: u64) -> Connection {
    Connection {
        local: "192.0.2.1:25".parse().unwrap(),
        remote: "198.51.100.7:40000".parse().unwrap(),
        cookie: [7; 8],
        interface: 0,
        inode: 4711,
        client_closed: false,
        bytes_sent: 31,
        bytes_received: 0,
        since_sent: Duration::from_secs(age),
        since_received: Duration::from_secs(age + 1),
        rtt: Duration::from_millis(20),
    }
}

fn offence(connection: Connection) -> Offender {
    Offender {
        connection,
        reason: Reason::Mute,
        since: connection.since_sent,
    }
}

#[test]
fn who_comes_back_to_say_nothing_again_is_met_with_half_the_patience() {
    let mut ledger = Ledger::new(Duration::from_secs(30));
    let start = crate::clock::now().mono;
    let again = |seconds: u64, host: u8| Connection {
        cookie: [8; 8],
        remote: std::net::SocketAddr::from(([198, 51, 100, host], 41_000)),
        ..mute(seconds)
    };
    let mut named = |at: u64, connection: Connection, situation| {
        ledger.see(start + Duration::from_secs(at), &[connection], &LIMITS);
        let named = ledger.offenders(&[connection], &LIMITS, FLOOR, situation);
        if at == 0 {
            ledger.closed(start, &offence(connection));
        }
        !named.is_empty()
    };
    assert!(
        !named(0, again(3, 7), FULL),
        "the first time it has the whole of it"
    );
    assert!(named(5, again(3, 7), FULL));
    assert!(!named(6, again(2, 7), FULL));
    assert!(!named(7, again(3, 8), FULL), "another client");
    assert!(
        !named(8, again(3, 7), EASY),
        "while there are slots, patience is whole"
    );
    assert!(!named(700, again(3, 7), FULL), "forgotten");
}

#[test]
fn who_says_nothing_but_noop_has_not_said_a_word() {
    let start = crate::clock::now().mono;
    // Greeted at 0 s, and a command of `bytes` at 4 s, which has its reply of `reply` bytes.
    let named = |bytes: u64, reply: u64, at: u64, situation| {
        let mut ledger = Ledger::new(Duration::from_secs(30));
        ledger.see(start, &[mute(0)], &LIMITS);
        let spoke = Connection {
            bytes_sent: 31 + reply,
            bytes_received: bytes,
            since_sent: Duration::from_secs(at - 4),
            since_received: Duration::from_secs(at - 4),
            ..mute(0)
        };
        ledger.see(start + Duration::from_secs(at), &[spoke], &LIMITS);
        let offenders = ledger.offenders(&[spoke], &LIMITS, FLOOR, situation);
        offenders.first().map(|one| one.reason)
    };
    assert_eq!(named(6, 14, 6, FULL), Some(Reason::Mute));
    assert_eq!(named(6, 14, 5, FULL), None, "its patience is that with the mute");
    assert_eq!(named(6, 14, 6, EASY), None, "there are slots");
    assert_eq!(named(17, 180, 6, FULL), None, "EHLO is a word");
}

fn reason(looks: &[Connection], situation: Situation) -> Option<Reason> {
    let mut ledger = Ledger::new(Duration::from_secs(30));
    let start = crate::clock::now().mono;
    for look in looks {
        ledger.see(start, &[*look], &LIMITS);
    }
    let last = looks.last().copied().into_iter().collect::<Vec<_>>();
    ledger
        .offenders(&last, &LIMITS, FLOOR, situation)
        .first()
        .map(|offender| offender.reason)
}

#[test]
fn patience_shrinks_as_slots_run_out_and_grows_back() {
    let at = |busy, waiting| {
        patience(
            &LIMITS,
            FLOOR,
            Situation {
                slots: 20,
                busy,
                waiting,
            },
        )
        .as_millis()
    };
    assert_eq!(
        [at(5, 0), at(14, 0), at(17, 0), at(20, 0), at(10, 1)],
        [10_000, 10_000, 7_500, 5_000, 5_000]
    );
    assert_eq!(patience(&LIMITS, Duration::from_secs(60), FULL), LIMITS.timeout);
}

#[test]
fn a_mute_client_is_shed_sooner_when_others_wait() {
    assert_eq!(reason(&[mute(6)], FULL), Some(Reason::Mute));
    assert_eq!(reason(&[mute(6)], EASY), None);
    assert_eq!(reason(&[mute(11)], EASY), Some(Reason::Mute));
}

#[test]
fn who_has_spoken_has_the_whole_timeout() {
    let spoke = |age| Connection {
        bytes_received: 20,
        bytes_sent: 200,
        ..mute(age)
    };
    assert_eq!(reason(&[spoke(9)], FULL), None);
    assert_eq!(reason(&[spoke(11)], FULL), Some(Reason::Silent));
}

#[test]
fn nobody_is_shed_for_our_own_slowness() {
    let ungreeted = Connection {
        bytes_sent: 0,
        ..mute(200)
    };
    assert_eq!(reason(&[ungreeted], FULL), None);
    let waits_for_us = Connection {
        bytes_received: 4000,
        since_sent: Duration::from_secs(61),
        since_received: Duration::from_secs(60),
        ..mute(0)
    };
    assert_eq!(reason(&[waits_for_us], FULL), None);
    let queued = Connection {
        inode: 0,
        ..mute(100)
    };
    assert_eq!(reason(&[queued], FULL), None);
}

/// A message body in so many bytes, the first of which came right after our 354, the last one `spoke` seconds later.
fn body(bytes: u64, spoke: u64) -> [Connection; 2] {
    let asked = Connection {
        bytes_sent: 200,
        bytes_received: 100,
        ..mute(0)
    };
    let last = Connection {
        bytes_received: 100 + bytes,
        since_sent: Duration::from_secs(spoke),
        since_received: Duration::ZERO,
        ..asked
    };
    [asked, last]
}

#[test]
fn a_byte_now_and_then_is_a_slow_request_and_a_slow_line_is_not() {
    assert_eq!(reason(&body(4, 12), EASY), Some(Reason::SlowRequest));
    assert_eq!(reason(&body(4, 9), FULL), None);
    assert_eq!(reason(&body(400_000, 20), FULL), None);
    assert_eq!(reason(&body(5_000, 19), FULL), None);
    assert_eq!(reason(&body(5_000, 21), FULL), Some(Reason::SlowRequest));
}

#[test]
fn without_a_request_deadline_there_is_no_slow_request() {
    let limits = Limits {
        min_data_rate: None,
        ..LIMITS
    };
    let mut ledger = Ledger::new(Duration::from_secs(30));
    let looks = body(4, 100);
    for look in looks {
        ledger.see(crate::clock::now().mono, &[look], &limits);
    }
    assert!(ledger.offenders(&looks[1..], &limits, FLOOR, FULL).is_empty());
}

#[test]
fn the_third_command_that_does_nothing_is_one_too_many() {
    let after = |noops: u64, overhead: u64| Connection {
        bytes_received: 100 + noops * (6 + overhead),
        bytes_sent: 300 + noops * (14 + overhead),
        ..mute(0)
    };
    for overhead in RECORD_OVERHEAD {
        let looks = [0, 1, 2].map(|noops| after(noops, overhead));
        assert_eq!(reason(&looks, EASY), None);
        assert_eq!(
            reason(&[looks[0], looks[2], after(3, overhead)], EASY),
            Some(Reason::Junk)
        );
    }
}

#[test]
fn a_session_of_real_commands_is_never_junk() {
    // EHLO, MAIL FROM:<>, RCPT, DATA, the body, QUIT: what each side says.
    let said = [(12, 180), (14, 14), (24, 14), (6, 37), (800, 33), (6, 15)];
    let mut look = mute(0);
    let mut looks = vec![look];
    for (received, sent) in said.repeat(5) {
        look = Connection {
            bytes_received: look.bytes_received + received,
            bytes_sent: look.bytes_sent + sent,
            ..look
        };
        looks.push(look);
    }
    assert_eq!(reason(&looks, FULL), None);
}

#[test]
fn sessions_that_only_stress_mode_ends_are_counted_for_a_while() {
    let start = crate::clock::now().mono;
    let mut ledger = Ledger::new(Duration::from_secs(30));
    ledger.see(start, &[mute(9)], &LIMITS);
    ledger.see(start, &[], &LIMITS);
    assert!(ledger.ended_per_s() > 0.0);
    ledger.see(start + Duration::from_secs(60), &[mute(2)], &LIMITS);
    assert_eq!(ledger.ended_per_s(), 0.0);
    ledger.see(start + Duration::from_secs(60), &[], &LIMITS);
    assert_eq!(ledger.ended_per_s(), 0.0, "it left by itself");
    ledger.closed(start + Duration::from_secs(61), &offence(mute(6)));
    assert!(ledger.ended_per_s() > 0.0);
}

proptest! {
    #[test]
    fn what_is_shed_has_been_greeted_and_accepted_and_broke_a_limit(
        sent in 0u64..500, received in 0u64..500, since_sent in 0u64..400, since_received in 0u64..400,
        inode in 0u32..2, busy in 0u32..25, waiting in 0u32..3,
    ) {
        let connection = Connection {
            bytes_sent: sent,
            bytes_received: received,
            since_sent: Duration::from_secs(since_sent),
            since_received: Duration::from_secs(since_received),
            inode,
            ..mute(0)
        };
        let situation = Situation { slots: 20, busy, waiting };
        if let Some(reason) = reason(&[connection], situation) {
            prop_assert!(inode != 0 && sent > 0);
            match reason {
                Reason::Mute => prop_assert!(received == 0 && since_sent.min(since_received) >= 5),
                Reason::Silent => prop_assert!(received > 0 && since_sent.min(since_received) >= 10),
                Reason::SlowRequest | Reason::Junk => prop_assert!(false, "one look tells nothing of {reason}"),
            }
        }
    }
}
