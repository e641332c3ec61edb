//! postconf(1) of every version sees what we see, and of our edit exactly `stress=yes` on the one entry.

use sentinel_lab::judge::Judge;
use smtp_sentinel::postfix::edit;
use smtp_sentinel::postfix::master_cf::{Entry, Field, MasterCf, Wakeup};

use super::corpus::odd;
use super::{JUDGES, for_each};

/// The files that Debian ships with the four versions, and the odd ones.
fn files() -> Vec<(String, Vec<u8>)> {
    let odd = odd().into_iter().map(|(name, bytes)| (name.to_owned(), bytes));
    let shipped = JUDGES
        .iter()
        .map(|judge| (format!("of {}", judge.version()), judge.shipped().unwrap()));
    shipped.chain(odd).collect()
}

/// A judge and a file for him.
fn questions() -> Vec<(&'static Judge, String, Vec<u8>)> {
    let files = files();
    let each = |judge: &'static Judge| {
        let files = files.clone().into_iter();
        files.map(move |(name, bytes)| (judge, name, bytes))
    };
    JUDGES.iter().flat_map(each).collect()
}

#[test]
fn postconf_sees_of_our_edit_exactly_stress() {
    for_each(&questions(), |(judge, name, before)| {
        let context = format!("{name}, read by {}", judge.version());
        let entries = judge.postconf(before, &["-M"]).unwrap().expect(&context);
        let parameters = judge.postconf(before, &["-P"]).unwrap().expect(&context);
        let file = MasterCf::parse(before);
        assert_eq!(file.entries().len(), entries.len(), "{context}");
        let services: Vec<_> = file
            .in_force()
            .filter(|entry| entry.program() == "smtpd")
            .collect();
        for entry in services.into_iter().take(3) {
            let after = edit::insert(before, &entry.id, jiff::Timestamp::UNIX_EPOCH).expect(&context);
            let at = file
                .entries()
                .iter()
                .position(|one| std::ptr::eq(one, entry))
                .unwrap();
            let mut expected = entries.clone();
            expected[at].push_str(" -o stress=yes");
            assert_eq!(
                judge.postconf(&after, &["-M"]).unwrap().unwrap(),
                expected,
                "{context}"
            );

            let mut seen = judge.postconf(&after, &["-P"]).unwrap().unwrap();
            let ours = format!("{}/{}/stress = yes", entry.id.name, entry.id.kind);
            let position = seen.iter().position(|line| *line == ours);
            seen.remove(position.unwrap_or_else(|| panic!("{context}: no {ours} in {seen:?}")));
            assert_eq!(seen, parameters, "{context}");

            assert_eq!(edit::remove(&after).bytes, *before, "{context}");
        }
    });
}

#[test]
fn postconf_reads_the_same_entries() {
    for_each(&questions(), |(judge, name, bytes)| {
        let context = format!("{name}, read by {}", judge.version());
        let shown = judge.postconf(bytes, &["-M"]).unwrap().expect(&context);
        let read: Vec<_> = MasterCf::parse(bytes).entries().iter().map(words).collect();
        let shown: Vec<_> = shown.iter().map(|line| plain(line)).collect();
        assert_eq!(read, shown, "{context}");
    });
}

/// An entry, field by field and word by word.
fn words(entry: &Entry) -> Vec<String> {
    let flag = |field: &Field<bool>| show(field, |&set| if set { "y" } else { "n" }.to_owned());
    let wakeup = |wakeup: &Wakeup| {
        let sign = if wakeup.conditional { "?" } else { "" };
        format!("{}{sign}", wakeup.seconds)
    };
    let fields = [
        entry.id.name.clone(),
        entry.id.kind.clone(),
        flag(&entry.private),
        flag(&entry.unprivileged),
        flag(&entry.chroot),
        show(&entry.wakeup, wakeup),
        show(&entry.maxproc, u32::to_string),
        entry.command.clone(),
    ];
    let arguments = String::from_utf8_lossy(&entry.args.join(&b' ')).into_owned();
    plain(&format!("{} {arguments}", fields.join(" ")))
}

fn show<T>(field: &Field<T>, value: impl Fn(&T) -> String) -> String {
    match field {
        Field::Default => "-".to_owned(),
        Field::Is(set) => value(set),
        Field::Bad(text) => text.clone(),
    }
}

/// The words of a text, as much as postconf leaves of them: it prints a group as `{a=b c}` however it was written, and
/// `-voa=b` as `-v -o a=b`.
fn plain(text: &str) -> Vec<String> {
    let text = text
        .replace(['{', '}'], " ")
        .replace("-vo", "-v -o")
        .replace("-o", " -o ");
    let words: Vec<_> = text.split_whitespace().collect();
    let text = words.join(" ").replace(" =", "=").replace("= ", "=");
    text.split(' ').map(str::to_owned).collect()
}
