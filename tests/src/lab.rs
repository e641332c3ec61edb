//! The lab as a whole: server, clients, the wire between them, and the order in which they end.

use std::path::Path;

use anyhow::Result;

use crate::attackers::{Attack, Attackers};
use crate::client::Client;
use crate::netns::{self, Namespace};
use crate::postfix::{Plan, Postfix};
use crate::senders::{Senders, Traffic};
use crate::{master_cf, sockets};

/// A running lab. Dropping it, or the end of the process in any way, takes all of it away.
#[derive(Debug)]
pub struct Lab {
    // Fields drop in this order: Postfix must be gone before its namespace can be.
    pub postfix: Postfix,
    server: Namespace,
    clients: Namespace,
}

/// What the lab's Postfix looks like; the defaults are those of the measured runs: 20 slots, everything else as Postfix
/// comes.
#[derive(Debug)]
pub struct Builder {
    master_cf: String,
    main_cf: String,
    read_only_master_cf: bool,
    own_master: bool,
}

impl Lab {
    /// A lab with 20 slots.
    ///
    /// # Errors
    /// See [`Builder::start`].
    pub fn new() -> Result<Self> {
        Self::builder().start()
    }

    pub fn builder() -> Builder {
        Builder {
            master_cf: master_cf::plain(20),
            main_cf: String::new(),
            read_only_master_cf: false,
            own_master: false,
        }
    }

    /// Starts legitimate senders.
    ///
    /// # Errors
    /// Their thread cannot be started.
    pub fn senders(&self, traffic: Traffic) -> Result<Senders> {
        Senders::start(&self.clients, traffic)
    }

    /// Starts attackers.
    ///
    /// # Errors
    /// Their thread cannot be started.
    pub fn attack(&self, attack: Attack) -> Result<Attackers> {
        Attackers::start(&self.clients, attack)
    }

    /// Connects one scripted client from `10.77.0.HOST`.
    ///
    /// # Errors
    /// The connection is not made within 10 s.
    pub fn connect(&self, host: u8) -> Result<Client> {
        self.clients.run(|| Client::connect(host))
    }

    /// The sockets of port 25 as the server's kernel has them.
    ///
    /// # Errors
    /// `ss` is missing or says what it never said.
    pub fn sockets(&self) -> Result<sockets::Port> {
        sockets::Port::read(&self.server)
    }

    pub fn server(&self) -> &Namespace {
        &self.server
    }

    /// The directory that goes with the lab.
    pub fn base(&self) -> &Path {
        self.postfix.base()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- mail log of the failed lab, last lines\n{}",
                tail(&self.postfix.log(), 60)
            );
        }
    }
}

impl Builder {
    /// Slots of `smtp inet`, in a plain master.cf.
    #[must_use]
    pub fn maxproc(self, maxproc: u32) -> Self {
        self.master_cf(master_cf::plain(maxproc))
    }

    /// The whole master.cf; [`master_cf`] has the parts.
    #[must_use]
    pub fn master_cf(mut self, text: String) -> Self {
        self.master_cf = text;
        self
    }

    /// More lines of main.cf.
    #[must_use]
    pub fn main_cf(mut self, lines: &str) -> Self {
        self.main_cf.push_str(lines);
        self.main_cf.push('\n');
        self
    }

    /// Lets smtpd pause between accept and greeting, as slow DNS does.
    #[must_use]
    pub fn greeting_delay(self, seconds: u32) -> Self {
        // Without delay_reject the client restrictions run before the greeting (smtpd.c, smtpd_proto()).
        self.main_cf(&format!(
            "smtpd_delay_reject = no\nsmtpd_client_restrictions = sleep {seconds}"
        ))
    }

    /// Mounts master.cf read-only over itself for this Postfix alone, as containers do: it can be read, and neither written
    /// nor replaced. What is to meet the mount has to enter master's mount namespace.
    #[must_use]
    pub fn read_only_master_cf(mut self) -> Self {
        self.read_only_master_cf = true;
        self
    }

    /// Runs a copy of master, for [`Postfix::upgrade`].
    #[must_use]
    pub fn own_master(mut self) -> Self {
        self.own_master = true;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// Not root, a tool or Postfix is missing, or Postfix refuses its configuration; the message says which.
    pub fn start(self) -> Result<Lab> {
        netns::require_root()?;
        let server = Namespace::new()?;
        let clients = Namespace::new()?;
        netns::join(&server, &clients)?;
        // The guard removes it, and outlives this process if need be; until it runs, the TempDir does.
        let base = tempfile::Builder::new().prefix("sentinel-lab-").tempdir()?;
        let plan = Plan {
            main_cf: self.main_cf,
            master_cf: self.master_cf,
            read_only_master_cf: self.read_only_master_cf,
            own_master: self.own_master,
        };
        let postfix = Postfix::start(&server, base.path(), &plan)?;
        let _ = base.keep();
        Ok(Lab {
            postfix,
            server,
            clients,
        })
    }
}

/// The last `lines` lines.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
