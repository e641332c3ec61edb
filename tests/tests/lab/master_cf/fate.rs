//! Where we say that a master would live, it lives: our validator may be stricter than master(8), never laxer.

use sentinel_lab::judge::{Fate, Judge};
use smtp_sentinel::postfix::master_cf::validate_with;

use super::corpus::odd;
use super::{JUDGES, for_each, names};

/// What is known about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Every master lives, and we let it pass.
    Good,
    /// Every master dies, and we refuse it.
    Deadly,
    /// Some masters die, and we refuse it.
    DeadlyToSome,
    /// No master dies, and we refuse it all the same.
    Stricter,
    /// A master dies of what the kernel answers, not of the file.
    Kernel,
}
use Known::{Deadly, DeadlyToSome, Good, Kernel, Stricter};

const CASES: &[(Known, &str)] = &[
    (Good, ""),
    (Good, "# only\n\n \t\n"),
    (Good, "  text before the first entry\nsmtp inet n - y - - smtpd\n"),
    (Good, "smtp inet n - y - - smtpd"),
    (Good, "smtp inet n - y - - smtpd\r\n -o a=b\r\n\r\n# x\r\n"),
    (
        Good,
        "smtp   inet n\n# in\n   - y\n\n  - - smtpd # no comment, an argument\n",
    ),
    (Good, "25 inet n - y - - smtpd\nsmtp inet n - y - - smtpd\n"),
    (
        Good,
        "submissions inet n - y - - smtpd\nsmtps inet n - y - - smtpd\n",
    ),
    (Good, "smtp inet n - y - - smtpd -o\n"),
    (Good, "smtp inet n - y - - smtpd -o x={a\n"),
    (Good, "smtp inet n - y - - smtpd }\n"),
    (Good, "smtp inet n - y - - smtpd {-o a=b} { c }\n"),
    (Good, "smtp pass y - y - - smtpd\n"),
    (Good, "smtp inet n - y 60? 0 smtpd\n"),
    (Good, "smtp inet n - y 2147483647 2147483647 smtpd\n"),
    (Good, "127.0.0.1:smtp inet n - y - - smtpd\n"),
    (Good, "[::1]:25 inet n - y - - smtpd\n"),
    (Good, "::1:smtp inet n - y - - smtpd\n"),
    (Good, "[ipv6:::1]:25 inet n - y - - smtpd\n"),
    (Good, "localhost:25 inet n - y - - smtpd\n"),
    (Good, ":25 inet n - y - - smtpd\n"),
    (Good, "025 inet n - y - - smtpd\n"),
    (Good, "0.0.0.0:25 inet n - y - - smtpd\n"),
    (Good, "a unix - - n - - smtp\na fifo - - n - - smtp\n"),
    (Good, "a unix - - n - - smtp\na pass - - n - - smtp\n"),
    (Good, "a unix-dgram - - n - - postlogd\n"),
    (Good, "...a unix - - n - - smtp\n"),
    (Good, "é unix - - n - - smtp\n"),
    (Good, "{ unix - - n - - smtp\n"),
    (Good, "x unix - - n - - {\n"),
    (Deadly, "smtp\n"),
    (Deadly, "smtp inet\n"),
    (Deadly, "smtp inet n - y -\n"),
    (Deadly, "smtp inet n - y - -\n"),
    (Deadly, "smtp inet n - y - - -\n"),
    (Deadly, "- inet n - y - - smtpd\n"),
    (Deadly, "smtp - n - y - - smtpd\n"),
    (Deadly, "smtp tcp n - y - - smtpd\n"),
    (Deadly, "smtp INET n - y - - smtpd\n"),
    (Deadly, "smtp inet y - y - - smtpd\n"),
    (Deadly, "smtp inet - - y - - smtpd\n"),
    (Deadly, "smtp inet N - y - - smtpd\n"),
    (Deadly, "smtp inet n Y y - - smtpd\n"),
    (Deadly, "smtp inet n - maybe - - smtpd\n"),
    (Deadly, "smtp inet n - y ? - smtpd\n"),
    (Deadly, "smtp inet n - y - -1 smtpd\n"),
    (Deadly, "smtp inet n - y - - smtpd {-o a=b\n"),
    (Deadly, "smtp inet n - y - - smtpd -o {a=b}c\n"),
    (Deadly, "smtp inet n - y - - smtpd\n  { -o a=b } c }\n  { d\n"),
    (Deadly, "[127.0.0.1 inet n - y - - smtpd\n"),
    (Deadly, "[127.0.0.1]25 inet n - y - - smtpd\n"),
    (Deadly, "[127.0.0.1]: inet n - y - - smtpd\n"),
    (Deadly, "127.0.0.1: inet n - y - - smtpd\n"),
    (Deadly, "25x inet n - y - - smtpd\n"),
    (Deadly, "nosuchport inet n - y - - smtpd\n"),
    (Deadly, "SMTP inet n - y - - smtpd\n"),
    (Deadly, "300.1.1.1:25 inet n - y - - smtpd\n"),
    (Deadly, "nohost.invalid:25 inet n - y - - smtpd\n"),
    (Deadly, "a/b unix - - n - - smtp\n"),
    (Deadly, ".. unix - - n - - smtp\n"),
    (Deadly, ". fifo n - n - - smtp\n"),
    (Deadly, "smtp\0 inet n - y - - smtpd\n"),
    // Known to Postfix itself since 3.6, and to no /etc/services.
    (DeadlyToSome, "lmtp inet n - y - - lmtpd\n"),
    (Stricter, "smtp inet n - y - 10x smtpd\n"),
    (Stricter, "smtp inet n - y - 99999999999 smtpd\n"),
    (Stricter, "smtp inet n - y 60?? - smtpd\n"),
    (Stricter, "0 inet n - y - - smtpd\n"),
    (Stricter, "65536 inet n - y - - smtpd\n"),
    (Stricter, "smtp inet n - y - - smtpd -o x=y\0 z\n"),
    (Stricter, "\0\n"),
    (Kernel, "192.0.2.9:25 inet n - y - - smtpd\n"),
    // Since 3.7 or so master binds with SO_REUSEPORT.
    (
        Kernel,
        "smtp inet n - y - - smtpd\n127.0.0.1:smtp inet n - y - - smtpd\n",
    ),
];

