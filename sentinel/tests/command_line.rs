//! The real binary in a temporary directory: exit codes, sentences, and who prints what where.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test itself")]

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A configuration of its own, so that neither /etc nor another test matters, and with a Postfix that is not there: a
/// test that ran with every Postfix of the machine in its hands would act on it.
struct Place {
    dir: TempDir,
    config: PathBuf,
}

const NOBODY: &str = "[discovery]\nconfig_dirs = [\"/nonexistent/postfix\"]\n";

fn place(extra: &str) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let base = dir.path().display();
    let nobody = if extra.contains("[discovery]") { "" } else { NOBODY };
    let text =
        format!("[paths]\nstate_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n{extra}{nobody}");
    std::fs::write(&config, text).unwrap();
    Place { dir, config }
}

impl Place {
    fn run(&self, args: &[&str]) -> Output {
        sentinel(&[args, &["--config", self.config.to_str().unwrap()]].concat())
    }

    fn start(&self) -> Daemon {
        let mut child = Command::new(env!("CARGO_BIN_EXE_smtp-sentinel"))
            .args(["run", "--dry-run", "--config"])
            .arg(&self.config)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("127.0.0.1:") {
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "it ended: {seen}");
        }
        assert!(!seen.contains('\u{1b}'), "no colours into a pipe: {seen}");
        let address = seen.split("127.0.0.1:").nth(1).unwrap();
        let port = address
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap()
            .parse()
            .unwrap();
        Daemon { child, port }
    }
}

struct Daemon {
    child: Child,
    port: u16,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sentinel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smtp-sentinel"))
        .args(args)
        .output()
        .unwrap()
}

/// Nothing on standard output, one sentence on standard error, which is returned.
#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty());
    assert!(
        said.starts_with("smtp-sentinel: ") && said.lines().count() == 1,
        "{said}"
    );
    said
}

#[test]
fn usage_is_64_and_help_is_no_error() {
    for args in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let output = sentinel(args);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty() && !output.stdout.is_empty());
    }
    for args in [&[][..], &["fly"], &["status", "--jsn"], &["run", "--config"]] {
        let said = refused(&sentinel(args), 64);
        assert!(said.contains("--help"), "{said}");
    }
    let said = refused(&sentinel(&["histroy"]), 64);
    assert!(said.contains("'histroy'") && said.contains("'history'"), "{said}");
}

#[test]
fn a_bad_configuration_is_78_in_every_subcommand() {
    let place = place("[detect]\ntripp = 0.9\n");
    for command in ["run", "check", "status", "history"] {
        let said = refused(&place.run(&[command]), 78);
        assert!(
            said.contains("line 5: unknown key \"tripp\" in [detect]; did you mean \"trip\"?"),
            "{said}"
        );
        let said = refused(&sentinel(&[command, "--config", "/nonexistent/config.toml"]), 78);
        assert!(said.contains("/nonexistent/config.toml does not exist"), "{said}");
    }
}

#[test]
fn a_configuration_that_is_no_text_or_has_another_type_is_78_in_words() {
    let place = place("[detect]\ntrip = \"high\"\n");
    let said = refused(&place.run(&["check"]), 78);
    assert!(
        said.contains("line 5") && said.contains("expected a number;"),
        "{said}"
    );
    std::fs::write(&place.config, b"\xff\xfe").unwrap();
    let said = refused(&place.run(&["check"]), 78);
    assert!(said.contains("not UTF-8 text"), "{said}");
}

/// root without CAP_DAC_OVERRIDE before somebody else's files, which is what any other user is before ours.
#[test]
fn what_may_not_be_read_is_77_and_says_who_may() {
    let place = place("");
    let state = place.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
    for command in ["history", "restore"] {
        let output = Command::new("setpriv")
            .args([
                "--bounding-set",
                "-all",
                env!("CARGO_BIN_EXE_smtp-sentinel"),
                command,
                "--config",
            ])
            .arg(&place.config)
            .output()
            .unwrap();
        let said = refused(&output, 77);
        assert!(said.contains("; "), "what to do: {said}");
    }
}

#[test]
fn status_without_a_daemon_is_69() {
    let place = place("");
    for args in [&["status"][..], &["status", "--json"]] {
        let said = refused(&place.run(args), 69);
        assert!(
            said.contains("control.sock") && said.contains("start it with"),
            "{said}"
        );
    }
}

#[test]
fn an_empty_history_is_done() {
    let place = place("");
    let output = place.run(&["history", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(entries.is_empty());
    assert_eq!(place.run(&["history"]).stdout, b"nothing has been done yet\n");
}

#[test]
fn check_answers_no_with_1_and_one_json_document() {
    let place = place("[discovery]\nconfig_dirs = [\"/nonexistent/postfix\"]\n");
    let output = place.run(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], false);
    let findings = json["findings"].as_array().unwrap();
    let master_cf = findings
        .iter()
        .find(|f| f["subject"] == "/nonexistent/postfix/master.cf")
        .unwrap();
    assert_eq!(master_cf["ok"], "no");
    assert!(findings.iter().all(|f| (f["ok"] == "yes") == (f["advice"] == "")));
    let text = String::from_utf8(place.run(&["check"]).stdout).unwrap();
    assert!(
        text.contains("NO        /nonexistent/postfix/master.cf") && text.contains("cannot work here"),
        "{text}"
    );
}

#[test]
fn a_daemon_answers_is_alone_and_cleans_up() {
    let place = place("[metrics]\nlisten = \"127.0.0.1:0\"\n");
    let mut daemon = place.start();
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    std::io::Write::write_all(
        &mut stream,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    let second = place.run(&["run"]);
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.lines().last().unwrap().contains("already running"), "{said}");

    let socket = place.dir.path().join("run/control.sock");
    assert!(socket.exists());
    kill(Pid::from_raw(daemon.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
    refused(&place.run(&["status"]), 69);
}

/// Ctrl-C ends it like systemd does, and `| head` is no failure of anybody's.
#[test]
fn an_interrupt_is_an_end_in_good_order_and_a_reader_may_leave() {
    let place = place("[metrics]\nlisten = \"127.0.0.1:0\"\n");
    let mut daemon = place.start();
    // The first report comes a moment after the start.
    while place.run(&["status"]).status.code() != Some(0) {
        assert_eq!(daemon.child.try_wait().unwrap(), None, "it ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["history"],
        &["history", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_smtp-sentinel"))
            .args(args)
            .arg("--config")
            .arg(&place.config)
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    kill(Pid::from_raw(daemon.child.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_daemon_that_was_killed_leaves_nothing_in_the_way() {
    let place = place("[metrics]\nlisten = \"127.0.0.1:0\"\n");
    let mut first = place.start();
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(Path::new(&place.dir.path().join("run/control.sock")).exists());
    refused(&place.run(&["status"]), 69);
    let _second = place.start();
}

#[test]
fn an_address_in_use_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = place(&format!(
        "[metrics]\nlisten = \"{}\"\n",
        taken.local_addr().unwrap()
    ));
    let output = place.run(&["run"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.lines().last().unwrap().contains("[metrics] listen"),
        "{said}"
    );
}
