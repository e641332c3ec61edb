//! The limits of stress mode as they are in force for one entry of master.cf: its `-o` arguments over main.cf over the
//! defaults of this Postfix, all of it by postconf(1); or, where none may be asked, what stands there literally.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::main_cf::{effective, literal_values};
use super::master_cf::Entry;
use super::mynetworks::Trusted;
use super::postconf::{Postconf, PostconfError};
use crate::shed::Limits;

const TIMEOUT: &str = "smtpd_timeout";
const REQUEST_DEADLINE: &str = "smtpd_per_request_deadline";
const DATA_RATE: &str = "smtpd_min_data_rate";
const JUNK_COMMANDS: &str = "smtpd_junk_command_limit";

/// Why the limits are not known.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    #[error(transparent)]
    Postconf(#[from] PostconfError),
    #[error(
        "{parameter} is \"{value}\", and postconf(1), which would understand that, is not asked about a container; \
         write a plain value there"
    )]
    NotLiteral { parameter: &'static str, value: String },
    #[error("{parameter} of this Postfix is \"{value}\", which is not understood; please report it")]
    Value { parameter: &'static str, value: String },
}

/// What stress mode would hold the sessions of `entry` to.
pub fn stress_limits(postconf: &Postconf, config_dir: &Path, entry: &Entry) -> Result<Limits, LimitsError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let overrides: Vec<String> = entry
        .settings()
        .into_iter()
        .map(|(name, value)| format!("{}={}", text(name), text(value)))
        .collect();
    let names = [TIMEOUT, REQUEST_DEADLINE, DATA_RATE, JUNK_COMMANDS];
    let stressed = effective(postconf, config_dir, true, &names, &overrides)?;
    let calm = effective(postconf, config_dir, false, &[TIMEOUT], &overrides)?;
    limits(&stressed, &calm)
}

/// The same from the bytes of main.cf alone. What is not set there has the default of Postfix since 2.6, except that
/// there is no deadline then: it came with 3.7, and which version it is cannot be known.
pub fn literal_limits(main_cf: &[u8], entry: &Entry) -> Result<Limits, LimitsError> {
    let mut values = literal_values(main_cf);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    values.extend(
        entry
            .settings()
            .into_iter()
            .map(|(name, value)| (text(name), text(value))),
    );
    let with = |stress: bool| {
        [
            (TIMEOUT, "${stress?{10}:{300}}s"),
            (REQUEST_DEADLINE, "no"),
            (DATA_RATE, "500"),
            (JUNK_COMMANDS, "${stress?{1}:{100}}"),
        ]
        .into_iter()
        .map(|(parameter, default)| {
            let value = values.get(parameter).map_or(default, String::as_str);
            let expanded = expand_stress(value, stress).ok_or_else(|| LimitsError::NotLiteral {
                parameter,
                value: value.to_owned(),
            })?;
            Ok((parameter.to_owned(), expanded))
        })
        .collect::<Result<BTreeMap<_, _>, LimitsError>>()
    };
    limits(&with(true)?, &with(false)?)
}

/// The clients that this main.cf trusts, from its bytes alone.
///
/// # Errors
/// When that hangs on something else: the networks of its interfaces, or another parameter.
pub fn literal_mynetworks(main_cf: &[u8]) -> Result<Trusted, LimitsError> {
    let values = literal_values(main_cf);
    let value = |name: &str| values.get(name).map(String::as_str);
    let not_literal = |parameter, value: &str| LimitsError::NotLiteral {
        parameter,
        value: value.to_owned(),
    };
    match (value("mynetworks"), value("mynetworks_style")) {
        (Some(plain), _) if !plain.contains('$') => Ok(Trusted::of(plain)),
        (Some(other), _) => Err(not_literal("mynetworks", other)),
        // The machine itself, which is always trusted.
        (None, Some("host")) => Ok(Trusted::default()),
        (None, Some(style)) => Err(not_literal("mynetworks_style", style)),
        // Its default is "host" since 3.0, and "subnet" for a compatibility_level below 2.
        (None, None) => match value("compatibility_level").map_or("0", str::trim) {
            level if level.split('.').next().and_then(|n| n.parse().ok()) >= Some(2_u32) => {
                Ok(Trusted::default())
            }
            level => Err(not_literal("mynetworks (by compatibility_level)", level)),
        },
    }
}

