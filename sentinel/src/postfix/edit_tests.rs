//! What [`super`] promises, on written, generated and hostile files, and with the real postconf(1) as the judge.

use std::process::Command;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const PROTO: &str = "/etc/postfix/master.cf.proto";

pub(in crate::postfix) fn id(text: &str) -> ServiceId {
    let (name, kind) = text.rsplit_once('/').unwrap();
    ServiceId {
        name: name.into(),
        kind: kind.into(),
    }
}

pub(in crate::postfix) fn time() -> Timestamp {
    "2026-11-22T01:20:33.5Z".parse().unwrap()
}

fn inserted(text: &str, service: &str) -> String {
    String::from_utf8(insert(text.as_bytes(), &id(service), time()).unwrap()).unwrap()
}

const PAIR: &str = "# smtp-sentinel: stress mode for smtp/inet since 2026-11-22T01:20:33Z; the next line is ours; \
    undo with: smtp-sentinel restore\n    -o stress=yes\n";

#[test]
fn the_pair_follows_the_last_content_line() {
    let before = "smtp inet n - y - - smtpd\n  -o a=b\n# theirs\n\npickup unix n - y 60 1 pickup\n";
    let after = inserted(before, "smtp/inet");
    assert_eq!(
        after,
        format!("smtp inet n - y - - smtpd\n  -o a=b\n{PAIR}# theirs\n\npickup unix n - y 60 1 pickup\n")
    );
    assert_eq!(ours(after.as_bytes()), [id("smtp/inet")]);
    assert_eq!(remove(after.as_bytes()).bytes, before.as_bytes());
}

#[test]
fn line_endings_are_those_of_the_entry() {
    let crlf = PAIR.replace('\n', "\r\n");
    assert_eq!(
        inserted("smtp inet n - y - - smtpd\r\na unix - - - - - b\n", "smtp/inet"),
        format!("smtp inet n - y - - smtpd\r\n{crlf}a unix - - - - - b\n")
    );
    assert_eq!(
        inserted("smtp inet n - y - - smtpd", "smtp/inet"),
        format!("smtp inet n - y - - smtpd\n{}", PAIR.trim_end())
    );
    assert_eq!(
        inserted("# x\r\nsmtp inet n - y - - smtpd", "smtp/inet"),
        format!("# x\r\nsmtp inet n - y - - smtpd\r\n{}", crlf.trim_end())
    );
}

#[test]
fn the_last_duplicate_gets_it_under_its_own_name() {
    let before = "smtp inet n - y - - smtpd\n25 inet n - y - - smtpd\n";
    let after = inserted(before, "smtp/inet");
    assert!(after.starts_with(before), "{after}");
    assert_eq!(ours(after.as_bytes()), [id("25/inet")]);
    assert_eq!(
        remove_of(after.as_bytes(), &id("smtp/inet")).bytes,
        before.as_bytes()
    );
}

#[test]
fn refusals() {
    let refusal = |text: &str| insert(text.as_bytes(), &id("smtp/inet"), time()).unwrap_err();
    let smtp = id("smtp/inet");
    assert_eq!(
        refusal("smtp unix - - y - - smtp\n"),
        EditError::NoSuchEntry(smtp.clone())
    );
    for (args, value) in [
        ("-o stress=", ""),
        ("-o { stress = yes }", "yes"),
        ("-v\n -ostress=no", "no"),
    ] {
        let text = format!("smtp inet n - y - - smtpd {args}\n");
        assert_eq!(
            refusal(&text),
            EditError::AdminStress(smtp.clone(), value.into()),
            "{args}"
        );
    }
    let ours = inserted("smtp inet n - y - - smtpd\n", "smtp/inet");
    assert_eq!(refusal(&ours), EditError::AlreadyOurs(smtp.clone()));
    let both = format!("{ours}  -o stress=\n");
    assert_eq!(
        refusal(&both),
        EditError::AdminStress(smtp.clone(), String::new())
    );
    for args in ["-o", "word", "--", "-o x={open", "-v\0 -x", "{ open"] {
        let text = format!("smtp inet n - y - - smtpd {args}\n");
        assert_eq!(refusal(&text), EditError::WouldNotTake(smtp.clone()), "{args:?}");
    }
}

