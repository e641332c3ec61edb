//! Whether master(8) would live through re-reading a master.cf: it dies of the first error, in its main loop, and all
//! of Postfix with it (Postfix src/master/master_ent.c get_master_ent(), fatal_with_context()).
//!
//! Refuses at least what master dies of, and a little more: what only postconf(1) refuses, and what only a look-up
//! outside the file could prove harmless. Entries that master_service_disable turns off are held to the same rules.
//! One cause of death no reading of a file can foresee: an address or a port that the kernel does not give (another
//! program has it, or the address is not this machine's). It concerns new listeners only, which no edit of ours adds.

use std::fmt;

use super::endpoint::{Endpoint, Names};
use super::lines::{self, Logical};
use super::master_cf::{arguments, next_field};

/// sockaddr_un.sun_path, with the NUL at its end; what is longer is fatal (Postfix src/util/unix_listen.c).
const SOCKET_PATH_MAX: usize = 107;

/// Something wrong in a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1: the first line of the entry.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// [`validate_with`], knowing no names of ports and hosts but those that Postfix has built in.
pub fn validate(bytes: &[u8]) -> Result<(), Vec<Problem>> {
    validate_with(bytes, &Names::built_in())
}

/// Everything that would or might make master(8) die when it reads this file. A name of a port or a host that is not
/// in `names` is a problem: master would look it up while it re-reads, and a failed look-up kills it.
pub fn validate_with(bytes: &[u8], names: &Names) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    for logical in lines::logical(bytes).iter().filter(|l| !l.ignored) {
        problems.extend(check(logical, names).err().map(|what| Problem {
            line: logical.first().number,
            what,
        }));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn check(logical: &Logical, names: &Names) -> Result<(), String> {
    if logical.nul {
        return Err("a NUL byte hides the rest of the entry".into());
    }
    let mut rest = logical.text.as_slice();
    let mut field = |name: &str| match next_field(&mut rest) {
        Some(value) => std::str::from_utf8(value).map_err(|_| format!("field \"{name}\": not UTF-8")),
        None => Err(format!("missing \"{name}\" field")),
    };
    let name = required("service name", field("service name")?)?;
    let kind = required("transport type", field("transport type")?)?;
    if !matches!(kind, "inet" | "unix" | "unix-dgram" | "fifo" | "pass") {
        return Err(format!("bad transport type: {kind}"));
    }
    let private = flag("private", field("private")?)?;
    if kind == "inet" {
        // The default is y.
        if private != Some(false) {
            return Err("inet service cannot be private".into());
        }
        endpoint(name, names)?;
    } else {
        socket_name(name, private.unwrap_or(true))?;
    }
    flag("unprivileged", field("unprivileged")?)?;
    flag("chroot", field("chroot")?)?;
    let wakeup = field("wakeup_time")?;
    number("wakeup_time", wakeup, wakeup.strip_suffix('?').unwrap_or(wakeup))?;
    let maxproc = field("max_proc")?;
    number("max_proc", maxproc, maxproc)?;
    required("command", field("command")?)?;
    match arguments(rest)
        .iter()
        .find_map(|a| a.error.map(|error| (error, a.value)))
    {
        Some((error, text)) => Err(format!("{error} in \"{}\"", String::from_utf8_lossy(text))),
        None => Ok(()),
    }
}

fn required<'t>(name: &str, value: &'t str) -> Result<&'t str, String> {
    if value == "-" {
        Err(format!("field \"{name}\" has no default value"))
    } else {
        Ok(value)
    }
}

fn flag(name: &str, value: &str) -> Result<Option<bool>, String> {
    match value {
        "-" => Ok(None),
        "y" => Ok(Some(true)),
        "n" => Ok(Some(false)),
        _ => Err(format!("field \"{name}\": bad value: \"{value}\"")),
    }
}

fn number(name: &str, value: &str, digits: &str) -> Result<(), String> {
    let good = digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<i32>().is_ok();
    if good || value == "-" {
        Ok(())
    } else {
        Err(format!("field \"{name}\": bad value: \"{value}\""))
    }
}

fn endpoint(name: &str, names: &Names) -> Result<(), String> {
    let endpoint = Endpoint::parse(name).map_err(|error| format!("{error} in \"{name}\""))?;
    if !names.has_port_for_sure(endpoint.port) {
        return Err(format!(
            "unknown service: {}/tcp; write the number of the port",
            endpoint.port
        ));
    }
    match endpoint.host {
        Some(host) if names.addresses(host).is_empty() => Err(format!(
            "host name \"{host}\" would be looked up at reload; write the address"
        )),
        _ => Ok(()),
    }
}

