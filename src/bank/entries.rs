//! Samples of one batch, of all ranks: whose features go to the bank.
//!
//! They stand in the order in which one rank alone would have read them: the first sample of each rank in turn, then the second of
//! each, and so on. So slots of the bank, digests of ids and everything drawn by number do not depend on how many ranks read a
//! stream, as long as each takes every so-many-th sample of it.

use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::shards::SampleId;
use crate::world::World;
use std::borrow::Borrow;
use tch::{Kind, Tensor};

/// Numbers that are sent of a sample.
const FIELDS: usize = 5;

/// What is known of the samples of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries {
    /// Whose they are.
    pub ids: Vec<SampleId>,
    /// Their classes in the stream, where they have one.
    pub classes: Vec<Option<i64>>,
    /// Their clusters by the present clustering, if it has given any.
    pub labels: Option<Vec<u32>>,
    /// The highest pass of any.
    pub pass: u64,
    /// The highest pass of the rank that is farthest behind.
    pub pass_of_slowest: u64,
    /// The rank that read each, and its number among those of the rank.
    pub(super) readers: Vec<(usize, usize)>,
}

impl Entries {
    /// The samples of this rank with those of all others. No rank has more than `most`; either all have labels or none has.
    pub fn gather<S: Borrow<SampleMeta>>(
        world: &World,
        samples: &[S],
        labels: Option<&[i64]>,
        most: usize,
    ) -> Result<Self> {
        if labels.is_some_and(|labels| labels.len() != samples.len()) {
            let labels = labels.map_or(0, <[i64]>::len);
            return Err(Error::data(format!("{labels} labels for {} samples of the bank", samples.len())));
        }
        let mut sent = vec![samples.len() as i64, i64::from(labels.is_some())];
        sent.reserve(most * FIELDS);
        for (row, sample) in samples.iter().map(Borrow::borrow).enumerate() {
            let (class, label) = (sample.class, labels.map_or(0, |labels| labels[row]));
            let id = i64::from_ne_bytes(sample.id.0.to_ne_bytes());
            sent.extend([id, i64::from(class.is_some()), class.unwrap_or(0), label, sample.pass as i64]);
        }
        if world.is_alone() {
            return Self::of(&[sent]);
        }
        sent.resize(2 + most.max(samples.len()) * FIELDS, 0);
        let all = world.gather(&Tensor::f_from_slice(&sent)?)?.f_to_kind(Kind::Int64)?;
        let ranks = (0..world.size() as i64).map(|rank| Ok(Vec::<i64>::try_from(all.f_select(0, rank)?)?));
        Self::of(&ranks.collect::<Result<Vec<_>>>()?)
    }

    /// Samples that one rank alone has read, without labels.
    pub fn of_one(ids: Vec<SampleId>, classes: Vec<Option<i64>>) -> Self {
        let readers = (0..ids.len()).map(|row| (0, row)).collect();
        Self { ids, classes, readers, ..Self::default() }
    }

    /// From what each rank has sent.
    fn of(ranks: &[Vec<i64>]) -> Result<Self> {
        let longest = ranks.iter().map(|sent| sent[0]).max().unwrap_or(0) as usize;
        let pass_of = |sent: &Vec<i64>| {
            let fields = sent[2..][..sent[0] as usize * FIELDS].chunks(FIELDS);
            fields.map(|fields| fields[4] as u64).max()
        };
        let pass_of_slowest = ranks.iter().filter_map(pass_of).min().unwrap_or(0);
        let mut entries = Self { pass_of_slowest, ..Self::default() };
        let mut labels = Vec::new();
        for row in 0..longest {
            for (rank, sent) in ranks.iter().enumerate().filter(|(_, sent)| row < sent[0] as usize) {
                let fields = &sent[2 + row * FIELDS..][..FIELDS];
                entries.ids.push(SampleId(u64::from_ne_bytes(fields[0].to_ne_bytes())));
                entries.classes.push((fields[1] == 1).then_some(fields[2]));
                labels.push(
                    u32::try_from(fields[3]).map_err(|_| Error::data("a cluster label below 0 or beyond 32 bits"))?,
                );
                entries.pass = entries.pass.max(fields[4] as u64);
                entries.readers.push((rank, row));
            }
        }
        entries.labels = ranks.iter().any(|sent| sent[1] == 1).then_some(labels);
        Ok(entries)
    }

    /// How many there are, on all ranks.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_ranks_stand_as_one_rank_would_have_read_them() -> Result<()> {
        let sent = |ids: &[i64]| {
            let fields = ids.iter().flat_map(|&id| [id, 1, id * 10, id + 100, id / 3]);
            [ids.len() as i64, 1].into_iter().chain(fields).chain([0; 10]).collect::<Vec<i64>>()
        };
        let found = Entries::of(&[sent(&[0, 3, 6]), sent(&[1, 4]), sent(&[2, 5])])?;
        assert_eq!(found.ids, (0..7).map(SampleId).collect::<Vec<_>>());
        assert_eq!(found.classes[5], Some(50));
        assert_eq!(found.labels.expect("labels")[6], 106);
        assert_eq!(found.readers, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2)]);
        assert_eq!((found.pass, found.pass_of_slowest), (2, 1));
        Ok(())
    }
}
