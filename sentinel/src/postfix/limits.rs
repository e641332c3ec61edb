//! The limits of stress mode as they are in force for one entry of master.cf: its `-o` arguments over main.cf over the
//! defaults of this Postfix, all of it by postconf(1).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::main_cf::effective;
use super::master_cf::Entry;
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