/// Found by the fuzz target: the comment would name `smtp/` of the type `net`.
#[test]
fn a_service_that_the_comment_cannot_name_is_refused() {
    let service = ServiceId {
        name: "smtp".into(),
        kind: "/net".into(),
    };
    let refusal = insert(b"smtp /net n - y - - smtpd\n", &service, time());
    assert_eq!(refusal, Err(EditError::WouldNotTake(service)));
}

#[test]
fn an_edit_of_the_admin_elsewhere_is_kept() {
    let before = "smtp inet n - y - - smtpd\npickup unix n - y 60 1 pickup\n";
    let after = inserted(before, "smtp/inet");
    let edit = |text: &str| text.replace("60", "90").replace("smtpd\n", "smtpd\n  -o a=b\n") + "  -v\n";
    assert_eq!(remove(edit(&after).as_bytes()).bytes, edit(before).as_bytes());
}

#[test]
fn only_an_intact_pair_is_taken_out() {
    let after = inserted("smtp inet n - y - - smtpd\n", "smtp/inet");
    let (comment, _) = PAIR.split_once('\n').unwrap();

    let changed = after.replace("stress=yes", "stress=no");
    let removal = remove(changed.as_bytes());
    assert_eq!(removal.bytes, b"smtp inet n - y - - smtpd\n    -o stress=no\n");
    assert_eq!(removal.removed, []);
    assert_eq!(
        removal.foreign,
        [Foreign {
            line: 2,
            service: Some(id("smtp/inet"))
        }]
    );

    let alone = format!("smtp inet n - y - - smtpd\n{comment}");
    assert_eq!(remove(alone.as_bytes()).bytes, b"smtp inet n - y - - smtpd\n");

    let moved = after.replace("    -o stress=yes", "\n    -o stress=yes");
    assert_eq!(
        remove(moved.as_bytes()).bytes,
        b"smtp inet n - y - - smtpd\n\n    -o stress=yes\n"
    );

    let rewritten = after.replace("is ours", "is mine");
    let removal = remove(rewritten.as_bytes());
    assert_eq!(removal.bytes, rewritten.as_bytes());
    assert_eq!(
        removal.foreign,
        [Foreign {
            line: 2,
            service: None
        }]
    );

    let theirs = "smtp inet n - y - - smtpd\n    -o stress=yes\n";
    assert_eq!(remove(theirs.as_bytes()).bytes, theirs.as_bytes());
}

/// What `postconf -P smtp/inet/smtpd_banner=x` makes of an entry with a pair of ours in it (3.7): the comments of the
/// entry, ours among them, go above it, and `-o stress=yes` stays behind in it.
#[test]
fn a_pair_that_postconf_tore_apart_is_taken_out() {
    let (comment, _) = PAIR.split_once('\n').unwrap();
    let torn = |between: &str, arguments: &str| {
        format!(
            "pickup unix n - y 60 1 pickup\n{between}smtp       inet  n       -       y       -       -       smtpd\n{arguments}flush unix n - y - 0 flush\n"
        )
    };
    let after = torn(
        &format!("# old\n{comment}\n# and a word\n"),
        "    -o stress=yes\n    -o smtpd_banner=x\n",
    );
    let removal = remove(after.as_bytes());
    assert_eq!(
        String::from_utf8_lossy(&removal.bytes),
        torn("# old\n# and a word\n", "    -o smtpd_banner=x\n")
    );
    assert_eq!(removal.removed, [id("smtp/inet")]);
    assert_eq!(removal.foreign, []);
    assert_eq!(
        insert(after.as_bytes(), &id("smtp/inet"), time()),
        Err(EditError::AlreadyOurs(id("smtp/inet")))
    );

    // Another entry, an argument that is not as we write it, or two that are: nothing says which is ours.
    let other = comment.replace("smtp/inet", "flush/unix");
    for (comment, arguments) in [
        (other.as_str(), "    -o stress=yes\n"),
        (comment, "  -o stress=yes\n"),
        (comment, "    -o stress=yes\n    -o stress=yes\n"),
    ] {
        let removal = remove(torn(&format!("{comment}\n"), arguments).as_bytes());
        assert_eq!(String::from_utf8_lossy(&removal.bytes), torn("", arguments));
        assert_eq!(removal.removed, []);
    }
}

