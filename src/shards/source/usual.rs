//! How long a host usually takes for a range, and what that allows for second requests.
//!
//! In: the time from each request to the last byte of its range, and the number of requests. Out: after how long a range
//! counts as late, and whether a second request for it is in the budget. Late is what takes twice as long as nineteen of
//! twenty recent ranges took, and never less than [`LEAST`]: a host that is slow with everything is slow as usual. Each
//! request earns a twentieth of a second one, and few are saved up: so many more requests, and no more, is what it costs to
//! wait no longer than usual for nearly all ranges (Dean and Barroso, The Tail at Scale, 2013). Memory: [`KEPT`] times.

use std::collections::VecDeque;
use std::time::Duration;

/// Ranges that are remembered.
const KEPT: usize = 64;
/// Ranges without which nothing is usual yet.
const ENOUGH: usize = 16;
/// No range is late before that.
const LEAST: Duration = Duration::from_millis(500);
/// Second requests for each request.
const SHARE: f64 = 0.05;
/// Second requests that can be saved up.
const MOST_SAVED: f64 = 4.0;

/// What is usual for one host.
#[derive(Debug, Default)]
pub(super) struct Usual {
    times: VecDeque<Duration>,
    saved: f64,
}

impl Usual {
    /// A request is sent.
    pub(super) fn asked(&mut self) {
        self.saved = (self.saved + SHARE).min(MOST_SAVED);
    }

    /// A range took so long, or longer.
    pub(super) fn took(&mut self, time: Duration) {
        if self.times.len() == KEPT {
            self.times.pop_front();
        }
        self.times.push_back(time);
    }

    /// After how long a range is late; none as long as too little is known.
    pub(super) fn late_after(&self) -> Option<Duration> {
        if self.times.len() < ENOUGH {
            return None;
        }
        let mut times: Vec<Duration> = self.times.iter().copied().collect();
        times.sort_unstable();
        let most_take = times[times.len() * 95 / 100];
        Some(most_take.saturating_mul(2).max(LEAST))
    }

    /// Takes a second request out of what is saved up, if there is one.
    pub(super) fn spend(&mut self) -> bool {
        let has_one = self.saved >= 1.0;
        if has_one {
            self.saved -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn late_is_late_for_this_host() {
        let mut usual = Usual::default();
        (1..ENOUGH).for_each(|_| usual.took(SECOND));
        assert_eq!(usual.late_after(), None, "too little is known");
        usual.took(60 * SECOND);
        assert_eq!(usual.late_after(), Some(120 * SECOND), "one of so few may be usual");
        (0..KEPT).for_each(|_| usual.took(SECOND));
        usual.took(60 * SECOND);
        assert_eq!(usual.late_after(), Some(2 * SECOND), "one in many is an exception, whatever it took");
        (0..KEPT).for_each(|_| usual.took(9 * SECOND));
        assert_eq!(usual.late_after(), Some(18 * SECOND), "slow with everything is slow as usual");
        (0..2 * KEPT).for_each(|_| usual.took(Duration::from_millis(3)));
        assert_eq!((usual.late_after(), usual.times.len()), (Some(LEAST), KEPT));
    }

    proptest! {
        #[test]
        fn second_requests_are_a_small_share_in_any_order(steps in prop::collection::vec(0_usize..40, 1..200)) {
            let (mut usual, mut asked, mut seconds) = (Usual::default(), 0, 0);
            for requests in steps {
                (0..requests).for_each(|_| usual.asked());
                asked += requests;
                let mut in_a_row = 0;
                while usual.spend() {
                    in_a_row += 1;
                }
                seconds += in_a_row;
                prop_assert!(in_a_row as f64 <= MOST_SAVED);
                prop_assert!(seconds as f64 <= SHARE * asked as f64 + 1e-6);
            }
        }
    }
}
