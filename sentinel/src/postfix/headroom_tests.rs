//! What [`super`] promises, alone and together with the pair of [`edit`], on written, generated and hostile files, and with
//! the real postconf(1) as the judge.

use proptest::prelude::*;

use super::super::edit::tests::{any_file, any_line, id, postconf_entries, samples, soup, time};
use super::super::edit::{Change, only_ours_differs, remove, remove_of};
use super::*;

const BOTH: Change = Change {
    stress: true,
    maxproc: Some(4000),
};

fn raised_to(text: &str, service: &str, maxproc: u32) -> String {
    String::from_utf8(raise(text.as_bytes(), &id(service), maxproc, time()).unwrap()).unwrap()
}

fn lowered(text: &str) -> String {
    String::from_utf8(remove(text.as_bytes()).bytes).unwrap()
}

#[test]
fn one_word_changes_and_one_comment_says_so() {
    let before = "smtp      inet  n       -       y       -       20       smtpd\n  -o a=b\n# theirs\npickup unix n - y 60 1 pickup\n";
    let after = raised_to(before, "smtp/inet", 80);
    let comment = "# smtp-sentinel: headroom for smtp/inet since 2026-11-22T01:20:33Z: maxproc 80 instead of 20; \
                   undo with: smtp-sentinel restore\n";
    assert_eq!(
        after,
        before
            .replace("20       smtpd", "80       smtpd")
            .replace("# theirs", &format!("{comment}# theirs"))
    );
    assert!(only_ours_differs(before.as_bytes(), after.as_bytes()));
    let mark = Mark {
        service: id("smtp/inet"),
        raised: 80,
        own: "20".into(),
    };
    assert_eq!(raised(after.as_bytes()), std::slice::from_ref(&mark));
    let removal = remove(after.as_bytes());
    assert_eq!(removal.bytes, before.as_bytes());
    assert_eq!(removal.lowered, [Lowered { mark, put_back: true }]);
    assert_eq!(removal.services(), [id("smtp/inet")]);
}

#[test]
fn a_default_comes_back_as_the_default_and_fields_may_go_on_in_the_next_line() {
    for before in [
        "smtp inet n - y - - smtpd",
        "smtp inet n - y -\n# between\n\t-\tsmtpd\r\n  -v",
        "x unix - - - - - y\r\nsmtp inet n - y - 1 smtpd",
    ] {
        let after = raised_to(before, "smtp/inet", 400);
        let entries = MasterCf::parse(after.as_bytes());
        assert_eq!(entries.find(&id("smtp/inet")).unwrap().maxproc, Field::Is(400));
        assert_eq!(lowered(&after), before);
    }
}

#[test]
fn only_more_is_headroom_and_an_own_stress_is_law() {
    let refusal = |text: &str| raise(text.as_bytes(), &id("smtp/inet"), 20, time()).unwrap_err();
    for maxproc in ["20", "21", "0", "x"] {
        let text = format!("smtp inet n - y - {maxproc} smtpd\n");
        assert_eq!(
            refusal(&text),
            EditError::WouldNotTake(id("smtp/inet")),
            "{maxproc}"
        );
    }
    assert!(matches!(
        refusal("smtp inet n - y - 10 smtpd -o stress=\n"),
        EditError::AdminStress(..)
    ));
    assert!(matches!(
        refusal("smtp unix - - - - - smtp\n"),
        EditError::NoSuchEntry(_)
    ));
    let once = raised_to("smtp inet n - y - 10 smtpd\n", "smtp/inet", 15);
    assert_eq!(refusal(&once), EditError::AlreadyRaised(id("smtp/inet")));
}

#[test]
fn what_others_put_into_the_column_meanwhile_stays() {
    let after = raised_to("smtp inet n - y - 20 smtpd\n", "smtp/inet", 80);
    let theirs = after.replace(" 80 smtpd", " 50 smtpd");
    assert_eq!(raised(theirs.as_bytes()), []);
    let removal = remove(theirs.as_bytes());
    assert_eq!(removal.bytes, b"smtp inet n - y - 50 smtpd\n");
    assert!(!removal.lowered[0].put_back);

    let (entry, _) = after.split_once('\n').unwrap();
    let without_mark = format!("{entry}\n");
    assert_eq!(
        lowered(&without_mark),
        without_mark,
        "the mark is gone, so it is theirs"
    );

    let without_entry = after.replacen(entry, "", 1);
    assert_eq!(lowered(&without_entry), "\n");

    let changed = after.replace("instead of", "in place of");
    assert_eq!(lowered(&changed), changed, "not as we write it: left standing");
}

/// `postconf -P` moves the comments in an entry above it, and `postconf -F` sets its columns anew.
#[test]
fn a_mark_that_postconf_moved_still_gives_the_number_back() {
    let after = raised_to("smtp inet n - y - 20 smtpd\n", "smtp/inet", 80);
    let (entry, comment) = after.split_once('\n').unwrap();
    let moved = format!("{comment}{}\n    -o a=b\n", entry.replace(' ', "      "));
    assert_eq!(
        lowered(&moved),
        "smtp      inet      n      -      y      -      20      smtpd\n    -o a=b\n"
    );
}