/// A comment of ours that somebody moved above the entry does not claim the argument of an intact pair.
#[test]
fn a_stray_comment_leaves_a_pair_alone() {
    let after = inserted("smtp inet n - y - - smtpd\n", "smtp/inet");
    let (comment, _) = PAIR.split_once('\n').unwrap();
    let removal = remove(format!("{comment}\n{after}").as_bytes());
    assert_eq!(removal.bytes, b"smtp inet n - y - - smtpd\n");
    assert_eq!(removal.removed, [id("smtp/inet")]);
}

#[test]
fn services_are_undone_one_by_one() {
    let before = "smtp inet n - y - - smtpd\nsmtpd pass - - y - - smtpd";
    let one = inserted(before, "smtp/inet");
    let both = inserted(&one, "smtpd/pass");
    assert_eq!(ours(both.as_bytes()), [id("smtp/inet"), id("smtpd/pass")]);
    assert_eq!(
        remove_of(both.as_bytes(), &id("smtpd/pass")).bytes,
        one.as_bytes()
    );
    assert_eq!(remove(both.as_bytes()).bytes, before.as_bytes());
    assert!(only_ours_differs(before.as_bytes(), both.as_bytes()));
    assert!(only_ours_differs(one.as_bytes(), both.as_bytes()));
}

#[test]
fn the_guard_sees_everything_else() {
    let before = "smtp inet n - y - - smtpd\n";
    let after = inserted(before, "smtp/inet");
    assert!(only_ours_differs(before.as_bytes(), after.as_bytes()));
    assert!(!only_ours_differs(before.as_bytes(), before.as_bytes()));
    assert!(!only_ours_differs(after.as_bytes(), before.as_bytes()));
    for spoilt in [
        after.replace("smtpd\n", "smtpd \n"),
        after.replace("=yes", "=no"),
        after.replace("    -o", "   -o"),
        format!("{after}\n"),
        after.trim_end().to_owned(),
        after.replace(PAIR.split_inclusive('\n').next().unwrap(), ""),
    ] {
        assert!(
            !only_ours_differs(before.as_bytes(), spoilt.as_bytes()),
            "{spoilt}"
        );
    }
}

/// A comment that lost its argument line, and was written in the same second as ours is now: it is not the one that we add.
#[test]
fn the_guard_tells_a_stray_comment_from_ours() {
    let comment = PAIR.split_inclusive('\n').next().unwrap();
    for tail in [
        comment.to_owned(),
        comment.repeat(3),
        format!("{comment}relay unix - - y - - smtp\n"),
    ] {
        let before = format!("smtp inet n - y - - smtpd\n{tail}");
        let after = inserted(&before, "smtp/inet");
        assert!(only_ours_differs(before.as_bytes(), after.as_bytes()), "{after}");
        let spoilt = after.replacen(comment, "", 2);
        assert!(
            !only_ours_differs(before.as_bytes(), spoilt.as_bytes()),
            "{spoilt}"
        );
    }
    let twice = format!("smtp inet n - y - - smtpd\n{PAIR}{PAIR}");
    let once = format!("smtp inet n - y - - smtpd\n{PAIR}");
    assert!(only_ours_differs(once.as_bytes(), twice.as_bytes()));
    assert!(!only_ours_differs(twice.as_bytes(), once.as_bytes()));
}

