//! master_service_disable: an entry is off to us exactly where it is off to master(8).

use sentinel_lab::judge::{Fate, Judge};
use smtp_sentinel::postfix::main_cf::Settings;
use smtp_sentinel::postfix::{Master, Root};

use super::{JUDGES, for_each};

const LISTS: [&str; 14] = [
    "",
    "inet",
    "INET",
    "smtp/inet",
    "Smtp/Inet",
    "smtp.inet",
    "25/inet",
    "!smtp/inet, inet",
    "inet !smtp/inet",
    "!!smtp/inet",
    "unix,pass",
    "127.0.0.1:smtp/inet",
    "[::1]:25/inet smtpd/pass",
    "smtp",
];

const SERVICES: [(&str, &str); 6] = [
    ("smtp", "inet"),
    ("25", "inet"),
    ("127.0.0.1:smtp", "inet"),
    ("[::1]:25", "inet"),
    ("smtpd", "pass"),
    ("relay", "unix"),
];

#[test]
fn off_to_us_is_off_to_master() {
    let mut questions: Vec<(&Judge, &str, (&str, &str))> = Vec::new();
    for judge in JUDGES.iter() {
        for list in LISTS {
            questions.extend(SERVICES.map(|service| (judge, list, service)));
        }
    }
    for_each(&questions, |&(judge, list, (name, kind))| {
        let main_cf = format!("master_service_disable = {list}\n");
        // master dies of the flag `Y`, but only in an entry that it looks at.
        let fate = judge.fate_with(format!("{name} {kind} n Y y - - smtpd\n").as_bytes(), &main_cf);
        let off = match fate.unwrap() {
            Fate::Lives => true,
            Fate::Dies(words) => {
                assert!(words.contains("\"Y\""), "{words}");
                false
            }
        };
        let config = tempfile::tempdir().unwrap();
        std::fs::write(config.path().join("main.cf"), &main_cf).unwrap();
        let master = Master {
            pid: 0,
            start_time: 0,
            root: Root::Own,
            config_dir: config.path().to_owned(),
            queue_dir: "/nowhere".into(),
            daemon_dir: "/usr/lib/postfix/sbin".into(),
            netns: 0,
        };
        let settings = Settings::of(&master).unwrap();
        let context = format!("{list:?} and {name}/{kind}, to {}", judge.version());
        assert_eq!(settings.disables(name, kind), off, "{context}");
    });
}
