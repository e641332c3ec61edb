//! The packages, where packages live: installed, upgraded, removed and purged in a fresh Debian root under their own
//! maintainer scripts, with a master.cf that has our lines at removal.
//!
//! The root is made by mmdebstrap once and kept below the target directory. What runs in it has process and mount namespaces
//! of its own: it sees no Postfix of this machine, and no systemd. The program in the packages is the debug build that the
//! other tests run, which has the feature "kubernetes"; those of `cargo xtask dist` must not have it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test itself")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{LazyLock, Mutex};

use sentinel_packages::payload::{self, File, Kind};
use sentinel_packages::{deb, rpm};
use tempfile::TempDir;

const ORIGINAL: &str = "# As the administrator has it.\nsmtp      inet  n       -       y       -       -       smtpd\n\
                        pickup    unix  n       -       y       60      1       pickup\n";
const OURS: &str = "# smtp-sentinel: stress mode for smtp/inet since 2026-11-22T01:20:33Z; the next line is ours; undo with: \
                    smtp-sentinel restore\n    -o stress=yes\n";

/// Both packages, built once.
struct Built {
    files: Vec<File>,
    deb: PathBuf,
    rpm: PathBuf,
}

static BUILT: LazyLock<Built> = LazyLock::new(|| {
    let to = target().join("packages");
    fs::create_dir_all(&to).unwrap();
    let files = payload::collect(&program()).unwrap();
    Built {
        deb: deb::build(&files, &to).unwrap(),
        rpm: rpm::build(&files, &to).unwrap(),
        files,
    }
});

fn program() -> PathBuf {
    let binary = target().join("debug/smtp-sentinel");
    assert!(
        binary.is_file(),
        "{} is not there: run `cargo build --workspace --features smtp-sentinel/kubernetes` (`cargo xtask test` does)",
        binary.display()
    );
    binary
}

fn target() -> PathBuf {
    let own = env::current_exe().unwrap();
    let mut above = own.ancestors();
    let target = above.find(|directory| directory.join("CACHEDIR.TAG").exists());
    target.unwrap().to_owned()
}