/// The name of a service of any other type is that of a file in $queue_directory/private or /public, which master
/// makes when it reads the entry. A name with a slash may lead to a directory that is there; nothing here can know.
fn socket_name(name: &str, private: bool) -> Result<(), String> {
    let directory = if private { "private/" } else { "public/" };
    if name.contains('/') || name == "." || name == ".." {
        Err(format!("\"{name}\" is no name for a file in {directory}"))
    } else if directory.len() + name.len() > SOCKET_PATH_MAX {
        Err(format!("service name is too long: {} bytes", name.len()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# head\nsmtp inet n - y - - smtpd\n  -o { a = b }\n127.0.0.1:10025 inet n n n 60? 0 smtpd\n\
        relay unix - - y - - smtp -o x={open\nsmtpd pass - - y - - smtpd\npostlog unix-dgram n - n - 1 postlogd\n";

    #[test]
    fn good_files_pass() {
        assert_eq!(validate(GOOD.as_bytes()), Ok(()));
        assert_eq!(validate(b""), Ok(()));
        assert_eq!(validate(b"  ignored\n"), Ok(()), "master warns and goes on");
        assert_eq!(validate(GOOD.replace('\n', "\r\n").as_bytes()), Ok(()));
    }

    #[test]
    fn whatever_kills_master_is_refused() {
        for (bad, what) in [
            ("smtp", "missing \"transport type\" field"),
            ("smtp -", "field \"transport type\" has no default value"),
            (
                "- unix - - - - - smtpd",
                "field \"service name\" has no default value",
            ),
            ("smtp tcp n - y - - smtpd", "bad transport type: tcp"),
            ("smtp inet x - y - - smtpd", "field \"private\": bad value: \"x\""),
            ("smtp inet y - y - - smtpd", "inet service cannot be private"),
            ("smtp inet - - y - - smtpd", "inet service cannot be private"),
            (
                "smtp inet n Y y - - smtpd",
                "field \"unprivileged\": bad value: \"Y\"",
            ),
            (
                "smtp inet n - yes - - smtpd",
                "field \"chroot\": bad value: \"yes\"",
            ),
            (
                "smtp inet n - y ? - smtpd",
                "field \"wakeup_time\": bad value: \"?\"",
            ),
            (
                "smtp inet n - y - -5 smtpd",
                "field \"max_proc\": bad value: \"-5\"",
            ),
            (
                "smtp inet n - y - 99999999999 smtpd",
                "field \"max_proc\": bad value: \"99999999999\"",
            ),
            ("smtp inet n - y - -", "missing \"command\" field"),
            ("smtp inet n - y - - -", "field \"command\" has no default value"),
            ("smtp inet n - y - - smtpd { -v", "missing \"}\" in \"-v\""),
            (
                "smtp inet n - y - - smtpd -o {a=b}c",
                "text follows the closing \"}\" in \"a=b\"",
            ),
            ("[::1 inet n - y - - smtpd", "missing \"]\" in \"[::1\""),
            (
                "nosuch inet n - y - - smtpd",
                "unknown service: nosuch/tcp; write the number of the port",
            ),
            (
                "70000 inet n - y - - smtpd",
                "unknown service: 70000/tcp; write the number of the port",
            ),
            (
                "lmtp inet n - y - - smtpd",
                "unknown service: lmtp/tcp; write the number of the port",
            ),
            (
                "a/b unix - - y - - smtp",
                "\"a/b\" is no name for a file in private/",
            ),
            (
                ".. fifo n - y - - smtp",
                "\"..\" is no name for a file in public/",
            ),
            ("-o stress=yes", "bad transport type: stress=yes"),
        ] {
            let text = format!("{GOOD}{bad}\n");
            let problems = validate(text.as_bytes()).unwrap_err();
            assert_eq!(
                problems,
                [Problem {
                    line: 8,
                    what: what.into()
                }],
                "{bad}"
            );
        }
        assert!(validate(b"smtp inet n - y - - smtpd -o a=b\0 c\n").is_err());
        assert!(validate(b"sm\xfftp unix n - y - - smtpd\n").is_err());
    }

    #[test]
    fn a_socket_has_room_for_so_many_bytes() {
        let entry = |length, private| format!("{} unix {private} - n - - smtp", "x".repeat(length));
        for (private, most) in [("-", 99), ("y", 99), ("n", 100)] {
            assert_eq!(validate(entry(most, private).as_bytes()), Ok(()));
            assert!(validate(entry(most + 1, private).as_bytes()).is_err());
        }
    }

    #[test]
    fn names_decide_about_ports_and_hosts() {
        let text = b"mx.example:qmqp inet n - y - - qmqpd\n";
        assert!(validate(text).is_err());
        let names = Names::from_files("qmqp 628/tcp\n", "192.0.2.1 mx.example\n");
        assert_eq!(validate_with(text, &names), Ok(()));
    }
}
