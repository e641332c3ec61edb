//! Hostile trees: every way that a container's file system could lead out of it, or make us wait.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, makedev, mknodat};

use super::*;

/// A container's root, and beside it what must not be reached.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(tree.path("root/etc/postfix")).unwrap();
        fs::create_dir(tree.path("host")).unwrap();
        fs::write(tree.path("host/master.cf"), "the host's own\n").unwrap();
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn root(&self) -> Root {
        let root = File::open(self.path("root")).unwrap().into();
        let container = Container::new(root, "box".into(), "box".into(), None, 1).unwrap();
        Root::Container(Arc::new(container))
    }

    /// Makes `root/etc/postfix/NAME` a node of this kind; `false` where that is not allowed here.
    fn node(&self, name: &str, kind: FileType, device: u64) -> bool {
        let path = self.path("root/etc/postfix").join(name);
        mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), device).is_ok()
    }
}

const CONFIG_DIR: &str = "/etc/postfix";
const MASTER_CF: &str = "/etc/postfix/master.cf";

#[test]
fn paths_begin_at_the_containers_root() {
    let tree = Tree::new();
    fs::write(tree.path("root/etc/postfix/master.cf"), "its own\n").unwrap();
    let root = tree.root();
    assert_eq!(root.read(Path::new(MASTER_CF), 100).unwrap(), b"its own\n");
    root.open_dir(Path::new(CONFIG_DIR)).unwrap();
    root.open_dir(Path::new("/")).unwrap();
    assert_eq!(
        root.read(Path::new("/nowhere"), 100).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

#[test]
fn no_link_and_no_dots_lead_out_of_it() {
    let tree = Tree::new();
    let root = tree.root();
    let inside = tree.path("root/etc/postfix/master.cf");
    let outside = tree.path("host/master.cf");
    let root_link = format!("/proc/{}/root{}", std::process::id(), outside.display());
    for target in [
        outside.clone(),
        PathBuf::from("../../../host/master.cf"),
        PathBuf::from("../../../../../../../../..").join(outside.strip_prefix("/").unwrap()),
        PathBuf::from(root_link),
        PathBuf::from("master.cf"),
    ] {
        symlink(&target, &inside).unwrap();
        let read = root.read(Path::new(MASTER_CF), 100);
        assert!(read.is_err(), "{}: {read:?}", target.display());
        fs::remove_file(&inside).unwrap();
    }
    let dots = Path::new("/etc/postfix/../../../host/master.cf");
    assert!(root.read(dots, 100).is_err());
    assert!(root.open_dir(Path::new("/../host")).is_err());
}

/// To look at, a link is followed as the processes in there would; to change something, it is not.
#[test]
fn a_link_within_is_followed_to_look_and_refused_to_change() {
    let tree = Tree::new();
    fs::create_dir(tree.path("root/data")).unwrap();
    fs::write(tree.path("root/data/master.cf"), "linked\n").unwrap();
    symlink("/data/master.cf", tree.path("root/etc/postfix/master.cf")).unwrap();
    symlink("/data", tree.path("root/etc/link")).unwrap();
    let root = tree.root();
    assert_eq!(root.read(Path::new(MASTER_CF), 100).unwrap(), b"linked\n");
    assert_eq!(root.open_dir(Path::new("/etc/link")).unwrap_err(), Errno::LOOP);
    let dir = root.open_dir(Path::new(CONFIG_DIR)).unwrap();
    assert_eq!(look_at(dir.as_fd(), "master.cf").unwrap_err(), Errno::LOOP);
}

/// A FIFO would make us wait for a writer, a device could do anything when it is opened.
#[test]
fn only_regular_files_are_opened() {
    let tree = Tree::new();
    let root = tree.root();
    assert!(tree.node("fifo", FileType::Fifo, 0));
    let _socket = UnixListener::bind(tree.path("root/etc/postfix/socket")).unwrap();
    fs::create_dir(tree.path("root/etc/postfix/dir")).unwrap();
    let mut names = vec!["fifo", "socket", "dir"];
    // The console, and a memory device that never ends, where this process may make them at all.
    if tree.node("tty", FileType::CharacterDevice, makedev(5, 0))
        && tree.node("zero", FileType::CharacterDevice, makedev(1, 5))
    {
        names.extend(["tty", "zero"]);
    } else {
        eprintln!("mknod of devices is not permitted here: FIFO, socket and directory have to do");
    }
    for name in names {
        let error = root.read(&Path::new(CONFIG_DIR).join(name), 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}: {error}");
    }
}

#[test]
fn what_is_too_large_is_not_read() {
    let tree = Tree::new();
    let root = tree.root();
    let file = File::create(tree.path("root/etc/postfix/master.cf")).unwrap();
    // Sparse: as large as it likes for nothing.
    file.set_len(1 << 40).unwrap();
    let error = root.read(Path::new(MASTER_CF), 1 << 20).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

/// What is read is what was looked at: another file that takes the name in between is not opened.
#[test]
fn what_was_found_is_what_is_opened() {
    let tree = Tree::new();
    let path = tree.path("root/etc/postfix/master.cf");
    fs::write(&path, "first\n").unwrap();
    let dir = tree.root().open_dir(Path::new(CONFIG_DIR)).unwrap();
    let found = look_at(dir.as_fd(), "master.cf").unwrap();
    fs::remove_file(&path).unwrap();
    symlink(tree.path("host/master.cf"), &path).unwrap();
    let mut text = String::new();
    reopen(&found, OFlags::RDONLY)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "first\n");
}

#[test]
fn a_host_name_is_plain_or_none() {
    let name = |text: &str| hostname(text.as_bytes().to_vec());
    assert_eq!(name("web-0.example\n").as_deref(), Some("web-0.example"));
    assert_eq!(name("\u{1b}[31mred\n"), None);
    assert_eq!(name("a b\n"), None);
    assert_eq!(name("\n"), None);
}

/// The root that is held stays the root, whatever the path to it becomes.
#[test]
fn a_root_that_is_replaced_is_not_followed() {
    let tree = Tree::new();
    fs::write(tree.path("root/etc/postfix/master.cf"), "its own\n").unwrap();
    let root = tree.root();
    fs::rename(tree.path("root"), tree.path("moved")).unwrap();
    symlink("host", tree.path("root")).unwrap();
    assert_eq!(root.read(Path::new(MASTER_CF), 100).unwrap(), b"its own\n");
}
