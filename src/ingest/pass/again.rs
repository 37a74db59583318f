//! What a restart needs of a pass, and what it makes of it: the samples that waited are read again, each shard once, wherever they
//! lie in it, and of the versions that were read before.
//!
//! A sample that is gone for good is lost and leaves a gap, so that the draws stay the same; so does each sample that a shard gave
//! which is another one by now. One that cannot be read at the moment is an error: the run had it, and starting again later brings
//! it back.

use super::super::buffer::{Buffer, Waiter};
use super::super::cursor::Place;
use super::super::lane::fetch;
use super::super::trail::Event;
use super::Pass;
use crate::error::{Error, Result};
use crate::shards::Trouble;
use crate::shards::index::Stamp;
use crate::shards::sample::Lost;
use futures_util::StreamExt;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

impl Pass {
    /// Fills the shuffle buffer as it was.
    pub(super) async fn read_again(&self, places: &[Place]) -> Result<Buffer> {
        let mut offsets: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for place in places.iter().filter(|place| !place.is_gap()) {
            offsets.entry(place.shard).or_default().push(place.offset);
        }
        let jobs = offsets.into_iter().map(|(shard, mut offsets)| {
            offsets.sort_unstable();
            let version_before = self.stamps.get(&shard).cloned();
            let found = fetch(self.shards[shard].clone(), offsets, version_before, Arc::clone(&self.shared));
            async move { found.await.map(|found| (shard, found)) }
        });
        let mut jobs = futures_util::stream::iter(jobs).buffer_unordered(self.rules.lanes);
        let mut found = HashMap::new();
        while let Some(job) = jobs.next().await {
            let (shard, samples) = job?;
            for (offset, sample) in samples {
                found.insert(Place { shard, offset }, sample);
            }
        }
        let mut waiting = Vec::with_capacity(places.len());
        for &place in places {
            waiting.push(match found.remove(&place) {
                Some(Ok(sample)) => Waiter { place, sample: Some(sample) },
                Some(Err(trouble)) if trouble.reason.may_pass() => return Err(self.cannot_go_on(place.shard, &trouble)),
                Some(Err(trouble)) => {
                    self.lose(place.shard, Lost { key: None, offset: place.offset, trouble });
                    Waiter::gap(place.shard)
                }
                None => Waiter::gap(place.shard),
            });
        }
        Ok(waiting.into_iter().collect())
    }

    /// The versions of the shards that are read on, or again, after a restart.
    pub(super) fn stamps_in_use(&self) -> BTreeMap<usize, Stamp> {
        let begun = self.order[self.taken..].iter().filter(|portion| portion.offset > 0).map(|portion| portion.shard);
        let waiting = self.buffer.shards().chain(begun);
        let known = waiting.filter_map(|shard| Some((shard, self.stamps.get(&shard)?)));
        let given = self.lanes.iter().filter(|lane| lane.rest.offset > 0 || lane.version_before.is_some());
        let open = given.filter_map(|lane| Some((lane.rest.shard, lane.stamp()?)));
        known.chain(open).map(|(shard, stamp)| (shard, stamp.clone())).collect()
    }

    /// Ends the lanes whose shards are other ones than before a restart.
    pub(in crate::ingest) fn end_all_changed(&mut self) -> Result<()> {
        while let Some(index) = self.lanes.iter().position(|lane| lane.changed.is_some()) {
            self.end_changed(index)?;
        }
        Ok(())
    }

    pub(super) fn end_changed(&mut self, index: usize) -> Result<()> {
        let lane = &mut self.lanes[index];
        let shard = lane.rest.shard;
        match lane.changed.take() {
            Some(ending) => self.end_lane(index, shard, ending),
            None => Ok(()),
        }
    }

    /// What became of shards since this was last asked.
    pub(in crate::ingest) fn take_events(&mut self, list: usize) -> impl Iterator<Item = Event> + use<> {
        let begun = std::mem::take(&mut self.begun).into_iter();
        let over = std::mem::take(&mut self.over).into_iter();
        let begun = begun.map(move |(shard, stamp)| Event::Began(list, shard, stamp));
        begun.chain(over.map(move |(shard, samples)| Event::Ended(list, shard, samples)))
    }

    /// What the run had already cannot be read at the moment.
    pub(super) fn cannot_go_on(&self, shard: usize, trouble: &Trouble) -> Error {
        let shard = &self.names[shard];
        Error::data(format!("cannot go on where the run was: {shard}: {trouble}"))
            .with_hint("start again when the shard can be read: nothing is lost")
    }
}
