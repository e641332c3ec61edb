//! What main.cf says about the services: limits, interfaces, and whether stress mode would change anything.
//!
//! postconf(1) is asked, since main.cf is a language of its own; where there is none, values that stand there
//! literally are read, and [`Settings::source`] says so.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::lines;
use super::master_cf::{Entry, trim};
use super::postconf::{Postconf, PostconfError};
use super::{Home, Master};

/// A main.cf is some kilobytes. Above this it is not one, and not read.
const SIZE_LIMIT: u64 = 1 << 20;

/// Every parameter of smtpd that depends on stress by default in some version since 2.6 (Postfix
/// src/global/mail_params.h), and what hangs on them.
pub const STRESS_PARAMETERS: [&str; 7] = [
    "smtpd_timeout",
    "smtpd_starttls_timeout",
    "smtpd_hard_error_limit",
    "smtpd_junk_command_limit",
    "smtpd_per_record_deadline",
    "smtpd_per_request_deadline",
    "address_verify_poll_count",
];

const NAMES: [&str; 3] = ["mail_version", "default_process_limit", "master_service_disable"];

/// The parameters of main.cf that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `None` when postconf could not be asked.
    pub version: Option<String>,
    /// maxproc of the entries that leave it to `-`; 0 is unlimited.
    pub default_process_limit: u32,
    /// Where inet services without a host part listen: `all`, `loopback-only`, or a list.
    pub inet_interfaces: String,
    /// master_service_disable: patterns `type` or `name/type`, with `!` in front for an exception.
    pub master_service_disable: Vec<String>,
    pub source: Source,
}

/// How [`Settings`] are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This postconf(1) said so.
    Postconf(PathBuf),
    /// Read from main.cf without it: what is not there has the default of Postfix.
    Literal,
}

/// One parameter that stress mode changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub parameter: String,
    pub calm: String,
    pub stressed: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(transparent)]
    Postconf(#[from] PostconfError),
    #[error("cannot read {path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "{path}: \"{name} = {value}\" cannot be understood without postconf; install Postfix's postconf, or write a plain value"
    )]
    NotLiteral {
        path: PathBuf,
        name: &'static str,
        value: String,
    },
}

impl Settings {
    /// Of the Postfix of this master. Blocks, while postconf runs, for 10 s at most.
    pub fn of(master: &Master) -> Result<Self, SettingsError> {
        let config_dir = &master.config_dir;
        let mut values = literal_values(&read(&master.home())?);
        let Some(postconf) = Postconf::of(master) else {
            return Self::from_values(&values, Source::Literal, config_dir);
        };
        if let Some(interfaces) = values.get_mut("inet_interfaces").filter(|i| i.contains('$')) {
            *interfaces = postconf.expand(config_dir, interfaces)?;
        }
        values.extend(postconf.parameters(config_dir, &[], &NAMES)?);
        Self::from_values(
            &values,
            Source::Postconf(postconf.program().to_owned()),
            config_dir,
        )
    }

    /// [`Settings::of`] a Postfix that runs, whatever has become of its files since its start: where postconf dies of
    /// them, what stands literally in main.cf has to do.
    pub fn of_running(master: &Master) -> Result<Self, SettingsError> {
        Self::of(master).or_else(|error| {
            let SettingsError::Postconf(PostconfError::Failed { .. }) = &error else {
                return Err(error);
            };
            let bytes = read(&master.home()).unwrap_or_default();
            Self::from_values(&literal_values(&bytes), Source::Literal, &master.config_dir).map_err(|_| error)
        })
    }

    fn from_values(
        values: &BTreeMap<String, String>,
        source: Source,
        config_dir: &Path,
    ) -> Result<Self, SettingsError> {
        let value = |name: &'static str, default: &'static str| {
            let value = values.get(name).map_or(default, String::as_str);
            let literal = source != Source::Literal || !value.contains('$');
            literal
                .then_some(value)
                .ok_or_else(|| not_literal(config_dir, name, value))
        };
        let limit = value("default_process_limit", "100")?;
        Ok(Self {
            version: values
                .get("mail_version")
                .cloned()
                .filter(|_| source != Source::Literal),
            default_process_limit: limit
                .parse()
                .map_err(|_| not_literal(config_dir, "default_process_limit", limit))?,
            inet_interfaces: value("inet_interfaces", "all")?.to_owned(),
            master_service_disable: list(value("master_service_disable", "")?)
                .map(str::to_owned)
                .collect(),
            source,
        })
    }

    /// Whether master_service_disable turns an entry off (Postfix src/global/match_service.c): the first pattern that
    /// matches decides; `name.type` is the old form of `name/type`.
    pub fn disables(&self, name: &str, kind: &str) -> bool {
        let service = format!("{name}/{kind}");
        let matching = self.master_service_disable.iter().find_map(|item| {
            let pattern = item.trim_start_matches('!');
            let pattern = match pattern.rsplit_once('.') {
                Some((name, kind)) if !pattern.contains('/') => format!("{name}/{kind}"),
                _ => pattern.to_owned(),
            };
            let subject = if pattern.contains('/') { &service } else { kind };
            let exceptions = item.len() - item.trim_start_matches('!').len();
            subject
                .eq_ignore_ascii_case(&pattern)
                .then_some(exceptions % 2 == 0)
        });
        matching.unwrap_or(false)
    }
}

