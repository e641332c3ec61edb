//! Runs one of Postfix's own commands: bounded in time, with an empty environment, what it complains of kept in a
//! file (a pipe that nobody reads would block it).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where Postfix's commands are: the distributions' $command_directory, then that of a build from source.
const DIRECTORIES: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/bin"];

const POLL: Duration = Duration::from_millis(5);

/// How a command ended.
#[derive(Debug)]
pub(super) struct Output {
    /// `None`: it was still running when its time was up, and was killed.
    pub(super) success: Option<bool>,
    /// The last line that says something.
    pub(super) complaint: String,
}

/// The path of a Postfix command, if this machine has it.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
}

/// Runs `program` for at most `limit`. `scratch` is a private directory for what it complains of.
pub(super) fn run<A: AsRef<OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = A>,
    limit: Duration,
    scratch: &Path,
) -> io::Result<Output> {
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
    let complaint = String::from_utf8_lossy(&read_bounded(&stderr)?)
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .to_owned();
    Ok(Output {
        success: status.map(|status| status.success()),
        complaint,
    })
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(4 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_complaint_and_end() {
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
        let good = sh("echo out; echo one >&2; echo two >&2; echo >&2", 5000);
        assert_eq!((good.success, good.complaint.as_str()), (Some(true), "two"));
        assert_eq!(sh("exit 3", 5000).success, Some(false));
        assert_eq!(sh("exec sleep 60", 50).success, None);
        assert_eq!(sh("echo ${HOME-none} >&2", 5000).complaint, "none");
    }
}
