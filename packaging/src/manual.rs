//! The man pages: those of the commands out of the definitions that the program itself parses by, that of the configuration
//! out of the file that the packages install. Neither can tell another story than the program.

use std::fs;

use anyhow::{Context, Result, ensure};
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use smtp_sentinel::cli::Cli;

use crate::{NAME, TIME, VERSION, workspace};

const MANUAL: &str = "SMTP Sentinel";

/// A page, uncompressed.
#[derive(Debug)]
pub struct Page {
    pub name: String,
    pub section: u8,
    pub text: String,
}

/// All pages.
///
/// # Errors
/// The configuration is not of the shape that its page is made of.
pub fn pages() -> Result<Vec<Page>> {
    let mut cli = Cli::command();
    cli.build();
    let subcommands = cli.get_subcommands().cloned();
    let mut pages: Vec<_> = subcommands.map(of_subcommand).collect::<Result<_>>()?;
    pages.push(of_program(cli)?);
    let text = fs::read_to_string(workspace().join("deploy/config.toml"))?;
    pages.push(of_configuration(&text)?);
    Ok(pages)
}

fn of_program(cli: Command) -> Result<Page> {
    let mut page = of_command(cli, NAME.to_owned())?;
    let mut more = Roff::new();
    more.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in [
        ("0", "Done; also when there was nothing to restore."),
        ("1", "The answer is no, such as a failed check."),
        ("64", "The command line makes no sense."),
        ("69", "The daemon is not there."),
        ("77", "Not permitted."),
        ("78", "The configuration must be corrected."),
    ] {
        more.control("TP", []).text([bold(code)]).text([roman(meaning)]);
    }
    more.control("SH", ["FILES"]);
    for (file, what) in [
        (
            "/etc/smtp-sentinel/config.toml",
            "The configuration; see smtp-sentinel.toml(5).",
        ),
        (
            "/var/lib/smtp-sentinel",
            "The journal of every action, and each master.cf from before an edit.",
        ),
        (
            "/run/smtp-sentinel/control.sock",
            "Where the daemon is asked by the commands status and history.",
        ),
    ] {
        more.control("TP", []).text([italic(file)]).text([roman(what)]);
    }
    page.text.push_str(&more.render());
    page.text.push_str(&see_also(
        "smtp-sentinel.toml(5), master(8), master(5), postconf(1)",
    ));
    Ok(page)
}

fn of_subcommand(command: Command) -> Result<Page> {
    let name = format!("{NAME}-{}", command.get_name());
    let mut page = of_command(command, name)?;
    page.text
        .push_str(&see_also("smtp-sentinel(8), smtp-sentinel.toml(5)"));
    Ok(page)
}

fn of_command(command: Command, name: String) -> Result<Page> {
    let mut text = Vec::new();
    Man::new(command)
        .title(name.to_uppercase())
        .section("8")
        .date(date()?)
        .source(source())
        .manual(MANUAL)
        .render(&mut text)?;
    Ok(Page {
        name,
        section: 8,
        text: String::from_utf8(text)?,
    })
}

/// Keys that stand together, with the comment above them.
#[derive(Debug, PartialEq)]
struct Entry<'a> {
    comment: String,
    keys: Vec<&'a str>,
}

/// smtp-sentinel.toml(5) out of the file's own comments: a comment explains the keys that follow it without a gap.
fn of_configuration(file: &str) -> Result<Page> {
    let mut roff = Roff::new();
    let section = "5";
    roff.control("TH", ["SMTP-SENTINEL.TOML", section, &date()?, &source(), MANUAL])
        .control("SH", ["NAME"])
        .text([roman("smtp-sentinel.toml - configuration of smtp-sentinel(8)")])
        .control("SH", ["SYNOPSIS"])
        .text([italic("/etc/smtp-sentinel/config.toml")])
        .control("SH", ["DESCRIPTION"]);
    let (introduction, sections) = file
        .split_once("\n[")
        .context("the configuration has no section")?;
    let introduction: String = introduction.lines().skip(1).map(uncommented).collect();
    roff.text([roman(
        "A file in TOML. The values below are those of the file as it is installed. ",
    )])
    .text([roman(introduction.trim())]);
    roff.control("SH", ["KEYS"]);
    for section in sections.split("\n[") {
        let (name, entries) = section.split_once("]\n").context("a section without an end")?;
        roff.control("SS", [format!("[{name}]").as_str()]);
        for entry in entries_of(entries) {
            ensure!(
                !entry.comment.is_empty(),
                "a key without a comment: {:?}",
                entry.keys
            );
            for (key, control) in entry.keys.iter().zip(["TP", "TQ", "TQ", "TQ"]) {
                roff.control(control, []).text([bold(*key)]);
            }
            roff.text([roman(entry.comment.trim())]);
        }
    }
    Ok(Page {
        name: "smtp-sentinel.toml".to_owned(),
        section: 5,
        text: roff.render() + &see_also("smtp-sentinel(8), smtp-sentinel-check(8)"),
    })
}

fn entries_of(section: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let mut fresh = true;
    for line in section.lines().filter(|line| !line.is_empty()) {
        if line.starts_with('#') {
            if fresh {
                entries.push(Entry {
                    comment: String::new(),
                    keys: Vec::new(),
                });
            }
            fresh = false;
            if let Some(entry) = entries.last_mut() {
                entry.comment.push_str(&uncommented(line));
            }
        } else {
            fresh = true;
            match entries.last_mut() {
                Some(entry) => entry.keys.push(line),
                None => entries.push(Entry {
                    comment: String::new(),
                    keys: vec![line],
                }),
            }
        }
    }
    entries
}

/// A comment's words, to be joined with those of the next line.
fn uncommented(line: &str) -> String {
    format!("{} ", line.trim_start_matches('#').trim())
}

fn see_also(pages: &str) -> String {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages)]);
    roff.render()
}

fn date() -> Result<String> {
    let time = jiff::Timestamp::from_second(TIME.into())?;
    Ok(time.strftime("%Y-%m-%d").to_string())
}

fn source() -> String {
    format!("{NAME} {VERSION}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_goes_with_the_keys_below_it() {
        let entries = entries_of("# One\n# two.\na = 1\nb = 2\n\n# Three.\nc = \"\"\n");
        let (first, second) = (&entries[0], &entries[1]);
        assert_eq!(
            (first.comment.as_str(), &first.keys[..]),
            ("One two. ", &["a = 1", "b = 2"][..])
        );
        assert_eq!(
            (second.comment.as_str(), &second.keys[..]),
            ("Three. ", &["c = \"\""][..])
        );
    }

    #[test]
    fn every_command_and_every_key_has_its_place() {
        let pages = pages().unwrap();
        let names: Vec<_> = pages.iter().map(|page| page.name.as_str()).collect();
        for name in ["run", "check", "status", "history", "restore"] {
            assert!(
                names.contains(&format!("smtp-sentinel-{name}").as_str()),
                "{names:?}"
            );
        }
        let configuration = pages.iter().find(|page| page.section == 5).unwrap();
        let file = fs::read_to_string(workspace().join("deploy/config.toml")).unwrap();
        let keys = file
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "));
        let mut seen = 0;
        for (key, _) in keys {
            assert!(configuration.text.contains(key), "{key}");
            seen += 1;
        }
        assert!(seen > 10, "{seen}");
    }

    #[test]
    fn a_key_without_a_comment_is_refused() {
        assert!(of_configuration("# x\n\n[a]\nb = 1\n").is_err());
    }
}
