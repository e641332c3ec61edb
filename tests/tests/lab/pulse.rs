//! An attacker who pulses cannot make us reload Postfix more often than the budget, and each further episode waits
//! longer before it lets go.

use std::time::Duration;

use sentinel_lab::Lab;
use sentinel_lab::attackers::Attack;
use sentinel_lab::clock::wait_until;
use sentinel_lab::sentinel::{Entry, Sentinel, Settings};
use smtp_sentinel::controller::State;

use crate::PATIENCE;

/// Longer than the calm has to last after three trips: 4 s, and a verdict of calm is seen every 2 s.
const CALM: Duration = Duration::from_secs(8);

/// Three episodes, each a trip and a clear.
const BUDGET: usize = 6;

/// The attacker who does most harm: he comes back the moment that we have let go.
#[test]
fn a_pulsing_attacker_gets_the_budget_and_no_more() {
    let lab = Lab::builder().maxproc(30).start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let settings = Settings {
        detect: "trip_dwell = \"500ms\"\ndwell = \"1s\"".to_owned(),
        act: format!(
            "mode = \"enforce\"\nmin_interval = \"1s\"\nmax_reloads_per_hour = {BUDGET}\nshed = false"
        ),
        ..Settings::default()
    };
    let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
    let daemon = sentinel.start().unwrap();
    for _ in 0..BUDGET / 2 {
        let attackers = lab.attack(Attack::burst(22)).unwrap();
        daemon.wait_state(State::Stressed).unwrap();
        attackers.stop().unwrap();
        daemon.wait_state(State::Normal).unwrap();
    }
    // One pulse after the other is one episode, and one refusal; after the calm that is another matter.
    for (pulses, refused) in [(3, 1), (1, 2)] {
        for _ in 0..pulses {
            let attackers = lab.attack(Attack::burst(22)).unwrap();
            wait_until("the pulse to be refused", PATIENCE, || {
                Ok(refusals(&sentinel.history()?) == refused)
            })
            .unwrap();
            assert_eq!(daemon.wait_verdict("hogged").unwrap().state, State::Normal);
            attackers.stop().unwrap();
            daemon.wait_verdict("calm").unwrap();
        }
        assert_eq!(refusals(&sentinel.history().unwrap()), refused);
        std::thread::sleep(CALM);
    }
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(lab.postfix.reloads(), BUDGET);

    // No client came to have a new smtpd started for it, and no act waited for one.
    let log = sentinel.log();
    assert!(log.contains("the next act came before a new smtpd"), "{log}");

    // "... for N s" is how long the calm had to last.
    let history = sentinel.history().unwrap();
    let waits: Vec<u64> = history
        .iter()
        .filter(|entry| entry.is_transition_to("normal"))
        .filter_map(|entry| {
            entry.reasons[0]
                .rsplit_once(" for ")?
                .1
                .strip_suffix(" s")?
                .parse()
                .ok()
        })
        .collect();
    assert_eq!(waits, [1, 2, 4], "{history:#?}");
}

fn refusals(history: &[Entry]) -> usize {
    let told = |entry: &&Entry| entry.kind == "refusal" && entry.tells("budget");
    history.iter().filter(told).count()
}
