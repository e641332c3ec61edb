//! Behind postscreen: it accepts every connection at once and hands over whoever passes its tests, silent clients among
//! them. So the accept queue of port 25 says nothing, and the slots that run out are those of `smtpd pass`.

use std::time::Duration;

use sentinel_lab::attackers::{Arrival, Attack};
use sentinel_lab::clock::wait_until;
use sentinel_lab::senders::{Tally, Traffic};
use sentinel_lab::sentinel::Sentinel;
use sentinel_lab::{Lab, master_cf};
use smtp_sentinel::controller::State;

use crate::PATIENCE;

const SERVICES: &str = "\
smtp      inet  n       -       n       -       1       postscreen
smtpd     pass  -       -       n       -       20      smtpd
dnsblog   unix  -       -       n       -       0       dnsblog
tlsproxy  unix  -       -       n       -       0       tlsproxy
";

#[test]
fn silent_clients_that_pass_postscreen_are_seen_and_shed() {
    // Less than postscreen's 6 s, so that the test is short; everything else is its default.
    let lab = Lab::builder()
        .master_cf(master_cf::with_inner(SERVICES))
        .main_cf("postscreen_greet_wait = 1s\n")
        .start()
        .unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let senders = lab.senders(Traffic::new(1.0)).unwrap();
    // Fewer than the slots: at the last one master's own stress mode would come on, and hide whose it is.
    let attackers = lab
        .attack(Attack::silent(Arrival::Evenly {
            count: 14,
            within: Duration::from_secs(4),
        }))
        .unwrap();

    let service = daemon
        .wait_service_named("smtpd/pass", "to be stressed", PATIENCE, |service| {
            service.state == State::Stressed
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(service.busy.unwrap() >= 10, "{service:?}");
    let queue = service.accept_queue.expect("the queue of private/smtpd is seen");
    assert!(queue.limit > 0, "{queue:?}");
    let youngest = lab
        .postfix
        .wait_youngest("in stress", PATIENCE, |one| {
            one.stress_of_master_cf() == Some("yes")
        })
        .unwrap();
    assert_eq!(youngest.stress(), Some("yes"));

    wait_until("every attacker to be dropped", PATIENCE, || {
        Ok(attackers.toll().dropped == 14)
    })
    .unwrap();
    let tally = Tally::of(&senders.stop().unwrap());
    assert_eq!(tally.delivered, tally.tried, "{tally:?}");
    attackers.stop().unwrap();
    assert_eq!(daemon.terminate().unwrap(), Some(0), "{}", sentinel.log());
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
}
