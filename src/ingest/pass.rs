//! One pass over the list: every sample of every shard once, in an order that the seed and the pass number fix.
//!
//! The shards stand in a permutation. `lanes` of them are open and give one sample each in turn; a lane whose shard ends takes the
//! next one of the permutation, which is being opened already. Samples wait in the shuffle buffer until a draw lets them go;
//! at the end of the pass the buffer empties.

use super::account::Account;
use super::cursor::{Checkpoint, Place};
use super::lane::{Lane, Reader, Shared, fetch};
use super::shuffle::{entering, leaver, permutation};
use super::stream::Passes;
use crate::config::StreamPlan;
use crate::error::{Error, Result};
use crate::shards::index::Row;
use crate::shards::ledger::ShardEnd;
use crate::shards::sample::{Lost, Step};
use crate::shards::{Ending, Ledger, Loss, Reason, ShardSample, ShardUrl, Verdict, fingerprint};
use futures_util::StreamExt;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What stays the same from pass to pass.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub seed: u64,
    pub lanes: usize,
    pub shuffle: usize,
    pub in_order: bool,
    pub max_shard_loss: f64,
    pub ledger: Arc<Ledger>,
}

impl Rules {
    pub(super) fn new(plan: &StreamPlan, passes: Passes, ledger: Arc<Ledger>) -> Self {
        let (seed, max_shard_loss) = (plan.seed, plan.max_shard_loss);
        match passes {
            Passes::Endless => {
                Self { seed, lanes: plan.lanes.max(1), shuffle: plan.shuffle, in_order: false, max_shard_loss, ledger }
            }
            Passes::Once => Self { seed, lanes: 1, shuffle: 0, in_order: true, max_shard_loss, ledger },
        }
    }
}

/// One pass over the list.
#[derive(Debug)]
pub(super) struct Pass {
    pub number: u64,
    /// Samples that left so far.
    pub draws: u64,
    pub shards: Vec<ShardUrl>,
    names: Arc<[Arc<str>]>,
    rules: Rules,
    shared: Arc<Shared>,
    order: Vec<usize>,
    taken: usize,
    lanes: Vec<Lane>,
    turn: usize,
    /// The shard after those taken, being opened already.
    upcoming: Option<Lane>,
    waiting: Vec<Waiter>,
}

/// A sample in the shuffle buffer; without its bytes where they could not be read again after a restart.
#[derive(Debug)]
pub(super) struct Waiter {
    pub place: Place,
    pub sample: Option<ShardSample>,
}

impl Pass {
    fn new(number: u64, shards: Vec<ShardUrl>, rules: Rules, shared: Arc<Shared>) -> Self {
        let order = match rules.in_order {
            true => (0..shards.len()).collect(),
            false => permutation(rules.seed, number, shards.len()),
        };
        Self {
            number,
            draws: 0,
            names: shards.iter().map(|shard| Arc::clone(shard.name())).collect(),
            shards,
            rules,
            shared,
            order,
            taken: 0,
            lanes: Vec::new(),
            turn: 0,
            upcoming: None,
            waiting: Vec::new(),
        }
    }

    /// The beginning of a pass.
    pub(super) fn begin(number: u64, shards: Vec<ShardUrl>, rules: Rules, shared: Arc<Shared>) -> Result<Self> {
        let mut pass = Self::new(number, shards, rules, shared);
        pass.open_first_lanes()?;
        Ok(pass)
    }

    /// The pass at a checkpoint. `shards` are those of the checkpoint.
    pub(super) async fn resume(
        at: &Checkpoint,
        shards: Vec<ShardUrl>,
        rules: Rules,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let mut pass = Self::new(at.pass, shards, rules, shared);
        pass.draws = at.draws;
        pass.taken = at.taken;
        pass.turn = at.turn;
        for (number, &next) in at.lanes.iter().enumerate() {
            let mut lane = pass.open(next)?;
            lane.account = match at.accounts.get(number) {
                Some(account) => account.clone(),
                None => Account { from_byte: next.offset, ..Account::default() },
            };
            pass.lanes.push(lane);
        }
        pass.open_upcoming()?;
        pass.waiting = pass.read_again(&at.waiting).await?;
        Ok(pass)
    }