/// Runs to a good end; standard output.
fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}", words(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn output(command: &mut Command) -> Output {
    command
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask setup` installs it"))
}

fn words(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A fresh root of this machine's own release of Debian, with nothing but what is essential.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        static MAKING: Mutex<()> = Mutex::new(());
        let tar = target().join("root.tar");
        {
            let _one_at_a_time = MAKING.lock();
            if !tar.exists() {
                let release = fs::read_to_string("/etc/os-release").unwrap();
                let codename = release
                    .lines()
                    .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
                let draft = target().join("root.draft.tar");
                run(Command::new("mmdebstrap")
                    .args(["--variant=essential", "--quiet", codename.unwrap()])
                    .arg(&draft));
                fs::rename(draft, &tar).unwrap();
            }
        }
        let root = tempfile::Builder::new()
            .prefix("root-")
            .tempdir_in(target())
            .unwrap();
        run(Command::new("tar")
            .arg("-C")
            .arg(root.path())
            .arg("-xf")
            .arg(&tar));
        fs::create_dir_all(root.path().join("etc/postfix")).unwrap();
        let root = Self(root);
        root.write("etc/postfix/main.cf", "");
        root.write("etc/postfix/master.cf", ORIGINAL);
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// In the root, with processes and mounts of its own.
    fn inside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"])
            .arg(format!("--root={}", self.0.path().display()))
            .args(words)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn run(&self, words: &[&str]) -> String {
        run(&mut self.inside(words))
    }

    fn install(&self, package: &Path) {
        fs::copy(package, self.path("tmp/package.deb")).unwrap();
        self.run(&["dpkg", "--install", "/tmp/package.deb"]);
        fs::remove_file(self.path("tmp/package.deb")).unwrap();
    }

    /// As a daemon leaves it that was killed in an episode.
    fn stress(&self) {
        let (first, rest) = ORIGINAL.split_once("pickup").unwrap();
        self.write("etc/postfix/master.cf", &format!("{first}{OURS}pickup{rest}"));
        // Without the journal that such a daemon leaves too, the configuration has to name the directory.
        let config = self.read("etc/smtp-sentinel/config.toml");
        let named = config.replace("config_dirs = []", "config_dirs = [\"/etc/postfix\"]");
        assert_ne!(config, named);
        self.write("etc/smtp-sentinel/config.toml", &named);
    }

    /// Every file with its mode, but what dpkg, its log and the linker's cache keep for themselves.
    fn files(&self) -> BTreeMap<PathBuf, u32> {
        const NOT_OURS: [&str; 5] = ["proc", "tmp", "var/lib/dpkg", "var/log", "var/cache"];
        let mut found = BTreeMap::new();
        let mut open = vec![self.0.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).unwrap().flatten() {
                let path = entry.path();
                let name = path.strip_prefix(self.0.path()).unwrap().to_owned();
                if NOT_OURS.iter().any(|other| name.starts_with(other)) {
                    continue;
                }
                let meta = entry.metadata().unwrap();
                if meta.is_dir() {
                    open.push(path);
                }
                found.insert(name, meta.mode());
            }
        }
        found
    }
}

#[test]
fn a_program_with_kubernetes_is_not_packed_for_people() {
    let with = payload::ensure_without_kubernetes(&program()).unwrap_err();
    assert!(with.to_string().contains("feature \"kubernetes\""), "{with}");
    // It is known by a sentence that it has not; this is where that one is written.
    let sentence = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sentinel/src/kubernetes/mod.rs");
    payload::ensure_without_kubernetes(&sentence).unwrap();
}

#[test]
fn a_debian_package_comes_stays_and_goes() {
    let root = Root::new();
    let before = root.files();
    root.install(&BUILT.deb);
    for file in &BUILT.files {
        let meta = root.path(file.to.trim_start_matches('/')).metadata().unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (file.mode(), 0, 0),
            "{}",
            file.to
        );
    }
    assert_eq!(root.run(&["dpkg", "--verify", "smtp-sentinel"]), "");
    let version = root.run(&["smtp-sentinel", "--version"]);
    assert!(version.contains(sentinel_packages::VERSION), "{version}");
    root.run(&[
        "bash",
        "-n",
        "/usr/share/bash-completion/completions/smtp-sentinel",
    ]);
    assert!(
        root.read("etc/smtp-sentinel/config.toml")
            .contains("\nmode = \"observe\"\n")
    );
    // Neither enabled nor started: that is a choice.
    let link = "etc/systemd/system/multi-user.target.wants/smtp-sentinel.service";
    assert!(root.path(link).symlink_metadata().is_err());
    assert!(!root.path("var/lib/smtp-sentinel").exists());

    // An administrator's choices outlive an upgrade.
    // What `systemctl enable` does, which is not in this root.
    fs::create_dir_all(root.path(link).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/usr/lib/systemd/system/smtp-sentinel.service", root.path(link)).unwrap();
    root.stress();
    let config = root.read("etc/smtp-sentinel/config.toml");
    let stressed = root.read("etc/postfix/master.cf");
    root.install(&newer());
    assert_eq!(
        root.run(&["dpkg-query", "-W", "-f", "${Version}", "smtp-sentinel"]),
        "9.9-1"
    );
    assert_eq!(root.read("etc/smtp-sentinel/config.toml"), config);
    assert!(root.path(link).symlink_metadata().is_ok());
    assert_eq!(
        root.read("etc/postfix/master.cf"),
        stressed,
        "an upgrade leaves an episode to the daemon"
    );

    root.run(&["dpkg", "--remove", "smtp-sentinel"]);
    assert_eq!(
        root.read("etc/postfix/master.cf"),
        ORIGINAL,
        "removal gives every byte back"
    );
    assert!(!root.path("usr/bin/smtp-sentinel").exists());
    assert_eq!(
        root.read("etc/smtp-sentinel/config.toml"),
        config,
        "a conffile stays until the purge"
    );
    assert!(
        root.path("var/lib/smtp-sentinel").exists(),
        "and so does the journal"
    );

    fs::create_dir_all(root.path("run/smtp-sentinel")).unwrap();
    root.run(&["dpkg", "--purge", "smtp-sentinel"]);
    let mut after = root.files();
    // Its own book of what was enabled, which deb-systemd-helper makes for all packages.
    after.retain(|name, _| {
        before.contains_key(name) || !name.starts_with("var/lib/systemd/deb-systemd-helper-enabled")
    });
    let left: Vec<_> = after
        .iter()
        .filter(|(name, _)| !before.contains_key(*name))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert_eq!(after, before);
}

/// The same package under a later version, not compressed again.
fn newer() -> PathBuf {
    let scratch = tempfile::tempdir_in(target()).unwrap();
    let tree = scratch.path().join("tree");
    run(Command::new("dpkg-deb")
        .arg("--raw-extract")
        .arg(&BUILT.deb)
        .arg(&tree));
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let version = format!(
        "Version: {}-{}",
        sentinel_packages::VERSION,
        sentinel_packages::RELEASE
    );
    assert!(text.contains(&version));
    fs::write(&control, text.replace(&version, "Version: 9.9-1")).unwrap();
    let package = target().join("packages/newer.deb");
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Znone", "--build"])
        .args([&tree, &package]));
    package
}

#[test]
fn removal_stops_where_master_cf_cannot_be_given_back() {
    let root = Root::new();
    root.install(&BUILT.deb);
    root.stress();
    let stressed = root.read("etc/postfix/master.cf");
    // A daemon that no systemd knows of holds the state directory.
    root.run(&["smtp-sentinel", "restore"]);
    root.write("etc/postfix/master.cf", &stressed);
    let held = [
        "flock",
        "/var/lib/smtp-sentinel/lock",
        "dpkg",
        "--remove",
        "smtp-sentinel",
    ];
    let refused = output(&mut root.inside(&held));
    assert!(!refused.status.success(), "{}", words(&refused));
    let said = words(&refused);
    assert!(
        said.contains("already running") && said.contains("smtp-sentinel is not removed"),
        "{said}"
    );
    assert!(root.path("usr/bin/smtp-sentinel").exists());
    assert_eq!(root.read("etc/postfix/master.cf"), stressed);

    root.run(&["dpkg", "--remove", "smtp-sentinel"]);
    assert_eq!(root.read("etc/postfix/master.cf"), ORIGINAL);
}

#[test]
fn lintian_has_nothing_to_say() {
    let said = run(Command::new("lintian")
        .args([
            "--allow-root",
            "--fail-on",
            "error,warning",
            "--display-level",
            ">=warning",
        ])
        .arg(&BUILT.deb));
    assert_eq!(said, "");
}

#[test]
fn man_pages_are_without_a_warning() {
    for file in BUILT.files.iter().filter(|file| file.to.contains("/man/")) {
        let scratch = tempfile::tempdir().unwrap();
        let page = scratch.path().join(Path::new(&file.to).file_name().unwrap());
        fs::write(&page, &file.bytes).unwrap();
        let output = output(
            Command::new("man")
                .args(["--warnings", "--encoding=UTF-8", "--local-file"])
                .arg(&page)
                .env("MANWIDTH", "100")
                .env("MANROFFSEQ", ""),
        );
        assert!(output.status.success(), "{}: {}", file.to, words(&output));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{}", file.to);
    }
}

#[test]
fn an_rpm_has_the_same_files_and_verifies() {
    let listed = run(Command::new("rpm")
        .args(["-qp", "--qf", "[%{FILENAMES} %{FILEMODES:octal}\\n]"])
        .arg(&BUILT.rpm));
    let listed: BTreeMap<_, _> = listed.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    for file in &BUILT.files {
        let to = file
            .to
            .replace("/zsh/vendor-completions/", "/zsh/site-functions/");
        assert_eq!(
            listed.get(to.as_str()),
            Some(&format!("{:o}", 0o100_000 | file.mode()).as_str()),
            "{to}"
        );
    }
    let configs = run(Command::new("rpm").args(["-qpc"]).arg(&BUILT.rpm));
    let wanted = BUILT.files.iter().filter(|file| file.kind == Kind::Config);
    assert_eq!(
        configs.lines().collect::<Vec<_>>(),
        wanted.map(|file| file.to.as_str()).collect::<Vec<_>>()
    );
    let needs = run(Command::new("rpm").args(["-qp", "--requires"]).arg(&BUILT.rpm));
    assert!(
        needs.contains("libc.so.6(GLIBC_2.34)(64bit)") || cfg!(not(target_arch = "x86_64")),
        "{needs}"
    );

    let root = tempfile::tempdir_in(target()).unwrap();
    let rpm = |words: &[&str]| {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(root.path()).args(words);
        rpm
    };
    run(rpm(&["--install", "--nodeps", "--noscripts"]).arg(&BUILT.rpm));
    run(&mut rpm(&[
        "--verify",
        "--nodeps",
        "--noscripts",
        "smtp-sentinel",
    ]));
    fs::write(root.path().join("usr/share/doc/smtp-sentinel/README.md"), "x").unwrap();
    let verified = output(&mut rpm(&[
        "--verify",
        "--nodeps",
        "--noscripts",
        "smtp-sentinel",
    ]));
    assert!(words(&verified).contains("README.md"), "{}", words(&verified));
}

#[test]
fn the_scripts_of_the_rpm_give_master_cf_back() {
    let root = Root::new();
    // rpm itself enters the root for the scripts.
    let rpm = |words: &[&str]| {
        let mut rpm = Command::new("unshare");
        rpm.args(["--pid", "--fork", "--kill-child", "--mount", "sh", "-ec"])
            .arg("root=$1; mount -t proc proc \"$root/proc\"; shift; exec rpm --root \"$root\" --nodeps \"$@\"")
            .arg("rpm")
            .arg(root.path(""))
            .args(words);
        rpm
    };
    run(rpm(&["--install"]).arg(&BUILT.rpm));
    root.stress();
    let stressed = root.read("etc/postfix/master.cf");
    run(rpm(&["--upgrade", "--force"]).arg(&BUILT.rpm));
    assert_eq!(
        root.read("etc/postfix/master.cf"),
        stressed,
        "an upgrade leaves an episode to the daemon"
    );

    let config = root.read("etc/smtp-sentinel/config.toml");
    root.write("etc/smtp-sentinel/config.toml", "[nonsense]\n");
    let refused = output(&mut rpm(&["--erase", "smtp-sentinel"]));
    assert!(
        words(&refused).contains("smtp-sentinel is not removed"),
        "{}",
        words(&refused)
    );
    assert!(root.path("usr/bin/smtp-sentinel").exists());
    assert_eq!(root.read("etc/postfix/master.cf"), stressed);

    root.write("etc/smtp-sentinel/config.toml", &config);
    run(&mut rpm(&["--erase", "smtp-sentinel"]));
    assert_eq!(root.read("etc/postfix/master.cf"), ORIGINAL);
    assert!(!root.path("usr/bin/smtp-sentinel").exists());
}