/// Whether these last words blame the kernel.
pub(crate) fn is_the_kernels(words: &str) -> bool {
    words.starts_with("bind ") && words.contains(" port ")
}

fn fates(bytes: &[u8]) -> Vec<Fate> {
    JUDGES.iter().map(|judge| judge.fate(bytes).unwrap()).collect()
}

#[test]
fn no_master_dies_of_what_we_let_pass() {
    let mut cases: Vec<(Known, Vec<u8>)> = CASES
        .iter()
        .map(|&(known, text)| (known, text.as_bytes().to_vec()))
        .collect();
    for (length, known) in [(99, Good), (100, Deadly)] {
        let text = format!("{} unix - - n - - smtp\n", "x".repeat(length));
        cases.push((known, text.into_bytes()));
    }
    let names = names();
    for_each(&cases, |(known, bytes)| {
        let refused = validate_with(bytes, &names);
        let fates = fates(bytes);
        let deaths: Vec<_> = fates
            .iter()
            .filter_map(|fate| match fate {
                Fate::Lives => None,
                Fate::Dies(words) => Some(words),
            })
            .collect();
        let found = match (&refused, deaths.len()) {
            (Ok(()), 0) => Good,
            (Ok(()), _) if deaths.iter().all(|words| is_the_kernels(words)) => Kernel,
            (Ok(()), _) => panic!("we are laxer: {:?}: {deaths:?}", String::from_utf8_lossy(bytes)),
            (Err(_), 0) => Stricter,
            (Err(_), n) if n == fates.len() => Deadly,
            (Err(_), _) => DeadlyToSome,
        };
        let context = format!("{:?}: {refused:?}, {fates:?}", String::from_utf8_lossy(bytes));
        assert_eq!(found, *known, "{context}");
    });
}

/// The files that ours is tested on are real ones: masters live with them, before and after the edit.
#[test]
fn masters_live_with_the_corpus_and_our_edit() {
    let shipped = JUDGES
        .iter()
        .map(|judge| ("shipped".to_owned(), judge.shipped().unwrap()));
    let odd = odd().into_iter().map(|(name, bytes)| (name.to_owned(), bytes));
    let files: Vec<_> = shipped.chain(odd).collect();
    let questions: Vec<(&Judge, &(String, Vec<u8>))> = JUDGES
        .iter()
        .flat_map(|judge| files.iter().map(move |file| (judge, file)))
        .collect();
    let names = names();
    for_each(&questions, |(judge, (name, before))| {
        let context = format!("{name}, read by {}", judge.version());
        assert_eq!(validate_with(before, &names), Ok(()), "{context}");
        let id = smtp_sentinel::postfix::ServiceId {
            name: "smtp".to_owned(),
            kind: "inet".to_owned(),
        };
        let after =
            smtp_sentinel::postfix::edit::insert(before, &id, jiff::Timestamp::UNIX_EPOCH).expect(&context);
        for bytes in [before, &after] {
            match judge.fate(bytes).unwrap() {
                Fate::Dies(words) if !is_the_kernels(&words) => panic!("{context}: {words}"),
                Fate::Dies(_) | Fate::Lives => {}
            }
        }
    });
}
