//! Whether a reload would have the master open sockets that it does not have yet. Only trying tells whether the kernel
//! gives them, and a master dies of one that it does not get: that risk is for whoever wrote the entry to take, not for
//! a reload of ours.

use super::Actuator;
use super::check::CheckError;
use super::entry::Digest;
use crate::postfix::main_cf::Settings;
use crate::postfix::master_cf::MasterCf;
use crate::postfix::{Master, edit, services};

impl Actuator {
    /// Whether the master listens already on all that these bytes of its master.cf name. Where that cannot be told it is
    /// no objection: everything else has been checked.
    pub(super) fn bound(&mut self, master: &Master, bytes: &[u8]) -> Result<(), CheckError> {
        let main_cf = std::fs::read(master.config_dir.join("main.cf")).unwrap_or_default();
        // A listener that is open stays open for as long as its entry is there: another file may end that.
        let key = Digest::of(
            format!(
                "{} {} {} {}",
                master.pid,
                master.start_time,
                Digest::of(&edit::remove(bytes).bytes),
                Digest::of(&main_cf)
            )
            .as_bytes(),
        );
        if self.bound.get(&master.config_dir) == Some(&key) {
            return Ok(());
        }
        self.bound.remove(&master.config_dir);
        let Some(sockets) = self.masters.listening(master) else {
            return Ok(());
        };
        let Ok(settings) = Settings::of_running(&master.config_dir, &master.daemon_dir) else {
            return Ok(());
        };
        match services::unbound(&MasterCf::parse(bytes), &settings, &sockets) {
            None => {
                self.bound.insert(master.config_dir.clone(), key);
                Ok(())
            }
            Some(service) => Err(CheckError::Unbound {
                path: master.config_dir.join("master.cf"),
                service,
            }),
        }
    }
}
