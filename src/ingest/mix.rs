//! Several lists as one stream: whose sample comes next, and how lanes and shuffle buffer are shared out.
//!
//! Each list is an endless stream of its own, with its own passes and permutations. The n-th sample of the whole is of the
//! list that a hash of (seed, n) draws, so that shares are those of the weights whatever the sizes of the lists, and a
//! resumed stream draws as an undisturbed one does.

use super::pass::Rules;
use super::shuffle::chance;

/// The lists' shares of the stream, which sum up to 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mix {
    shares: Vec<f64>,
}

impl Mix {
    /// Of one list, without weights.
    pub(super) fn single() -> Self {
        Self { shares: vec![1.0] }
    }

    /// In proportion to weights above 0.
    pub(super) fn of(weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        Self { shares: weights.iter().map(|weight| weight / total).collect() }
    }

    /// The list of the `number`-th sample.
    pub(super) fn list_of(&self, seed: u64, number: u64) -> usize {
        // the upper 53 bits, as many as a number below 1 holds
        let mut left = (chance(seed, b"mix     ", 0, number) >> 11) as f64 / (1_u64 << 53) as f64;
        for (list, share) in self.shares.iter().enumerate() {
            if left < *share {
                return list;
            }
            left -= share;
        }
        self.shares.len().saturating_sub(1)
    }

    /// The rules of each list: its share of lanes and of the shuffle buffer, and a seed of its own, the first list's being
    /// that of the stream.
    pub(super) fn rules(&self, whole: &Rules) -> Vec<Rules> {
        let part = |count: usize, share: f64| (count as f64 * share).round() as usize;
        let of_list = |(list, &share): (usize, &f64)| Rules {
            seed: match list {
                0 => whole.seed,
                _ => crate::seed::of(whole.seed, "list", list as u64),
            },
            lanes: part(whole.lanes, share).max(1),
            shuffle: part(whole.shuffle, share),
            shuffle_bytes: part(whole.shuffle_bytes, share).max(1),
            ..whole.clone()
        };
        match self.shares.len() {
            1 => vec![whole.clone()],
            _ => self.shares.iter().enumerate().map(of_list).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_weights() {
        let mix = Mix::of(&[2.0, 1.0, 5.0]);
        let mut counts = [0_i64; 3];
        for number in 0..80_000 {
            counts[mix.list_of(31, number)] += 1;
        }
        // the deviation of a count is at most sqrt(80000 / 4) = 141
        for (count, expected) in counts.iter().zip([20_000, 10_000, 50_000]) {
            assert!((count - expected).abs() < 5 * 141, "{counts:?}");
        }
        assert!((0..100).all(|number| Mix::single().list_of(31, number) == 0));
    }
}