/// The bytes of main.cf.
pub fn read(home: &Home) -> Result<Vec<u8>, SettingsError> {
    let path = home.config_dir.join("main.cf");
    home.root
        .read(&path, SIZE_LIMIT)
        .map_err(|source| SettingsError::Unreadable { path, source })
}

/// Whether reading these bytes would stop a master at once (Postfix src/util/readlline.c, split_nameval()). A value that
/// does not fit its parameter would as well, and is not seen here.
pub fn validate(bytes: &[u8]) -> Result<(), String> {
    let logical = lines::logical(bytes).into_iter().filter(|l| !l.ignored);
    for line in logical {
        let name = line
            .text
            .split(|&b| b == b'=')
            .next()
            .map(trim)
            .unwrap_or_default();
        let at = line.first().number;
        if !line.text.contains(&b'=') {
            return Err(format!(
                "line {at}: there is no \"=\" behind the name of a parameter"
            ));
        }
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(format!(
                "line {at}: there is no name of a parameter before the \"=\""
            ));
        }
    }
    Ok(())
}

fn not_literal(config_dir: &Path, name: &'static str, value: &str) -> SettingsError {
    SettingsError::NotLiteral {
        path: config_dir.join("main.cf"),
        name,
        value: value.to_owned(),
    }
}

/// The items of a list, which commas or white space separate.
pub(super) fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split([',', ' ', '\t', '\r', '\n'])
        .filter(|item| !item.is_empty())
}

/// `name = value` of each logical line; the last of a name counts.
pub(super) fn literal_values(bytes: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(trim(bytes)).into_owned();
    let logical = lines::logical(bytes).into_iter().filter(|l| !l.ignored);
    logical
        .filter_map(|l| {
            let equals = l.text.iter().position(|&b| b == b'=')?;
            Some((text(&l.text[..equals]), text(&l.text[equals + 1..])))
        })
        .collect()
}

/// The values that parameters have for a daemon with these `-o name=value` arguments, in stress mode or out of it.
pub fn effective(
    postconf: &Postconf,
    config_dir: &Path,
    stress: bool,
    parameters: &[&str],
    overrides: &[String],
) -> Result<BTreeMap<String, String>, PostconfError> {
    let stress = if stress { "stress=yes" } else { "stress=" };
    let others = overrides
        .iter()
        .filter(|o| o.split('=').next().map(str::trim) != Some("stress"));
    let overrides: Vec<String> = others.cloned().chain([stress.to_owned()]).collect();
    postconf.parameters(config_dir, &overrides, parameters)
}

/// What stress mode would change for an entry; nothing when the admin has set all of it to constants.
pub fn stress_changes(
    postconf: &Postconf,
    config_dir: &Path,
    entry: &Entry,
) -> Result<Vec<Change>, PostconfError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let overrides: Vec<String> = entry
        .settings()
        .into_iter()
        .map(|(name, value)| format!("{}={}", text(name), text(value)))
        .collect();
    let calm = effective(postconf, config_dir, false, &STRESS_PARAMETERS, &overrides)?;
    let stressed = effective(postconf, config_dir, true, &STRESS_PARAMETERS, &overrides)?;
    let changed = calm.into_iter().filter_map(|(parameter, calm)| {
        let stressed = stressed.get(&parameter)?.clone();
        (stressed != calm).then_some(Change {
            parameter,
            calm,
            stressed,
        })
    });
    Ok(changed.collect())
}

#[cfg(test)]
mod tests {
    use super::super::master_cf::MasterCf;
    use super::*;

    fn config(main_cf: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(dir.path().join("main.cf")).unwrap();
        io::Write::write_all(&mut file, main_cf.as_bytes()).unwrap();
        // postconf waits until main.cf is 2 s old.
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        dir
    }

    /// Fails where there is none: without one the tests that ask it would only see what they see anyway.
    fn postconf() -> Postconf {
        Postconf::find(Path::new("/usr/lib/postfix/sbin"))
            .expect("postconf is there: `cargo xtask setup` installs Postfix")
    }

    fn master(config_dir: &Path) -> Master {
        Master {
            pid: 1,
            start_time: 1,
            root: super::super::Root::Own,
            config_dir: config_dir.to_owned(),
            queue_dir: "/nowhere".into(),
            daemon_dir: "/usr/lib/postfix/sbin".into(),
            netns: 1,
        }
    }

    /// As on a machine without postconf.
    fn literal(dir: &tempfile::TempDir) -> Result<Settings, SettingsError> {
        let bytes = std::fs::read(dir.path().join("main.cf")).unwrap();
        Settings::from_values(&literal_values(&bytes), Source::Literal, dir.path())
    }

