//! A container built by hand, as a runtime builds one: a root of its own that pivot_root(2) enters, namespaces, a cgroup with
//! the container's id in its path. No image is needed: /usr is the machine's own, mounted over.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the instance lies, as its processes see it.
pub(crate) const TREE: &str = "/lab";

/// Run by sh as the first process of the new namespaces. $1: master. $2: the directory that goes with the container, whose
/// `root` becomes its root. $3: a word of [`Mount`].
pub(crate) const SET_UP: &str = r#"
set -e
root=$2/root
mount --bind "$root" "$root"
mount --rbind /usr "$root/usr"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
config=$root/lab/config
case $3 in
bound) mount --bind "$2/mounted/master.cf" "$config/master.cf" ;;
bound-ro)
    mount --bind "$2/mounted/master.cf" "$config/master.cf"
    mount -o remount,bind,ro "$config/master.cf"
    ;;
config-map)
    mount --bind "$2/mounted" "$config"
    mount -o remount,bind,ro "$config"
    ;;
read-only)
    for writable in queue data mail.log; do
        mount --bind "$root/lab/$writable" "$root/lab/$writable"
    done
    mount -o remount,bind,ro "$root"
    ;;
esac
hostname -F "$root/etc/hostname"
cd "$root"
pivot_root . old
exec chroot . /bin/sh -c 'umount -l /old; exec "$1" -i' sh "$1"
"#;

/// What the guard of [`crate::postfix`] does, for a container. $1: master. $2: the directory that goes with it. $3: the script that sets the container up, [`SET_UP`]. $4: its cgroup. $5: how its master.cf is mounted. The pid that is told is that of unshare(1), whose one child
/// is the first process of the container, and takes all others with it.
pub(crate) const GUARD: &str = r#"
sh -c 'echo $$ >"$4/cgroup.procs" && exec unshare --mount --pid --uts --ipc --propagation private --fork --kill-child \
    sh -c "$3" sh "$1" "$2" "$5"' sh "$@" >"$2/setup.log" 2>&1 &
outer=$!
echo "$outer"
read -r _
for process in $(cat "/proc/$outer/task/$outer/children" 2>/dev/null); do
    kill -KILL "$process" 2>/dev/null
done
wait
rm -rf -- "$2"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rmdir -- "$4" 2>/dev/null && break
    sleep 0.1
done
rmdir -- "${4%/*}" 2>/dev/null
"#;

/// How its master.cf is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mount {
    /// A file of the container's own root.
    #[default]
    None,
    /// Mounted over by another file, as `docker run -v FILE` and subPath do it.
    Bound,
    /// The same, read-only.
    BoundReadOnly,
    /// In a directory that is mounted over, read-only, and a link into another one, as a ConfigMap is.
    ConfigMap,
    /// In a root that is mounted read-only.
    ReadOnlyRoot,
}

impl Mount {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bound => "bound",
            Self::BoundReadOnly => "bound-ro",
            Self::ConfigMap => "config-map",
            Self::ReadOnlyRoot => "read-only",
        }
    }
}

/// What tells one container from another.
#[derive(Debug, Clone)]
pub struct Container {
    pub hostname: String,
    pub mount: Mount,
    /// 64 hexadecimal digits.
    pub id: String,
    /// The cgroup above it, for the sentinel to be told of.
    pub parent: String,
}

impl Container {
    /// With an id that no other has, below a cgroup that no other has.
    pub fn new(hostname: &str, mount: Mount) -> Self {
        let id: String = std::iter::repeat_with(|| fastrand::digit(16)).take(64).collect();
        Self {
            hostname: hostname.to_owned(),
            mount,
            parent: format!("sentinel-lab-{}", &id[..12]),
            id,
        }
    }

    /// The name that the sentinel has for it.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// Makes the root below `base`, and returns where the instance lies in it, as we see it.
    pub(crate) fn lay_out(&self, base: &Path) -> Result<PathBuf> {
        let root = base.join("root");
        for directory in ["usr", "dev", "proc", "tmp", "run", "old", "etc", "var/tmp"] {
            fs::create_dir_all(root.join(directory))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            // With merged /usr they are links, of which not every architecture has each.
            if let Ok(target) = fs::read_link(Path::new("/").join(link)) {
                symlink(target, root.join(link))?;
            }
        }
        for file in [
            "passwd",
            "group",
            "services",
            "protocols",
            "hosts",
            "nsswitch.conf",
            "ld.so.cache",
        ] {
            let file = Path::new("etc").join(file);
            let _ = fs::copy(Path::new("/").join(&file), root.join(&file));
        }
        fs::write(root.join("etc/hostname"), format!("{}\n", self.hostname))?;
        let tree = root.join("lab");
        fs::create_dir(&tree)?;
        crate::postfix::lay_out(&tree)?;
        Ok(tree)
    }

    /// Puts the configuration where its mount is made from; what lies in the root itself is then only mounted over.
    pub(crate) fn fill_mount(&self, base: &Path, config: &Path) -> Result<()> {
        let mounted = base.join("mounted");
        match self.mount {
            Mount::None | Mount::ReadOnlyRoot => {}
            Mount::Bound | Mount::BoundReadOnly => {
                fs::create_dir(&mounted)?;
                fs::copy(config.join("master.cf"), mounted.join("master.cf"))?;
            }
            Mount::ConfigMap => {
                let version = mounted.join("..2026_01_01");
                fs::create_dir_all(&version)?;
                symlink("..2026_01_01", mounted.join("..data"))?;
                for name in ["main.cf", "master.cf"] {
                    fs::copy(config.join(name), version.join(name))?;
                    symlink(format!("..data/{name}"), mounted.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// The guard removes it in the end.
    pub fn make_cgroup(&self) -> Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let unified = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|words| words.get(2) == Some(&"cgroup2"))
            .and_then(|words| words.get(1).copied())
            .context("no cgroup2 is mounted here; run: mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
        let path = Path::new(unified).join(&self.parent).join(&self.id);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }
}
