//! The shedding of one service: its limits and its trusted clients, the ledger of its connections, and the tally that
//! goes into history.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::postfix::limits::{LimitsError, literal_limits, literal_mynetworks, stress_limits};
use crate::postfix::master_cf::Entry;
use crate::postfix::mynetworks::Trusted;
use crate::postfix::postconf::Postconf;
use crate::postfix::{Master, main_cf};
use crate::shed::{Ledger, Limits, Offender, Reason, Situation};
use crate::signals::Reading;
use crate::sock_diag::Connection;

/// One history entry stands for what was shed in this time.
const TALLY_OVER: Duration = Duration::from_secs(10);

/// Client addresses that a history entry names; the rest is only counted.
const ADDRESSES: usize = 20;

/// Offenders closed at one look, as a part of the slots: all of them within a second, ten looks, and never a jolt.
const PER_LOOK: u32 = 10;

#[derive(Debug)]
pub(super) struct Shedding {
    /// Why nothing is shed, when the limits of stress mode are not known.
    limits: Result<Limits, Unread>,
    trusted: Trusted,
    ledger: Ledger,
    tally: Option<Tally>,
}

/// Why the limits are not known.
#[derive(Debug)]
struct Unread {
    reason: String,
    /// It may be known later, without a change of any file.
    passing: bool,
}

impl From<String> for Unread {
    fn from(reason: String) -> Self {
        Self {
            reason,
            passing: false,
        }
    }
}

/// What was shed since the last entry in history.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    since: Instant,
    pub(super) reasons: BTreeMap<Reason, u64>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Shedding {
    /// `dwell` is the calm that has to last before stress mode is let go.
    pub(super) fn new(dwell: Duration) -> Self {
        Self {
            limits: Err("the limits of stress mode have not been read yet"
                .to_owned()
                .into()),
            trusted: Trusted::default(),
            ledger: Ledger::new(dwell),
            tally: None,
        }
    }

    /// Reads what the configuration of the service says.
    pub(super) fn configure(&mut self, master: &Master, entry: &Entry) {
        match Self::read(master, entry) {
            Ok((limits, trusted)) => {
                self.limits = Ok(limits);
                self.trusted = trusted;
            }
            Err(reason) => self.limits = Err(reason),
        }
        if let Err(Unread { reason, .. }) = &self.limits {
            tracing::warn!(service = %entry.id, "nothing will be shed: {reason}");
        }
        if !self.trusted.unread.is_empty() {
            let unread = self.trusted.unread.join(" ");
            tracing::warn!(service = %entry.id, "mynetworks has what only Postfix can look into, which is taken for nobody: {unread}");
        }
    }

    /// Whether asking again would bring nothing new.
    pub(super) fn is_configured(&self) -> bool {
        !matches!(self.limits, Err(Unread { passing: true, .. }))
    }

    fn read(master: &Master, entry: &Entry) -> Result<(Limits, Trusted), Unread> {
        let words = |error: LimitsError| Unread {
            passing: matches!(&error, LimitsError::Postconf(error) if error.is_passing()),
            reason: error.to_string(),
        };
        if master.root.container().is_some() {
            let main_cf = main_cf::read(&master.home()).map_err(|error| error.to_string())?;
            let limits = literal_limits(&main_cf, entry).map_err(words)?;
            return Ok((limits, literal_mynetworks(&main_cf).map_err(words)?));
        }
        let postconf = Postconf::of(master)
            .ok_or_else(|| "there is no postconf(1) to tell the limits of stress mode".to_owned())?;
        let limits = stress_limits(&postconf, &master.config_dir, entry).map_err(words)?;
        let values = postconf
            .parameters(&master.config_dir, &[], &["mynetworks"])
            .map_err(|error| Unread {
                passing: error.is_passing(),
                reason: format!("mynetworks is not known: {error}"),
            })?;
        let trusted = Trusted::of(values.get("mynetworks").map_or("", String::as_str));
        Ok((limits, trusted))
    }

    pub(super) fn see(&mut self, now: Instant, connections: &[Connection]) {
        if let Ok(limits) = &self.limits {
            self.ledger.see(now, connections, limits);
        }
    }

    /// Slots that would be held without stress mode by the sessions that it alone ends: their rate times the timeout
    /// that they would have then.
    pub(super) fn held_without_stress(&self, now: Instant) -> Reading<f64> {
        match &self.limits {
            Ok(limits) => {
                Reading::sampled(self.ledger.ended_per_s() * limits.calm_timeout.as_secs_f64(), now)
            }
            Err(unread) => Reading::unavailable(&unread.reason),
        }
    }

    /// Whose turn it is to be closed at this look.
    pub(super) fn offenders(
        &self,
        connections: &[Connection],
        situation: Situation,
        floor: Duration,
    ) -> Vec<Offender> {
        let Ok(limits) = &self.limits else {
            return Vec::new();
        };
        let mut offenders = self.ledger.offenders(connections, limits, floor, situation);
        offenders.retain(|one| {
            !self
                .trusted
                .has(one.connection.remote.ip(), one.connection.local.ip())
        });
        offenders.truncate(situation.slots.div_ceil(PER_LOOK) as usize);
        offenders
    }

    pub(super) fn closed(&mut self, now: Instant, offender: &Offender) {
        self.ledger.closed(now, offender);
        let tally = self.tally.get_or_insert_with(|| Tally {
            since: now,
            reasons: BTreeMap::new(),
            addresses: Vec::new(),
        });
        *tally.reasons.entry(offender.reason).or_insert(0) += 1;
        let address = offender.connection.remote.ip().to_canonical();
        if tally.addresses.len() < ADDRESSES && !tally.addresses.contains(&address) {
            tally.addresses.push(address);
        }
    }

    /// What is to be written down by now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Tally> {
        self.tally
            .take_if(|tally| now.saturating_duration_since(tally.since) >= TALLY_OVER)
    }

    /// What has not been written down yet.
    pub(super) fn rest(&mut self) -> Option<Tally> {
        self.tally.take()
    }
}