/// `${stress?{a}:{b}}`, `${stress?a}` and `${stress:b}` decided, also several of them; `None` where anything else is to be
/// expanded (Postfix src/util/mac_expand.c).
fn expand_stress(value: &str, stress: bool) -> Option<String> {
    let mut out = String::new();
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = rest[at..].strip_prefix("${stress")?;
        let (yes, no);
        if let Some(braced) = rest.strip_prefix("?{") {
            let (first, behind) = braced.split_once('}')?;
            yes = first;
            (no, rest) = match behind.strip_prefix(":{") {
                Some(second) => second.split_once('}')?,
                None => ("", behind),
            };
            rest = rest.strip_prefix('}')?;
        } else {
            let (operator, behind) = (rest.chars().next()?, rest.get(1..)?);
            let (word, behind) = behind.split_once('}')?;
            (yes, no) = match operator {
                '?' => (word, ""),
                ':' => ("", word),
                _ => return None,
            };
            rest = behind;
        }
        if yes.contains(['$', '{']) || no.contains(['$', '{']) {
            return None;
        }
        out.push_str(if stress { yes } else { no });
    }
    out.push_str(rest);
    Some(out)
}

fn limits(
    stressed: &BTreeMap<String, String>,
    calm: &BTreeMap<String, String>,
) -> Result<Limits, LimitsError> {
    // Before 3.7 there is no request deadline; the record deadline of 3.6 and older is per read, which silence shows.
    let deadline = stressed.get(REQUEST_DEADLINE).is_some_and(|value| value == "yes");
    let min_data_rate = match stressed.get(DATA_RATE).filter(|_| deadline) {
        Some(value) => Some(parsed(DATA_RATE, value, |text| text.parse().ok())?),
        None => None,
    };
    Ok(Limits {
        timeout: time(stressed)?,
        min_data_rate,
        junk_commands: match stressed.get(JUNK_COMMANDS) {
            Some(value) => parsed(JUNK_COMMANDS, value, |text| text.parse().ok())?,
            None => u32::MAX - 2,
        },
        calm_timeout: time(calm)?,
    })
}

fn time(values: &BTreeMap<String, String>) -> Result<Duration, LimitsError> {
    let value = values.get(TIMEOUT).map_or("", String::as_str);
    parsed(TIMEOUT, value, seconds).map(Duration::from_secs)
}

