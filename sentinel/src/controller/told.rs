//! Remembers which refusals were told of late: verdicts flicker in an attack, and a reason that comes and goes with them
//! is one entry of history and not ten a minute.

use std::time::Instant;

/// The reasons that were told, and when.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<(String, Instant)>);

impl Told {
    /// Whoever makes reasons up as he goes gets no more of them into history; status has each as long as it holds.
    pub(super) const KINDS: usize = 8;

    /// Whether this reason has not been told yet; from now on it has.
    pub(super) fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        let known = self.0.iter().any(|(told, _)| told == reason);
        let news = !known && self.0.len() < Self::KINDS;
        if news {
            self.0.push((reason.to_owned(), now));
        }
        news
    }

    /// What is told from here on is news again.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// What was told for the last time at or before `then` is news again.
    pub(super) fn forget_until(&mut self, then: Instant) {
        self.0.retain(|(_, at)| *at > then);
    }
}
