//! Runs one of Postfix's own commands: bounded in time, with an empty environment, its complaints kept in a file
//! (a pipe that nobody reads would block it, and one that its children keep open would block us).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(5);

/// How a command ended.
#[derive(Debug)]
pub(super) enum Ended {
    Well,
    /// With the last line that it wrote to standard error.
    Badly(String),
    /// It was still running when its time was up, and was killed.
    Never,
}

/// Runs `program` for at most `limit`. `scratch` is a private directory for what it prints.
pub(super) fn run<A: AsRef<OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = A>,
    limit: Duration,
    scratch: &Path,
) -> io::Result<Ended> {
    let stderr = scratch.join("stderr");
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        // postfix(1) is a shell script in part, and MAIL_CONFIG and its like must not lead it elsewhere.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&stderr)?)
        .current_dir("/")
        .spawn()?;
    let mut waited = Duration::ZERO;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if waited >= limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(POLL);
        waited += POLL;
    };
    match status {
        None => Ok(Ended::Never),
        Some(status) if status.success() => Ok(Ended::Well),
        Some(_) => {
            let mut bytes = Vec::new();
            File::open(&stderr)?.take(64 << 10).read_to_end(&mut bytes)?;
            let text = String::from_utf8_lossy(&bytes);
            Ok(Ended::Badly(
                text.lines()
                    .rfind(|line| !line.trim().is_empty())
                    .unwrap_or("no message")
                    .to_owned(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let sh = |script: &str, ms| {
            run(
                Path::new("/bin/sh"),
                ["-c", script],
                Duration::from_millis(ms),
                dir.path(),
            )
            .unwrap()
        };
        assert!(matches!(sh("test -z $HOME", 5000), Ended::Well));
        assert!(matches!(sh("exec sleep 60", 50), Ended::Never));
        let Ended::Badly(complaint) = sh("echo one >&2; echo two >&2; echo >&2; exit 3", 5000) else {
            panic!()
        };
        assert_eq!(complaint, "two");
    }
}
