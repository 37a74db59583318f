//! Shares of what was lost, over a sliding window of events.
//!
//! In: events, and losses among them. Out: the share lost over the last so many. Memory: four bytes an event of the window.

use std::collections::VecDeque;

/// Losses over the last so many events.
#[derive(Debug)]
pub(super) struct Window {
    pub length: usize,
    lost: VecDeque<u32>,
    sum: u32,
    pub total: u64,
}

impl Window {
    pub(super) fn of(length: usize) -> Self {
        Self { length: length.max(1), lost: VecDeque::new(), sum: 0, total: 0 }
    }

    /// Another event begins.
    pub(super) fn advance(&mut self) {
        self.total += 1;
        if self.lost.len() == self.length {
            self.sum -= self.lost.pop_front().unwrap_or_default();
        }
        self.lost.push_back(0);
    }

    /// Something was lost at the current event.
    pub(super) fn lose(&mut self) {
        self.sum += 1;
        match self.lost.back_mut() {
            Some(count) => *count += 1,
            None => self.lost.push_back(1),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.lost.len() == self.length
    }

    pub(super) fn rate(&self) -> f64 {
        f64::from(self.sum) / self.length as f64
    }
}
