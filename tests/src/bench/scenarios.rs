//! How a site is set up against the load: Postfix's own ways, and the sentinel.

use anyhow::{Context, Result};

use super::profiles::Profile;
use crate::sentinel::{Sentinel, Settings};
use crate::{Lab, master_cf};

/// A set-up.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// One sentence, for tables.
    pub about: &'static str,
    front: Front,
    /// The sentinel runs, with these lines of `[act]` and the defaults for all else.
    act: Option<&'static str>,
}

/// What takes the connections on port 25.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Front {
    Smtpd,
    StressedSmtpd,
    Postscreen,
}

/// All scenarios. The sentinel comes second, so that on two processors it meets the load at the same time as built-in
/// stress, which it is held against.
pub const ALL: [Scenario; 6] = [
    Scenario {
        name: "builtin",
        about: "Postfix as it comes: master's own stress mode",
        front: Front::Smtpd,
        act: None,
    },
    Scenario {
        name: "sentinel",
        about: "the sentinel with its default configuration",
        front: Front::Smtpd,
        act: Some(""),
    },
    Scenario {
        name: "static",
        about: "`-o stress=yes` in master.cf for good",
        front: Front::StressedSmtpd,
        act: None,
    },
    Scenario {
        name: "headroom",
        about: "the sentinel with `headroom = 4.0`",
        front: Front::Smtpd,
        act: Some("headroom = 4.0"),
    },
    Scenario {
        name: "postscreen",
        about: "postscreen in front, with its default settings",
        front: Front::Postscreen,
        act: None,
    },
    Scenario {
        name: "postscreen+sentinel",
        about: "postscreen in front, and the sentinel with its default configuration",
        front: Front::Postscreen,
        act: Some(""),
    },
];

/// Those that give the shape in ten minutes.
pub const QUICK: [&str; 2] = ["builtin", "sentinel"];

impl Scenario {
    /// Why it cannot run here: the daemon does not take its configuration (a key that it has not learnt yet).
    ///
    /// # Errors
    /// The daemon is not built, or cannot be asked.
    pub fn obstacle(&self) -> Result<Option<String>> {
        match self.act {
            Some(lines) if !lines.is_empty() => Sentinel::refusal_of(&format!("[act]\n{lines}\n")),
            Some(_) | None => Ok(None),
        }
    }

    /// postscreen takes the connections, and its own wait comes before each greeting.
    pub fn is_behind_postscreen(&self) -> bool {
        self.front == Front::Postscreen
    }

    pub(super) fn lab(&self, profile: &Profile) -> Result<Lab> {
        let services = match self.front {
            Front::Smtpd => master_cf::smtp(profile.maxproc),
            Front::StressedSmtpd => format!("{}  -o stress=yes\n", master_cf::smtp(profile.maxproc)),
            Front::Postscreen => master_cf::postscreen(profile.maxproc),
        };
        let mut lab = Lab::builder().master_cf(master_cf::with_inner(&services));
        if let Some(seconds) = profile.greeting_delay {
            lab = lab.greeting_delay(seconds);
        }
        lab.start()
            .with_context(|| format!("the lab of {} with {}", profile.name, self.name))
    }

    /// The sentinel as installed for this lab; `None` in a scenario without.
    pub(super) fn sentinel(&self, lab: &Lab) -> Result<Option<Sentinel>> {
        let install = |act: &str| {
            Sentinel::install_with(
                lab,
                &Settings {
                    act: act.to_owned(),
                    detect: String::new(),
                    ..Settings::default()
                },
            )
        };
        self.act.map(install).transpose()
    }
}
