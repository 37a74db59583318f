//! Which part of a list is whose, where several ranks train together.
//!
//! The ranks' parts of a pass are disjoint and together the whole list, for any number of ranks and any shards. Shards are
//! dealt in the order of the pass: to each rank one, and so on in rounds, as long as every rank gets at least `lanes` of them.
//! Where there are fewer, groups of ranks share each shard, and sample `i` of it belongs to one of the group by `i` modulo
//! its size; what is left after the last full round is shared by all ranks. Nobody needs to count anything first. The price: a
//! rank that shares a shard with others reads all of its bytes. Within a shared shard the ranks' counts differ by
//! one at most; whole shards of unequal sizes leave ranks as far apart as the shards are, and a rank that is through with its
//! part goes on into the next pass.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// One of several ranks that read a list together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct Share {
    rank: u32,
    world: u32,
}

impl Share {
    /// The part of the rank `rank` among `world`.
    ///
    /// # Errors
    /// [`Error::Usage`] unless `rank` is below `world`.
    pub fn new(rank: u32, world: u32) -> Result<Self> {
        match rank < world {
            true => Ok(Self { rank, world }),
            false => Err(Error::usage(format!("rank {rank} of {world}: ranks count from 0 to one below their number"))),
        }
    }

    /// Everything, for one reader alone.
    pub const fn whole() -> Self {
        Self { rank: 0, world: 1 }
    }

    /// The number of this rank, from 0.
    pub fn rank(self) -> u32 {
        self.rank
    }

    /// How many ranks there are.
    pub fn world(self) -> u32 {
        self.world
    }
}

impl TryFrom<(u32, u32)> for Share {
    type Error = Error;

    fn try_from((rank, world): (u32, u32)) -> Result<Self> {
        Self::new(rank, world)
    }
}

impl From<Share> for (u32, u32) {
    fn from(share: Share) -> Self {
        (share.rank, share.world)
    }
}

/// A part of a shard: from one of its samples on, every so-many-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(usize, u64, u64, u64, u64)", into = "(usize, u64, u64, u64, u64)")]
pub(super) struct Portion {
    /// The shard's number in the list of the pass.
    pub shard: usize,
    /// Where the first sample begins, in bytes of the uncompressed tar.
    pub offset: u64,
    /// Samples of the shard before that.
    pub ordinal: u64,
    /// Of so many samples one belongs to the portion,
    pub every: u64,
    /// the one whose ordinal leaves this remainder.
    pub member: u64,
}

impl Portion {
    /// Whether the sample of this ordinal belongs to it.
    pub(super) fn takes(&self, ordinal: u64) -> bool {
        ordinal % self.every.max(1) == self.member
    }

    /// The portion without everything up to a sample that ends at `offset` and has `ordinal - 1`.
    pub(super) fn after(self, offset: u64, ordinal: u64) -> Self {
        Self { offset, ordinal, ..self }
    }

    /// The `part`-th of `parts` equal parts of it, where `part` is below `parts`.
    ///
    /// # Errors
    /// The shard has been dealt anew so often within one pass that its parts cannot be counted any more.
    pub(super) fn split(self, part: u64, parts: u64) -> Result<Self> {
        let every = self.every.checked_mul(parts).ok_or_else(|| {
            let (every, shard) = (self.every, self.shard);
            Error::data(format!(
                "shard {shard} of the pass is in {every} parts already, and {parts} of each are too many"
            ))
            .with_hint("go on with as many ranks as there were until the pass is over")
        })?;
        // below `every`, as `member` is below the old one
        Ok(Self { every, member: self.member + self.every * part, ..self })
    }
}

impl From<(usize, u64, u64, u64, u64)> for Portion {
    fn from((shard, offset, ordinal, every, member): (usize, u64, u64, u64, u64)) -> Self {
        Self { shard, offset, ordinal, every, member }
    }
}

impl From<Portion> for (usize, u64, u64, u64, u64) {
    fn from(portion: Portion) -> Self {
        (portion.shard, portion.offset, portion.ordinal, portion.every, portion.member)
    }
}

/// What a rank reads of a pass whose shards stand in this order, with `lanes` open at once.
pub(super) fn deal(order: &[usize], pass: u64, share: Share, lanes: usize) -> Vec<Portion> {
    let world = share.world as usize;
    let has_enough = |groups: usize| world.is_multiple_of(groups) && groups * lanes <= order.len();
    let groups = (1..=world).rev().find(|&groups| has_enough(groups)).unwrap_or(1);
    let group_size = share.world / groups as u32;
    let (group, within) = ((share.rank / group_size) as usize, share.rank % group_size);
    let dealt = order.len() - order.len() % groups;
    let mut portions = Vec::with_capacity(order.len() / groups + groups);
    for (position, &shard) in order.iter().enumerate() {
        if position >= dealt {
            portions.push(shared(shard, share.rank, share.world, position as u64 + pass));
        } else if position % groups == group {
            portions.push(shared(shard, within, group_size, (position / groups) as u64 + pass));
        }
    }
    portions
}

