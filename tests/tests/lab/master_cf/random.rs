//! Random files, whole and broken, before a random master. `cargo xtask soak` goes on with them for as long as it says.

use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use sentinel_lab::clock;
use sentinel_lab::judge::Fate;
use smtp_sentinel::postfix::endpoint::Names;
use smtp_sentinel::postfix::master_cf::validate_with;

use super::fate::is_the_kernels;
use super::{JUDGES, for_each, names};

/// Files at a time, and in every run of the tests: a few seconds' worth.
const FILES: u64 = 160;

#[test]
fn no_master_dies_of_a_random_file_that_we_let_pass() {
    let duration = crate::soak().unwrap_or_default();
    let first = fastrand::u64(..);
    println!("seeds from {first}");
    let names = names();
    let (start, mut files, passed) = (clock::now(), 0, AtomicU64::new(0));
    loop {
        let seeds: Vec<u64> = (files..files + FILES).map(|n| first.wrapping_add(n)).collect();
        for_each(&seeds, |&seed| {
            passed.fetch_add(u64::from(live_or_be_refused(seed, &names)), Ordering::Relaxed);
        });
        files += FILES;
        if start.elapsed() >= duration {
            break;
        }
    }
    let passed = passed.into_inner();
    println!("soak: {files} files, {passed} of them let pass and read by a master");
    assert!(
        passed * 4 > files && passed < files,
        "{passed} of {files}: the files teach nothing"
    );
}

/// Whether we let the file pass; panics if a master dies of it then.
fn live_or_be_refused(seed: u64, names: &Names) -> bool {
    let mut rng = Rng::with_seed(seed);
    let bytes = file(&mut rng);
    if validate_with(&bytes, names).is_err() {
        return false;
    }
    let judge = &JUDGES[rng.usize(..JUDGES.len())];
    match judge.fate(&bytes).unwrap() {
        Fate::Dies(words) if !is_the_kernels(&words) => {
            let text = String::from_utf8_lossy(&bytes);
            panic!(
                "seed {seed}: {} dies of what we let pass: {words}\n{text:?}",
                judge.version()
            )
        }
        Fate::Dies(_) | Fate::Lives => true,
    }
}

/// One in so many choices is a bad one, so that most files are nearly good.
const BAD: usize = 40;

/// Mostly from `good`, now and then from `bad`.
fn pick<'a>(rng: &mut Rng, good: &[&'a str], bad: &[&'a str]) -> &'a str {
    let from = if rng.usize(..BAD) == 0 { bad } else { good };
    from[rng.usize(..from.len())]
}

fn file(rng: &mut Rng) -> Vec<u8> {
    let mut text = String::new();
    for _ in 0..rng.usize(..6) {
        text.push_str(&entry(rng));
        text.push_str(pick(
            rng,
            &["\n", "\n", "\r\n", "\n\n", "\n# comment\n"],
            &["\n\u{b}", "\r", " "],
        ));
        for _ in 0..rng.usize(..3) {
            text.push_str(pick(rng, &["  ", "\t", " # x\n  "], &["", "\u{c}"]));
            text.push_str(argument(rng));
            text.push_str(pick(rng, &["\n", "\r\n", "\n \n"], &["", "\0\n"]));
        }
    }
    let mut bytes = text.into_bytes();
    if !bytes.is_empty() && rng.usize(..8) == 0 {
        let at = rng.usize(..bytes.len());
        bytes[at] = rng.u8(..);
    }
    bytes
}

fn entry(rng: &mut Rng) -> String {
    const FLAG: [&str; 3] = ["-", "n", "y"];
    const NO_FLAG: [&str; 4] = ["Y", "yes", "0", "n-"];
    let inet = rng.bool();
    let name = if inet {
        pick(
            rng,
            &[
                "smtp",
                "25",
                "127.0.0.1:10025",
                "[::1]:10025",
                "submission",
                ":2525",
                "0465",
                "[127.0.0.2]:smtps",
            ],
            &[
                "-",
                "[::1",
                "x",
                "1.2.3:25",
                "25:",
                "::",
                "65536",
                "[]:25",
                "1.2.3.4.5:25",
            ],
        )
    } else {
        pick(
            rng,
            &["relay", "smtpd", "a.b", "a:b", "{x}", "25", "é", "#x"],
            &["-", "a/b", ".", "..", "../x", "/x"],
        )
    };
    let kind = if inet {
        "inet"
    } else {
        pick(
            rng,
            &["unix", "pass", "fifo", "unix-dgram"],
            &["tcp", "-", "UNIX", "unix-"],
        )
    };
    let private = if inet {
        pick(rng, &["n"], &["-", "y"])
    } else {
        pick(rng, &FLAG, &NO_FLAG)
    };
    let fields = [
        name,
        kind,
        private,
        pick(rng, &FLAG, &NO_FLAG),
        pick(rng, &FLAG, &NO_FLAG),
        pick(rng, &["-", "0", "60", "300?"], &["?", "-?", "60??", "1m"]),
        pick(rng, &["-", "0", "1", "20", "007"], &["-1", "1x", "99999999999"]),
        pick(rng, &["smtpd", "/no/such", "a b", "{", "smtp -v"], &["-", ""]),
    ];
    fields.join(pick(rng, &[" ", "\t", "   ", "\n# in\n  "], &["\n", "\u{b}"]))
}

fn argument(rng: &mut Rng) -> &'static str {
    pick(
        rng,
        &[
            "-o a=b",
            "-o { a = b c }",
            "-oa=b",
            "{ -v }",
            "-o x={a",
            "word",
            "}",
            "-o {a={b}}",
            "-o",
        ],
        &["{ open", "{a}b", "-o {a=b}c", "{a} {", "{{a}"],
    )
}