fn parsed<T>(
    parameter: &'static str,
    value: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, LimitsError> {
    parse(value).ok_or_else(|| LimitsError::Value {
        parameter,
        value: value.to_owned(),
    })
}

/// `300s`, `5m`, `1h`; without a unit it is seconds (Postfix src/util/conv_time.c; smtpd_timeout has the unit s).
fn seconds(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    number.checked_mul(unit).filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_defaults_of_postfix_3_7() {
        let stressed = values(&[
            (TIMEOUT, "10s"),
            (REQUEST_DEADLINE, "yes"),
            (DATA_RATE, "500"),
            (JUNK_COMMANDS, "1"),
        ]);
        let limits = limits(&stressed, &values(&[(TIMEOUT, "300s")])).unwrap();
        assert_eq!(limits.timeout, Duration::from_secs(10));
        assert_eq!(limits.calm_timeout, Duration::from_secs(300));
        assert_eq!((limits.min_data_rate, limits.junk_commands), (Some(500), 1));
    }

    #[test]
    fn an_older_postfix_has_no_request_deadline() {
        let stressed = values(&[(TIMEOUT, "10s"), (JUNK_COMMANDS, "1")]);
        assert_eq!(
            limits(&stressed, &values(&[(TIMEOUT, "5m")]))
                .unwrap()
                .min_data_rate,
            None
        );
    }

    #[test]
    fn a_value_that_is_not_understood_is_no_limit_at_all() {
        let stressed = values(&[(TIMEOUT, "soon"), (JUNK_COMMANDS, "1")]);
        let error = limits(&stressed, &values(&[(TIMEOUT, "300s")])).unwrap_err();
        assert!(error.to_string().contains("smtpd_timeout"), "{error}");
        assert_eq!(
            [seconds("2h"), seconds("0s"), seconds("7x"), seconds("90")],
            [Some(7200), None, None, Some(90)]
        );
    }

    fn entry(text: &str) -> Entry {
        super::super::master_cf::MasterCf::parse(text.as_bytes()).entries()[0].clone()
    }

    #[test]
    fn without_postconf_what_is_literal_is_enough() {
        let plain = entry("smtp inet n - n - - smtpd\n");
        let limits = literal_limits(b"# nothing\n", &plain).unwrap();
        assert_eq!(
            (limits.timeout, limits.calm_timeout),
            (Duration::from_secs(10), Duration::from_secs(300))
        );
        assert_eq!((limits.min_data_rate, limits.junk_commands), (None, 1));
        let main_cf =
            b"smtpd_timeout = ${stress?20}${stress:200}s\nsmtpd_per_request_deadline=${stress?{yes}:{no}}\n\
            smtpd_junk_command_limit = 9\n";
        let own = entry("smtp inet n - n - - smtpd -o smtpd_junk_command_limit=7\n");
        let limits = literal_limits(main_cf, &own).unwrap();
        assert_eq!(
            (limits.timeout, limits.calm_timeout),
            (Duration::from_secs(20), Duration::from_secs(200))
        );
        assert_eq!((limits.min_data_rate, limits.junk_commands), (Some(500), 7));
        let other = b"smtpd_timeout = $my_timeout\n";
        assert!(matches!(
            literal_limits(other, &plain),
            Err(LimitsError::NotLiteral {
                parameter: TIMEOUT,
                ..
            })
        ));
    }

    #[test]
    fn what_stress_alone_decides_is_expanded() {
        for (value, yes, no) in [
            ("5", Some("5"), Some("5")),
            ("${stress?{1}:{100}}", Some("1"), Some("100")),
            ("${stress?{1}}x", Some("1x"), Some("x")),
            ("${stress:9}", Some(""), Some("9")),
            ("${stress?{${x}}:{2}}", None, None),
            ("${stressed?1}", None, None),
            ("$stress", None, None),
            ("${stress", None, None),
            ("${x?1}", None, None),
        ] {
            assert_eq!(expand_stress(value, true).as_deref(), yes, "{value}");
            assert_eq!(expand_stress(value, false).as_deref(), no, "{value}");
        }
    }

    #[test]
    fn networks_are_trusted_by_their_literal_list_or_not_at_all() {
        let ok = |main_cf: &str| literal_mynetworks(main_cf.as_bytes()).is_ok();
        assert!(ok("mynetworks = 127.0.0.0/8 10.0.0.0/8\n"));
        assert!(ok("compatibility_level = 3.6\n") && ok("mynetworks_style = host\n"));
        assert!(!ok("mynetworks = $inside\n") && !ok("mynetworks_style = subnet\n") && !ok("\n"));
    }

    #[test]
    fn the_real_postconf_knows_them_and_the_entry_counts_more_than_main_cf() {
        let Some(postconf) = Postconf::find(Path::new("/usr/lib/postfix/sbin")) else {
            panic!("postconf(1) is needed: `cargo xtask setup` installs it");
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("main.cf"), "smtpd_junk_command_limit = 7\n").unwrap();
        let master_cf = super::super::master_cf::MasterCf::parse(
            b"smtp inet n - n - - smtpd\n -o smtpd_timeout=${stress?{20}:{200}}s\n",
        );
        let limits = stress_limits(&postconf, dir.path(), &master_cf.entries()[0]).unwrap();
        assert_eq!(limits.timeout, Duration::from_secs(20));
        assert_eq!(limits.calm_timeout, Duration::from_secs(200));
        assert_eq!(limits.junk_commands, 7);
    }
}
