//! What the command line and the environment of a master say about it. Pure: whoever started it may have made them up.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where master looks when nobody tells it (DEF_CONFIG_DIR).
const DEFAULT_CONFIG_DIR: &str = "/etc/postfix";

/// The options of a master's command line, with the value of `-c` and `-e` (Postfix src/master/master.c).
fn options(cmdline: &[u8]) -> Vec<(u8, &[u8])> {
    let mut options = Vec::new();
    let mut args = cmdline.split(|&b| b == 0).skip(1);
    while let Some(letters) = args.next().and_then(|arg| arg.strip_prefix(b"-")) {
        for (at, &letter) in letters.iter().enumerate() {
            if matches!(letter, b'c' | b'e') {
                let rest = &letters[at + 1..];
                options.push((
                    letter,
                    if rest.is_empty() {
                        args.next().unwrap_or_default()
                    } else {
                        rest
                    },
                ));
                break;
            }
            options.push((letter, &b""[..]));
        }
    }
    options
}

/// As pid 1 of a container (`-i`) and for debugging (`-d`, `-D`) master makes no session of its own.
pub(super) fn keeps_session(cmdline: &[u8]) -> bool {
    options(cmdline)
        .iter()
        .any(|(letter, _)| matches!(letter, b'i' | b'd' | b'D'))
}

/// The configuration directory: `-c`, else what postfix(1) exports, else the built-in one.
pub(super) fn config_dir(cmdline: &[u8], environ: &[u8]) -> Result<PathBuf, String> {
    let variable = |name: &[u8]| {
        let mut variables = environ.split(|&b| b == 0);
        variables
            .find_map(|v| v.strip_prefix(name)?.strip_prefix(b"="))
            .filter(|value| !value.is_empty())
    };
    let given = options(cmdline)
        .into_iter()
        .rfind(|(letter, _)| *letter == b'c')
        .map(|(_, dir)| dir);
    let dir = given
        .or_else(|| variable(b"MAIL_CONFIG"))
        .or_else(|| variable(b"config_directory"));
    let dir = dir.map_or(Path::new(DEFAULT_CONFIG_DIR), |d| Path::new(OsStr::from_bytes(d)));
    if dir.is_absolute() {
        Ok(dir.to_owned())
    } else {
        Err(format!(
            "its configuration directory {} is relative to a place that is not known",
            dir.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_dir_comes_from_the_nearest_source() {
        let dir = |cmdline: &str, environ: &str| {
            config_dir(
                cmdline.replace(' ', "\0").as_bytes(),
                environ.replace(' ', "\0").as_bytes(),
            )
        };
        let environ = "A=b MAIL_CONFIG=/etc/postfix-b config_directory=/c";
        assert_eq!(dir("/x/master -w", ""), Ok("/etc/postfix".into()));
        assert_eq!(dir("/x/master -w", environ), Ok("/etc/postfix-b".into()));
        assert_eq!(dir("/x/master -w", "config_directory=/c"), Ok("/c".into()));
        assert_eq!(dir("/x/master -vc /d -w", environ), Ok("/d".into()));
        assert_eq!(dir("/x/master -c/d", environ), Ok("/d".into()));
        assert_eq!(dir("/x/master -e 5 -s", ""), Ok("/etc/postfix".into()));
        assert!(dir("/x/master -c conf", "").is_err());
    }
}