    const MAIN_CF: &str = "# x\ndefault_process_limit = 7\ninet_interfaces = 192.0.2.1,\n # inside\n  localhost\n\
        master_service_disable = inet, !smtp/inet\ndefault_process_limit=50\n";

    #[test]
    fn postconf_and_the_literal_reader_agree() {
        let dir = config(MAIN_CF);
        let literal = literal(&dir).unwrap();
        assert_eq!(literal.default_process_limit, 50);
        assert_eq!(
            list(&literal.inet_interfaces).collect::<Vec<_>>(),
            ["192.0.2.1", "localhost"]
        );
        assert_eq!(literal.source, Source::Literal);
        postconf();
        let asked = Settings::of(&master(dir.path())).unwrap();
        assert!(
            asked.version.as_deref().is_some_and(|v| v.contains('.')),
            "{asked:?}"
        );
        assert_eq!(asked.master_service_disable, literal.master_service_disable);
        assert_eq!(asked.default_process_limit, 50);
        assert_eq!(
            list(&asked.inet_interfaces).collect::<Vec<_>>(),
            list(&literal.inet_interfaces).collect::<Vec<_>>()
        );
    }

    #[test]
    fn interfaces_are_expanded_and_need_not_be_of_this_machine() {
        postconf();
        let dir = config("myhostname = mx.example\ninet_interfaces = $myhostname, 192.0.2.1\n");
        let asked = Settings::of(&master(dir.path())).unwrap();
        assert_eq!(asked.inet_interfaces, "mx.example, 192.0.2.1");
    }

    #[test]
    fn defaults_and_what_cannot_be_known() {
        let settings = literal(&config("")).unwrap();
        assert_eq!(
            (settings.default_process_limit, settings.inet_interfaces.as_str()),
            (100, "all")
        );
        let dir = config("inet_interfaces = $myhostname\n");
        assert!(matches!(literal(&dir), Err(SettingsError::NotLiteral { .. })));
        let dir = config("default_process_limit = lots\n");
        assert!(matches!(literal(&dir), Err(SettingsError::NotLiteral { .. })));
        let nowhere = Settings::of(&master(Path::new("/nowhere")));
        assert!(
            matches!(nowhere, Err(SettingsError::Unreadable { .. })),
            "{nowhere:?}"
        );
    }

    #[test]
    fn a_main_cf_that_postfix_rejects_is_an_error() {
        postconf();
        let dir = config("no equals sign\n");
        let refused = Settings::of(&master(dir.path()));
        assert!(
            matches!(
                refused,
                Err(SettingsError::Postconf(PostconfError::Failed { .. }))
            ),
            "{refused:?}"
        );
        let running = Settings::of_running(&master(dir.path())).unwrap();
        assert_eq!(
            (running.source, running.default_process_limit),
            (Source::Literal, 100)
        );
    }

    #[test]
    fn the_first_pattern_that_matches_disables() {
        let settings = |list: &str| Settings {
            version: None,
            default_process_limit: 100,
            inet_interfaces: "all".into(),
            master_service_disable: super::list(list).map(str::to_owned).collect(),
            source: Source::Literal,
        };
        assert!(settings("smtp/inet").disables("smtp", "inet"));
        assert!(settings("smtp.inet").disables("smtp", "inet"));
        assert!(settings("INET").disables("smtp", "inet"));
        assert!(!settings("!smtp/inet inet").disables("smtp", "inet"));
        assert!(settings("inet !smtp/inet").disables("smtp", "inet"));
        assert!(!settings("smtp/unix, pass").disables("smtp", "inet"));
        assert!(!settings("").disables("smtp", "inet"));
    }

    #[test]
    fn stress_changes_what_the_admin_left_to_it() {
        let postconf = postconf();
        let changes = |main_cf: &str, args: &str| {
            let text = format!("smtp inet n - y - - smtpd {args}\n");
            let entry = MasterCf::parse(text.as_bytes()).entries()[0].clone();
            stress_changes(&postconf, config(main_cf).path(), &entry).unwrap()
        };
        let by_default = changes("", "");
        let timeout = by_default
            .iter()
            .find(|c| c.parameter == "smtpd_timeout")
            .unwrap();
        assert_eq!(
            (timeout.calm.as_str(), timeout.stressed.as_str()),
            ("300s", "10s")
        );
        let kept = changes("", "-o smtpd_timeout=60 -o stress=yes");
        assert!(kept.iter().all(|c| c.parameter != "smtpd_timeout"));
        assert_eq!(kept.len(), by_default.len() - 1);
        let constants = "smtpd_timeout=60\nsmtpd_starttls_timeout=60\nsmtpd_hard_error_limit=9\n\
            smtpd_junk_command_limit=9\nsmtpd_per_record_deadline=no\nsmtpd_per_request_deadline=no\n\
            address_verify_poll_count=3\n";
        assert_eq!(changes(constants, ""), []);
    }
}