/// The part of `member` in a shard that so many share. `turn` moves on from shard to shard, so that it is not always the same
/// who has the first sample.
pub(super) fn shared(shard: usize, member: u32, sharing: u32, turn: u64) -> Portion {
    let every = u64::from(sharing);
    let member = (u64::from(member) + every - turn % every) % every;
    Portion { shard, offset: 0, ordinal: 0, every, member }
}

#[cfg(test)]
mod tests {
    use super::super::shuffle::permutation;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_disjoint_complete_and_as_even_as_whole_shards_allow(
            sizes in prop::collection::vec(prop_oneof![0_u64..40, Just(0), Just(700)], 1..60),
            world in 1_u32..9,
            lanes in 1_usize..5,
            pass in 0_u64..20,
        ) {
            let order = permutation(31, pass, sizes.len());
            let parts: Vec<Vec<Portion>> =
                (0..world).map(|rank| deal(&order, pass, Share::new(rank, world).unwrap(), lanes)).collect();
            for (shard, &size) in sizes.iter().enumerate() {
                for ordinal in 0..size {
                    let takes = |portion: &&Portion| portion.shard == shard && portion.takes(ordinal);
                    prop_assert_eq!(parts.iter().flatten().filter(takes).count(), 1);
                }
            }
            let count = |portion: &Portion| (0..sizes[portion.shard]).filter(|&ordinal| portion.takes(ordinal)).count();
            let counts: Vec<usize> = parts.iter().map(|part| part.iter().map(count).sum()).collect();
            let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
            // in each round, the ranks are at most as far apart as their portions of it
            let most = parts.iter().map(Vec::len).max().unwrap();
            let of_round = |round: usize| {
                let counts = parts.iter().map(|part| part.get(round).map_or(0, count));
                counts.clone().max().unwrap() - counts.min().unwrap()
            };
            prop_assert!(spread <= (0..most).map(of_round).sum::<usize>());
            if sizes.len() < 2 * lanes {
                prop_assert!(spread <= sizes.len(), "every shard is shared by all: {:?}", counts);
            }
            if world == 1 {
                prop_assert_eq!(parts[0].iter().map(|portion| portion.shard).collect::<Vec<_>>(), order);
            }
        }

        #[test]
        fn a_portion_splits_without_rest(every in 1_u64..6, member in 0_u64..6, parts in 1_u64..5) {
            let portion = Portion { shard: 0, offset: 0, ordinal: 0, every, member: member % every };
            for ordinal in 0..200 {
                let takers = (0..parts).filter(|&part| portion.split(part, parts).unwrap().takes(ordinal)).count();
                prop_assert_eq!(takers, usize::from(portion.takes(ordinal)));
            }
        }

        #[test]
        fn a_portion_is_dealt_anew_without_rest_as_often_as_can_be_counted(
            worlds in prop::collection::vec(1_u64..100, 1..40),
            ordinal in any::<u64>(),
        ) {
            let mut portion = Portion { shard: 0, offset: 0, ordinal: 0, every: 1, member: 0 };
            for parts in worlds {
                let Some(every) = portion.every.checked_mul(parts) else {
                    for part in [0, parts - 1] {
                        prop_assert_eq!(portion.split(part, parts).unwrap_err().exit_code(), 3);
                    }
                    return Ok(());
                };
                // of all parts, the one that has the sample, and no other
                let split: Vec<Portion> = (0..parts).map(|part| portion.split(part, parts).unwrap()).collect();
                let takers: Vec<&Portion> = split.iter().filter(|part| part.takes(ordinal)).collect();
                prop_assert!(takers.len() == 1 && split.iter().all(|part| part.every == every && part.member < every));
                portion = *takers[0];
                let stored: Portion = serde_json::from_str(&serde_json::to_string(&portion).unwrap()).unwrap();
                prop_assert_eq!(stored, portion);
            }
        }
    }

    #[test]
    fn shards_enough_are_dealt_whole() {
        let order: Vec<usize> = (0..33).collect();
        for rank in 0..4 {
            let part = deal(&order, 0, Share::new(rank, 4).unwrap(), 8);
            let whole = part.iter().filter(|portion| portion.every == 1).count();
            assert_eq!((whole, part.len()), (8, 9), "and the last one is shared by all four");
        }
    }

    #[test]
    fn a_rank_is_below_its_world() {
        assert!(Share::new(3, 4).is_ok() && Share::new(4, 4).is_err() && Share::new(0, 0).is_err());
    }
}