#[test]
fn headroom_and_stress_come_and_go_by_themselves() {
    let before = "smtp inet n - y - 20 smtpd\nsmtpd pass - - y - - smtpd";
    let smtp = id("smtp/inet");
    let both = BOTH.apply(before.as_bytes(), &smtp, time()).unwrap();
    assert!(only_ours_differs(before.as_bytes(), &both));
    let first = Change {
        maxproc: None,
        ..BOTH
    }
    .apply(before.as_bytes(), &smtp, time());
    let second = Change {
        stress: false,
        ..BOTH
    };
    assert_eq!(second.apply(&first.unwrap(), &smtp, time()).unwrap(), both);
    let room = second.apply(before.as_bytes(), &smtp, time()).unwrap();
    let later = Change::STRESS.apply(&room, &smtp, time()).unwrap();
    assert!(only_ours_differs(&room, &later));
    assert_eq!(remove(&later).bytes, before.as_bytes());
    let two = BOTH.apply(&later, &id("smtpd/pass"), time()).unwrap();
    assert_eq!(remove_of(&two, &id("smtpd/pass")).bytes, later);
    assert_eq!(remove(&two).bytes, before.as_bytes());
}

#[test]
fn the_guard_sees_everything_else() {
    let before = "smtp inet n - y - 20 smtpd\npickup unix n - y 60 1 pickup\n";
    let after = raised_to(before, "smtp/inet", 80);
    let without_comment = after.replacen("20 smtpd", "80 smtpd", 1);
    for spoilt in [
        after.replace("60 1", "61 1"),
        after.replace("80 smtpd", "80  smtpd"),
        after.replace("80 smtpd", "20 smtpd"),
        after.replace("n - y - 80", "n - n - 80"),
        after.replace("80 smtpd", "x smtpd"),
        without_comment.lines().next().unwrap().to_owned() + "\npickup unix n - y 60 1 pickup\n",
    ] {
        assert!(
            !only_ours_differs(before.as_bytes(), spoilt.as_bytes()),
            "{spoilt}"
        );
    }
}

/// Found by the properties: it is both the last one of the line and, with the line feed that comes behind it, half of an
/// ending.
#[test]
fn the_guard_knows_a_carriage_return_that_ends_the_file() {
    for before in [
        "smtp inet n - y - - smtpd\r\n -v\r",
        "smtp inet n - y - - smtpd\r\n -v\r\r",
        "relay unix - - y - - smtp\r\nsmtp inet n - y - - smtpd\r",
        "relay unix - - y - - smtp\r\nsmtp inet n - y - - smtpd",
    ] {
        for stress in [false, true] {
            let change = Change { stress, ..BOTH };
            let after = change.apply(before.as_bytes(), &id("smtp/inet"), time()).unwrap();
            assert!(only_ours_differs(before.as_bytes(), &after), "{before:?}");
            assert_eq!(remove(&after).bytes, before.as_bytes());
            let spoilt = String::from_utf8(after).unwrap().replacen("\r\n", "\r\r\n", 1);
            assert!(
                !only_ours_differs(before.as_bytes(), spoilt.as_bytes()),
                "{before:?}"
            );
        }
    }
}

fn holds(before: &[u8], change: Change) -> Result<(), TestCaseError> {
    let file = MasterCf::parse(before);
    for entry in file.entries() {
        let Ok(after) = change.apply(before, &entry.id, time()) else {
            continue;
        };
        prop_assert!(only_ours_differs(before, &after));
        prop_assert_eq!(&remove(&after).bytes, before);
        prop_assert_eq!(&remove_of(&after, &entry.id).bytes, before);
        let target = file.find(&entry.id).unwrap();
        let edited = MasterCf::parse(&after);
        for (old, new) in file.entries().iter().zip(edited.entries()) {
            let raised = std::ptr::eq(old, target);
            prop_assert_eq!(&new.maxproc, if raised { &Field::Is(4000) } else { &old.maxproc });
        }
        prop_assert_eq!(raised(&after).len(), 1);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn remove_undoes_it_on_written_files(before in any_file(), stress in any::<bool>()) {
        prop_assume!(edit::is_plain(&before));
        holds(&before, Change { stress, ..BOTH })?;
    }

    #[test]
    fn remove_undoes_it_on_soup(before in soup(), stress in any::<bool>()) {
        holds(&before, Change { stress, ..BOTH })?;
    }

    #[test]
    fn edits_elsewhere_survive(mut before in any_file(), head in any_line(), tail in any_line()) {
        let wrap = |text: &[u8]| [head.as_bytes(), b"\n", text, b"\n", tail.as_bytes(), b"\n"].concat();
        if !before.ends_with(b"\n") {
            before.push(b'\n');
        }
        for entry in MasterCf::parse(&before).entries() {
            let Ok(after) = BOTH.apply(&before, &entry.id, time()) else { continue };
            // A duplicate of the entry, put in by somebody else, is then the one that counts; ours is not undone in it.
            let theirs = wrap(&after);
            let counts = MasterCf::parse(&theirs);
            if counts.find(&entry.id).is_some_and(|one| one.maxproc == Field::Is(4000)) {
                prop_assert_eq!(remove(&theirs).bytes, wrap(&before));
            }
        }
    }
}

#[test]
fn postconf_sees_one_number_more_and_nothing_else() {
    let words = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for before in samples() {
        let shown = postconf_entries(&before);
        let file = MasterCf::parse(&before);
        let smtpds = file.entries().iter().enumerate();
        for (at, entry) in
            smtpds.filter(|(_, entry)| entry.program() == "smtpd" && entry.maxproc != Field::Is(0))
        {
            let after = raise(&before, &entry.id, 4000, time()).unwrap();
            let mut expected: Vec<_> = shown.iter().map(words).collect();
            expected[at][COLUMN] = "4000".to_owned();
            let seen: Vec<_> = postconf_entries(&after).iter().map(words).collect();
            assert_eq!(seen, expected);
        }
    }
}
