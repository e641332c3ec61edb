//! A Postfix as judge of a master.cf: what its postconf(1) reads in it, and whether its master(8) lives through reading it.
//!
//! Every question is asked in directories of its own, inside the root of the Postfix that is asked (the machine's own, or
//! one of [`crate::debian`]); a master runs in an empty network namespace, can start no daemon, and ends after a second.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::netns::{self, Namespace};
use crate::{debian, postfix};

/// One Postfix.
#[derive(Debug)]
pub struct Judge {
    root: PathBuf,
    version: String,
}

/// What becomes of a master that reads a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Lives,
    /// With its last words.
    Dies(String),
}

impl Judge {
    /// The machine's own Postfix.
    ///
    /// # Errors
    /// Not root, or no Postfix.
    pub fn of_this_machine() -> Result<Self> {
        Self::in_root(PathBuf::from("/"))
    }

    /// Those of Debian's suites, oldest first, each of the version that the suite is known for.
    ///
    /// # Errors
    /// As [`debian::postfix`].
    pub fn of_all_suites() -> Result<Vec<Self>> {
        debian::SUITES
            .iter()
            .map(|(suite, version)| {
                let judge = Self::in_root(debian::postfix(suite)?)?;
                ensure!(
                    judge.version.starts_with(version),
                    "{suite} has Postfix {}, not {version}x",
                    judge.version
                );
                Ok(judge)
            })
            .collect()
    }

    fn in_root(root: PathBuf) -> Result<Self> {
        netns::require_root()?;
        let mut judge = Self {
            root,
            version: String::new(),
        };
        let case = judge.case(b"", "")?;
        let output = judge.output(&case, "/usr/sbin/postconf", ["-dh", "mail_version"])?;
        judge.version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(!judge.version.is_empty(), "postconf tells no version: {output:?}");
        Ok(judge)
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// The master.cf that Debian ships with it.
    ///
    /// # Errors
    /// It is not where Debian has it.
    pub fn shipped(&self) -> Result<Vec<u8>> {
        let path = self.root.join("usr/share/postfix/master.cf.dist");
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// What `postconf -c DIRECTORY ARGUMENTS` prints of these bytes, line by line; `Err` inside: it refuses them.
    ///
    /// # Errors
    /// It could not be asked.
    pub fn postconf(&self, master_cf: &[u8], arguments: &[&str]) -> Result<Result<Vec<String>, String>> {
        let case = self.case(master_cf, "")?;
        let config = case.inside.join("config");
        let options = ["-c".as_ref(), config.as_os_str()].into_iter();
        let output = self.output(
            &case,
            "/usr/sbin/postconf",
            options.chain(arguments.iter().map(OsStr::new)),
        )?;
        Ok(if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text.lines().map(str::to_owned).collect())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        })
    }

    /// Starts a master on these bytes, and waits a second for its end.
    ///
    /// # Errors
    /// It could not be started, or ended in another way than it does on a good or a bad file.
    pub fn fate(&self, master_cf: &[u8]) -> Result<Fate> {
        self.fate_with(master_cf, "")
    }

    /// [`Self::fate`], with more lines of main.cf.
    ///
    /// # Errors
    /// As [`Self::fate`].
    pub fn fate_with(&self, master_cf: &[u8], main_cf: &str) -> Result<Fate> {
        let case = self.case(master_cf, main_cf)?;
        let namespace = Namespace::new()?;
        let master = "/usr/lib/postfix/sbin/master";
        let config = case.inside.join("config");
        // -d: stay in the foreground; -e: end after so many seconds, with exit code 0.
        let arguments = ["-d", "-e", "1", "-c"].map(OsStr::new);
        let arguments = arguments.into_iter().chain([config.as_os_str()]);
        let output = namespace.run(|| self.output(&case, master, arguments))?;
        let words = case.log();
        match output.status.code() {
            Some(0) => Ok(Fate::Lives),
            Some(1) => {
                let fatal = words.iter().find_map(|line| line.split_once("fatal: "));
                let (_, words) = fatal.with_context(|| format!("master said not why it ended: {words:?}"))?;
                Ok(Fate::Dies(words.to_owned()))
            }
            _ => bail!("master of {}: {output:?}: {words:?}", self.version),
        }
    }

    /// Lays out what a Postfix needs to look at these bytes.
    fn case(&self, master_cf: &[u8], more: &str) -> Result<Case> {
        let outside = tempfile::Builder::new()
            .prefix("sentinel-judge-")
            .tempdir_in(self.root.join("tmp"))?;
        let inside = Path::new("/tmp").join(outside.path().file_name().context("it has a name")?);
        postfix::lay_out(outside.path())?;
        let config = outside.path().join("config");
        for name in ["no-daemons", "dev"] {
            fs::create_dir(outside.path().join(name))?;
        }
        let main_cf = format!(
            "compatibility_level = 2\nqueue_directory = {inside}/queue\ndata_directory = {inside}/data\n\
             daemon_directory = {inside}/no-daemons\nmyhostname = mx.lab.invalid\ninet_interfaces = all\n{more}",
            inside = inside.display(),
        );
        fs::write(config.join("main.cf"), main_cf)?;
        // Every program of Postfix waits until main.cf is 2 s old (src/util/dict.c dict_load_file_xt()).
        File::options()
            .write(true)
            .open(config.join("main.cf"))?
            .set_modified(SystemTime::UNIX_EPOCH)?;
        fs::write(config.join("master.cf"), master_cf)?;
        // By the directory's descriptor, since the path of a socket has 108 bytes at most.
        let dev = File::open(outside.path().join("dev"))?;
        let log = UnixDatagram::bind(format!("/proc/self/fd/{}/log", dev.as_raw_fd()))?;
        log.set_nonblocking(true)?;
        Ok(Case { inside, log, outside })
    }

    fn output<A: AsRef<OsStr>>(
        &self,
        case: &Case,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "judge"])
            .args([case.outside.path(), &self.root, Path::new(program)])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .with_context(|| format!("running {program} in {}", self.root.display()))
    }
}

/// $1: the case. $2: the root. What is left are a program in it and its arguments. Everything of Postfix complains to
/// syslog (master does until its postlogd(8) runs), so /dev has nothing but a log of ours, out of the machine's sight.
const ENTER: &str = r#"
: >"$1/dev/null" && mount --bind /dev/null "$1/dev/null" && mount --rbind "$1/dev" "$2/dev" || exit 125
root=$2
shift 2
exec chroot "$root" "$@"
"#;

/// A directory as the asked Postfix names it, for as long as it is asked.
struct Case {
    inside: PathBuf,
    log: UnixDatagram,
    outside: TempDir,
}

impl Case {
    /// What was complained so far.
    fn log(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let next = || {
            let length = self.log.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }
}
