//! What a shard has given so far in the pass: the sums behind its line in the ledger, and behind its quarantine.
//!
//! An account is part of the cursor. It is therefore the same after a restart as without one, and so is the sample at
//! which a shard is given up. Losses in decoding are not in it: they are heard of a shuffle buffer later, and an order that waited
//! for them would depend on how far decoding has come.

use crate::shards::sample::Lost;
use crate::shards::{Reason, Trouble};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Samples below which no share of them says anything.
const LEAST: u64 = 100;

/// Counts of one open shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Account {
    /// The byte from which on it counts: above 0 where a cursor without accounts was gone on from.
    pub from_byte: u64,
    /// Samples that the shard gave.
    pub samples: u64,
    /// Samples that were lost.
    pub lost: u64,
    /// Everything that was lost, by reason.
    pub losses: BTreeMap<Reason, u64>,
}

impl Account {
    /// Counts something lost.
    pub(super) fn lose(&mut self, lost: &Lost) {
        self.lost += u64::from(lost.key.is_some());
        *self.losses.entry(lost.trouble.reason).or_default() += 1;
    }

    /// Why the shard is given up, if more than `most` of its samples were lost.
    pub(super) fn quarantine(&self, most: f64) -> Option<Trouble> {
        let met = self.samples + self.lost;
        if met < LEAST || self.lost as f64 <= most * met as f64 {
            return None;
        }
        let (lost, percent) = (self.lost, 100.0 * most);
        let detail = format!("{lost} of its first {met} samples are lost, stream.max_shard_loss allows {percent} %");
        Some(Trouble::new(Reason::Quarantined, format!("{detail}: the rest is passed over")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_given_up_for_its_share_of_losses_once_there_are_enough() {
        let lost = |key: Option<&str>| Lost {
            key: key.map(str::to_owned),
            offset: 0,
            trouble: Trouble::new(Reason::NoImage, ""),
        };
        let mut account = Account { samples: 49, ..Account::default() };
        for _ in 0..50 {
            account.lose(&lost(Some("k")));
            account.lose(&lost(None));
        }
        assert_eq!(account.quarantine(0.5), None, "99 samples");
        account.samples += 1;
        assert_eq!(account.quarantine(0.5), None, "half of them");
        account.lose(&lost(Some("k")));
        assert!(account.quarantine(0.5).is_some_and(|trouble| trouble.detail.starts_with("51 of its first 101")));
        assert_eq!((account.quarantine(1.0), account.losses[&Reason::NoImage]), (None, 101));
    }
}