/// Lines as people and programs write them, good and bad, with the ending of each.
pub(in crate::postfix) fn any_line() -> impl Strategy<Value = String> {
    let entry = (
        prop::sample::select(vec![
            "smtp",
            "25",
            "127.0.0.1:smtp",
            "submission",
            "smtpd",
            "10025",
            "-",
        ]),
        prop::sample::select(vec!["inet", "inet", "pass", "unix", "fifo", "x"]),
        prop::sample::select(vec![" ", "\t", "      "]),
        prop::sample::select(vec![
            "n - y - -",
            "- - - 60? 1",
            "n n n - 0",
            "y - y 300 10",
            "n - y",
        ]),
        prop::sample::select(vec![
            "smtpd",
            "smtpd -v",
            "smtpd -o a=b",
            "cleanup",
            "smtpd {",
            "/x/smtpd # no",
        ]),
    )
        .prop_map(|(name, kind, gap, fields, command)| {
            format!("{name}{gap}{kind}{gap}{}{gap}{command}", fields.replace(' ', gap))
        });
    let other = prop::sample::select(vec![
        "",
        "  ",
        "\t# comment inside",
        "# comment",
        "#",
        "  -o smtpd_timeout=300",
        "\t-o { x = a b",
        "  c }",
        "  -o",
        "    -o stress=yes",
        "  -o { stress = }",
        "  -v",
        "  word",
        "  x\u{0}y",
        "\u{b}-v",
        "# smtp-sentinel: hello",
        "  -ox=y -o z={",
        " }",
    ])
    .prop_map(str::to_owned);
    prop_oneof![2 => entry, 3 => other]
}

pub(in crate::postfix) fn any_file() -> impl Strategy<Value = Vec<u8>> {
    let ending = prop::sample::select(vec!["\n", "\r\n"]);
    (
        vec(any_line(), 0..14),
        ending,
        any::<bool>(),
        vec(any::<bool>(), 14),
    )
        .prop_map(|(lines, ending, last_ends, odd)| {
            let last = lines.len();
            let mut text = String::new();
            for (at, line) in lines.into_iter().enumerate() {
                text.push_str(&line);
                match (at + 1 == last && !last_ends, odd[at] && odd[13 - at]) {
                    (true, _) => {}
                    (false, true) => text.push('\n'),
                    (false, false) => text.push_str(ending),
                }
            }
            text.into_bytes()
        })
}

/// Arbitrary bytes before, in and after a real entry.
pub(in crate::postfix) fn soup() -> impl Strategy<Value = Vec<u8>> {
    let junk = || {
        vec(
            prop_oneof![any::<u8>(), prop::sample::select(b" \t\r\n#-o={}\0\x0b".to_vec())],
            0..40,
        )
    };
    (junk(), junk(), junk()).prop_map(|(head, middle, tail)| {
        [&head[..], b"\nsmtp inet n - y - - smtpd", &middle, b"\n", &tail].concat()
    })
}