    /// The state of the pass between two samples.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            seed: self.rules.seed,
            pass: self.number,
            fingerprint: fingerprint(self.names.iter().map(|name| &**name)),
            shards: Arc::clone(&self.names),
            taken: self.taken,
            lanes: self.lanes.iter().map(|lane| lane.next).collect(),
            turn: self.turn,
            waiting: self.waiting.iter().map(|waiter| waiter.place).collect(),
            draws: self.draws,
            accounts: self.lanes.iter().map(|lane| lane.account.clone()).collect(),
        }
    }

    /// The next sample of the pass; none at its end.
    pub(super) async fn leave(&mut self) -> Result<Option<Waiter>> {
        for _ in 0..entering(self.waiting.len(), self.rules.shuffle) {
            match self.enter().await? {
                Some(waiter) => self.waiting.push(waiter),
                None => break,
            }
        }
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let chosen = leaver(self.rules.seed, self.number, self.draws, self.waiting.len());
        self.draws += 1;
        Ok(Some(self.waiting.swap_remove(chosen)))
    }

    /// The next sample of the lanes, in turn; none when all shards have ended.
    async fn enter(&mut self) -> Result<Option<Waiter>> {
        while let Some(lane) = self.lanes.get_mut(self.turn) {
            let shard = lane.next.shard;
            if let Some(trouble) = lane.account.quarantine(self.rules.max_shard_loss) {
                self.end_lane(shard, Ending::failed(trouble))?;
                continue;
            }
            match lane.reader.step().await? {
                Step::Sample(sample) => {
                    lane.next.offset = sample.end;
                    lane.account.samples += 1;
                    self.turn = (self.turn + 1) % self.lanes.len();
                    self.rules.ledger.seen(1);
                    for &notice in &sample.notices {
                        self.rules.ledger.notice(notice, 1);
                    }
                    self.rules.ledger.check()?;
                    let place = Place { shard, offset: sample.offset };
                    return Ok(Some(Waiter { place, sample: Some(sample) }));
                }
                Step::Lost(lost) => {
                    lane.account.lose(&lost);
                    self.rules.ledger.seen(u64::from(lost.key.is_some()));
                    self.lose(shard, lost);
                    self.rules.ledger.check()?;
                }
                Step::End(ending) => self.end_lane(shard, ending)?,
            }
        }
        Ok(None)
    }

    /// Accounts for the shard of the current lane and gives the lane another.
    fn end_lane(&mut self, shard: usize, ending: Ending) -> Result<()> {
        let lane = &mut self.lanes[self.turn];
        let reading = lane.reader.reading();
        let (offset, bytes) = match ending.verdict {
            Verdict::Complete => (0, reading.position()),
            Verdict::TruncatedAt(offset) => (offset, offset),
            Verdict::Failed(Reason::Quarantined) => (lane.next.offset, lane.next.offset),
            Verdict::Failed(_) => (0, 0),
        };
        let lost = ending.trouble.clone().map(|trouble| Lost { key: None, offset, trouble });
        if let Some(lost) = &lost {
            lane.account.lose(lost);
        }
        let Account { from_byte, samples, losses, .. } = std::mem::take(&mut lane.account);
        let name = &self.names[shard];
        let end = ShardEnd { from_byte, samples, losses, ..ShardEnd::new(self.number, name, &ending, bytes) };
        if let Some(index) = self.rules.ledger.index() {
            index.ended(name, &end, reading.stamp());
        }
        self.rules.ledger.shard_done(end);
        if let Some(lost) = lost {
            self.lose(shard, lost);
        }
        self.rules.ledger.check()?;
        match self.take_shard()? {
            Some(lane) => self.lanes[self.turn] = lane,
            None => {
                self.lanes.remove(self.turn);
                if self.turn == self.lanes.len() {
                    self.turn = 0;
                }
            }
        }
        Ok(())
    }

    fn open_first_lanes(&mut self) -> Result<()> {
        while self.lanes.len() < self.rules.lanes {
            match self.take_shard()? {
                Some(lane) => self.lanes.push(lane),
                None => break,
            }
        }
        Ok(())
    }

    /// The next shard of the permutation, with the one after it on its way.
    fn take_shard(&mut self) -> Result<Option<Lane>> {
        if self.upcoming.is_none() {
            self.open_upcoming()?;
        }
        let Some(lane) = self.upcoming.take() else {
            return Ok(None);
        };
        self.taken += 1;
        self.open_upcoming()?;
        Ok(Some(lane))
    }

    fn open_upcoming(&mut self) -> Result<()> {
        self.upcoming = match self.order.get(self.taken) {
            Some(&shard) => Some(self.open(Place { shard, offset: 0 })?),
            None => None,
        };
        Ok(())
    }

    fn open(&self, next: Place) -> Result<Lane> {
        let reader = Reader::open(&self.shards[next.shard], next.offset, &self.shared)?;
        Ok(Lane { next, reader, account: Account::default() })
    }

    /// Fills the shuffle buffer as it was. A sample that is no longer there leaves a gap, so that the draws stay the same.
    async fn read_again(&self, places: &[Place]) -> Result<Vec<Waiter>> {
        let mut offsets: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for place in places {
            offsets.entry(place.shard).or_default().push(place.offset);
        }
        let jobs = offsets.into_iter().map(|(shard, mut offsets)| {
            offsets.sort_unstable();
            let found = fetch(self.shards[shard].clone(), offsets, Arc::clone(&self.shared));
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
            let sample = match found.remove(&place) {
                Some(Ok(sample)) => Some(sample),
                Some(Err(trouble)) if trouble.reason.may_pass() => {
                    let shard = &self.names[place.shard];
                    return Err(Error::data(format!("cannot go on where the run was: {shard}: {trouble}"))
                        .with_hint("start again when the shard can be read: nothing is lost"));
                }
                Some(Err(trouble)) => {
                    self.lose(place.shard, Lost { key: None, offset: place.offset, trouble });
                    None
                }
                None => None,
            };
            waiting.push(Waiter { place, sample });
        }
        Ok(waiting)
    }

    fn lose(&self, shard: usize, lost: Lost) {
        if let (Some(index), Some(_)) = (self.rules.ledger.index(), &lost.key) {
            index.lost(self.number, &self.names[shard], Row::lost_at(lost.offset, lost.trouble.reason));
        }
        self.rules.ledger.lose(Loss {
            pass: self.number,
            shard: self.names[shard].to_string(),
            key: lost.key,
            offset: lost.offset,
            reason: lost.trouble.reason,
            detail: lost.trouble.detail,
        });
    }
}
