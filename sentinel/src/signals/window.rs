//! Sliding windows: what a growing counter gained of late, and the most that a gauge was.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Marks kept per window; with them the memory of a window is bounded whatever the tick.
const MARKS: u32 = 30;

/// Marks of a growing value, at most `span` old.
#[derive(Debug, Clone)]
pub struct Window<T> {
    span: Duration,
    marks: VecDeque<(Instant, T)>,
}

impl<T> Window<T> {
    pub fn new(span: Duration) -> Self {
        Self {
            span,
            marks: VecDeque::new(),
        }
    }

    /// Sets a mark, unless the last one is younger than a thirtieth of the span, and drops those that have left the
    /// window.
    pub fn mark(&mut self, now: Instant, value: T) {
        let young = |at: Instant| now.saturating_duration_since(at) < self.span / MARKS;
        if self.marks.back().is_some_and(|(at, _)| young(*at)) {
            return;
        }
        // The newest mark outside the window stays: differences are then taken over the whole span.
        while self
            .marks
            .get(1)
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= self.span)
        {
            self.marks.pop_front();
        }
        self.marks.push_back((now, value));
    }

    /// The mark at the far end of the window, and its age.
    pub fn oldest(&self, now: Instant) -> Option<(Duration, &T)> {
        self.marks
            .front()
            .map(|(at, value)| (now.saturating_duration_since(*at), value))
    }
}

/// The most that a polled gauge was within `span`.
#[derive(Debug, Clone)]
pub struct Peak {
    span: Duration,
    /// Decreasing values: each is the most that was seen since the one before it.
    candidates: VecDeque<(Instant, u32)>,
}

impl Peak {
    pub fn new(span: Duration) -> Self {
        Self {
            span,
            candidates: VecDeque::new(),
        }
    }

    /// Takes a value in and gives the peak.
    pub fn see(&mut self, now: Instant, value: u32) -> u32 {
        while self.candidates.back().is_some_and(|(_, peak)| *peak <= value) {
            self.candidates.pop_back();
        }
        self.candidates.push_back((now, value));
        while self
            .candidates
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > self.span)
        {
            self.candidates.pop_front();
        }
        self.candidates.front().map_or(value, |(_, peak)| *peak)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_mark_is_about_one_span_old_and_the_marks_are_few() {
        let start = crate::clock::now().mono;
        let mut window = Window::new(Duration::from_secs(60));
        for tick in 0..2_000u32 {
            window.mark(start + Duration::from_millis(100) * tick, tick);
        }
        let now = start + Duration::from_millis(100) * 2_000;
        let (age, value) = window.oldest(now).unwrap();
        assert!((58..=64).contains(&age.as_secs()), "{age:?}");
        assert_eq!(Duration::from_millis(100) * (2_000 - value), age);
        assert!(window.marks.len() <= 33, "{}", window.marks.len());
    }

    proptest! {
        #[test]
        fn the_peak_is_the_maximum_of_the_window(values in prop::collection::vec(0u32..50, 1..200)) {
            let start = crate::clock::now().mono;
            let mut peak = Peak::new(Duration::from_secs(10));
            for (second, value) in values.iter().enumerate() {
                let expected = values[second.saturating_sub(10)..=second].iter().max().copied();
                prop_assert_eq!(Some(peak.see(start + Duration::from_secs(second as u64), *value)), expected);
            }
        }
    }
}
