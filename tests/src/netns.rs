//! Network namespaces without a name: each lives as long as a descriptor of it does, so none can be left behind, and labs
//! side by side cannot meet. Only threads enter them; the process as a whole stays where it is.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, kept alive by its descriptor.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes an empty namespace with its loopback up.
    ///
    /// # Errors
    /// Not root (CAP_SYS_ADMIN), or no iproute2.
    pub fn new() -> Result<Self> {
        let file = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("making a network namespace needs root (CAP_SYS_ADMIN)")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })
        .join()
        .expect("the thread only returns")?;
        let namespace = Self { file };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// One that is there, such as /proc/PID/ns/net.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { file })
    }

    /// Runs `work` on a thread of its own inside the namespace, and waits for it. Sockets and child processes made there
    /// belong to the namespace for good.
    ///
    /// # Errors
    /// Entering failed; or what `work` returned.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter()?;
                work()
            });
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a long-lived thread inside the namespace.
    ///
    /// # Errors
    /// The descriptor or the thread cannot be made; what `work` returns comes with the join.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let namespace = self.handle()?;
        Ok(thread::Builder::new().name(name.to_owned()).spawn(move || {
            namespace.enter()?;
            work()
        })?)
    }

    /// Runs `ip ARGS` inside.
    ///
    /// # Errors
    /// `ip` is missing or refuses; the message has its words.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        self.output("ip", args).map(drop)
    }

    /// Runs a command inside and returns its standard output.
    ///
    /// # Errors
    /// The command is missing or fails; the message has its words.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.run(|| {
            Command::new(program)
                .args(args)
                .output()
                .with_context(|| format!("running {program}; `cargo xtask setup` installs it"))
        })?;
        ensure!(
            output.status.success(),
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Another handle of the same namespace.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    pub fn handle(&self) -> Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
        })
    }

    fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering the lab's network namespace")
    }

    /// A path by which another process can open the namespace while this process lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// The server's address.
pub const SERVER: &str = "10.76.0.1";
/// The client namespace's address on the wire; the clients themselves come from [`CLIENTS`].
const GATEWAY: &str = "10.76.0.2";
/// Where clients come from: AnyIP makes every address of it local to the client namespace, so that anvil(8) and the
/// sentinel see many clients, each below any limit per client.
const CLIENTS: &str = "10.77.0.0/16";

/// Joins the two with a veth pair and gives the clients their address space.
///
/// # Errors
/// The kernel has no veth, or `ip` refuses.
pub fn join(server: &Namespace, clients: &Namespace) -> Result<()> {
    server.ip(&[
        "link",
        "add",
        "wire",
        "type",
        "veth",
        "peer",
        "name",
        "wire",
        "netns",
        &clients.path(),
    ])?;
    server.ip(&["addr", "add", &format!("{SERVER}/24"), "dev", "wire"])?;
    server.ip(&["link", "set", "wire", "up"])?;
    clients.ip(&["addr", "add", &format!("{GATEWAY}/24"), "dev", "wire"])?;
    clients.ip(&["link", "set", "wire", "up"])?;
    clients.ip(&["route", "add", "local", CLIENTS, "dev", "lo"])?;
    server.ip(&["route", "add", CLIENTS, "via", GATEWAY])
}

/// The lab makes namespaces, mounts and a mail server, so it must be root; elsewhere it fails with what to do, never skips.
///
/// # Errors
/// Not root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the lab makes network namespaces and starts a private Postfix, which needs root: run it with sudo -E, or in CI as root"
        );
    }
    Ok(())
}