/// The largest file that the actuator reads, in shapes that a quadratic step would take hours for: only entries, all of
/// them duplicates, only comments of ours, only pairs of ours, one line.
#[test]
fn a_file_of_a_mebibyte_takes_no_longer_for_being_odd() {
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(
            time.tv_sec.cast_unsigned(),
            time.tv_nsec.cast_unsigned().try_into().unwrap(),
        )
    };
    let (comment, _) = PAIR.split_once('\n').unwrap();
    let fill = |mut line: Box<dyn FnMut(usize) -> String>| {
        let mut text = "smtp inet n - y - - smtpd\n".to_owned();
        for n in 0.. {
            if text.len() >= 1 << 20 {
                return text;
            }
            text.push_str(&line(n));
        }
        text
    };
    let comment = format!("{comment}\n");
    let mark = |service: &str, n: usize| {
        let next = n + 1;
        format!(
            "# smtp-sentinel: headroom for {service} since 2026-11-22T01:20:33Z: maxproc {n} instead of {next}; \
             undo with: smtp-sentinel restore\n"
        )
    };
    let files = [
        fill(Box::new(|n| format!("s{n} unix - - - - - a\n"))),
        fill(Box::new(|_| "25 inet n - - - - a\n".to_owned())),
        fill(Box::new(move |_| comment.clone())),
        fill(Box::new(|_| PAIR.to_owned())),
        fill(Box::new(|n| mark("smtp/inet", n))),
        fill(Box::new(|n| {
            format!("s{n} unix - - - - - a\n{}", mark(&format!("s{n}/unix"), n))
        })),
        fill(Box::new(|_| "  { a } -o b=c".to_owned())),
        fill(Box::new(|_| "{".to_owned())),
    ];
    for text in files {
        let before = cpu();
        let bytes = text.as_bytes();
        let _ = super::super::master_cf::validate(bytes);
        assert!(MasterCf::parse(bytes).in_force().count() > 0);
        remove(bytes);
        if let Ok(after) = insert(bytes, &id("smtp/inet"), time()) {
            assert!(only_ours_differs(bytes, &after));
        }
        let took = cpu() - before;
        assert!(took < Duration::from_secs(120), "{took:?}: {:?}", &text[..100]);
    }
}

fn holds(before: &[u8]) -> Result<(), TestCaseError> {
    let file = MasterCf::parse(before);
    for entry in file.entries() {
        let Ok(after) = insert(before, &entry.id, time()) else {
            continue;
        };
        prop_assert!(only_ours_differs(before, &after));
        let target = file.find(&entry.id).unwrap();
        prop_assert_eq!(ours(&after), std::slice::from_ref(&target.id));
        prop_assert_eq!(&remove(&after).bytes, before);
        prop_assert_eq!(&remove_of(&after, &entry.id).bytes, before);
        let edited = MasterCf::parse(&after);
        let overrides = edited.find(&entry.id).unwrap().overrides("stress");
        prop_assert_eq!(overrides, [b"yes"]);
        let count = |f: &MasterCf<'_>| {
            f.entries()
                .iter()
                .map(|e| e.overrides("stress").len())
                .sum::<usize>()
        };
        prop_assert_eq!(count(&edited), count(&file) + 1);
        let again = insert(&after, &entry.id, time());
        prop_assert!(matches!(again, Err(EditError::AlreadyOurs(_))), "{again:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn remove_undoes_insert_on_written_files(before in any_file()) {
        prop_assume!(ours(&before).is_empty());
        holds(&before)?;
    }

    #[test]
    fn remove_undoes_insert_on_soup(before in soup()) {
        holds(&before)?;
    }

    #[test]
    fn a_file_without_ours_is_left_alone(before in prop_oneof![any_file(), soup(), vec(any::<u8>(), 0..300)]) {
        let removal = remove(&before);
        prop_assert_eq!(removal.bytes, before);
        prop_assert!(removal.removed.is_empty());
    }

    #[test]
    fn edits_elsewhere_survive(mut before in any_file(), head in any_line(), tail in any_line()) {
        let wrap = |text: &[u8]| [head.as_bytes(), b"\n", text, b"\n", tail.as_bytes(), b"\n"].concat();
        // A last line that had no ending keeps the one that our pair gave it, LF or CRLF.
        if !before.ends_with(b"\n") {
            before.push(b'\n');
        }
        for entry in MasterCf::parse(&before).entries() {
            if let Ok(after) = insert(&before, &entry.id, time()) {
                prop_assert_eq!(remove(&wrap(&after)).bytes, wrap(&before));
            }
        }
    }
}

/// `postconf -M` on the bytes.
pub(in crate::postfix) fn postconf_entries(bytes: &[u8]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let main_cf = std::fs::File::create(dir.path().join("main.cf")).unwrap();
    // postconf waits until main.cf is 2 s old (Postfix src/util/dict.c dict_load_file_xt()).
    main_cf.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    std::fs::write(dir.path().join("master.cf"), bytes).unwrap();
    let output = Command::new("/usr/sbin/postconf")
        .arg("-c")
        .arg(dir.path())
        .arg("-M")
        .output()
        .unwrap_or_else(|error| {
            panic!("no postconf to compare with ({error}): `cargo xtask setup` installs it")
        });
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Files of the kinds that are found in the wild.
pub(in crate::postfix) fn samples() -> Vec<Vec<u8>> {
    let mut samples: Vec<Vec<u8>> = [
        "smtp inet n - y - - smtpd",
        "smtp      inet  n       -       y       -       -       smtpd\n# inside\n\n   # deeper\n  -o { a = b c }\n\n# after\n\
         smtp unix - - y - - smtp\n",
        "smtp inet n - n - 20 smtpd -v -D\r\n\t-o content_filter=x:[127.0.0.1]:10024\r\nsmtpd pass - - n - - smtpd",
        "smtp inet n - y - 1 postscreen\nsmtpd pass - - y - 50 smtpd\n  -o smtpd_sasl_auth_enable=no\n\
         127.0.0.1:10025 inet n n n - 0 smtpd\n  -o mynetworks=127.0.0.0/8\n#smtp inet n - y - - smtpd\n",
        "  stray text\nsmtp inet n - y - - smtpd\n  { -v }\n  -o { stress_x = yes }\n",
        "[::1]:smtp inet n - y 60? 3 smtpd -o x={a}b\n",
    ]
    .map(|s| s.as_bytes().to_vec())
    .into();
    if let Ok(proto) = std::fs::read(PROTO) {
        samples.push(String::from_utf8_lossy(&proto).replace('\n', "\r\n").into_bytes());
        samples.push(proto);
    }
    samples
}

#[test]
fn postconf_sees_one_option_more_and_nothing_else() {
    for before in samples() {
        let shown_before = postconf_entries(&before);
        let file = MasterCf::parse(&before);
        assert_eq!(file.entries().len(), shown_before.len());
        for (at, entry) in file
            .entries()
            .iter()
            .enumerate()
            .filter(|(_, e)| e.program() == "smtpd")
        {
            let after = insert(&before, &entry.id, time()).unwrap();
            let mut expected = shown_before.clone();
            expected[at].push_str(" -o stress=yes");
            assert_eq!(postconf_entries(&after), expected);
        }
    }
}

#[test]
fn postconf_reads_the_same_fields() {
    use super::super::master_cf::{Field, Wakeup};
    let flag = |f: &Field<bool>| match f {
        Field::Default => "-".to_owned(),
        Field::Is(set) => if *set { "y" } else { "n" }.to_owned(),
        Field::Bad(text) => text.clone(),
    };
    let number = |f: &Field<u32>| {
        if let Field::Is(n) = f {
            n.to_string()
        } else {
            "-".into()
        }
    };
    let wakeup = |f: &Field<Wakeup>| match f {
        Field::Is(w) => format!("{}{}", w.seconds, if w.conditional { "?" } else { "" }),
        _ => "-".into(),
    };
    for sample in samples() {
        let shown = postconf_entries(&sample);
        for (entry, line) in MasterCf::parse(&sample).entries().iter().zip(&shown) {
            let shown: Vec<&str> = line.split_whitespace().take(8).collect();
            let read = [
                entry.id.name.clone(),
                entry.id.kind.clone(),
                flag(&entry.private),
                flag(&entry.unprivileged),
                flag(&entry.chroot),
                wakeup(&entry.wakeup),
                number(&entry.maxproc),
                entry.command.clone(),
            ];
            assert_eq!(shown, read);
            let args = entry
                .args
                .iter()
                .flat_map(|a| a.split(|b| b.is_ascii_whitespace()));
            let args: String = args.map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            let shown_args: String = line.split_whitespace().skip(8).collect();
            // postconf prints a group as {a=b c}; what counts is that the words are the same.
            let plain = |s: String| s.replace(['{', '}'], "");
            assert_eq!(plain(args), plain(shown_args));
        }
    }
}
