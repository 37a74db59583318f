//! One pass over a list: every sample of every shard once, in an order that the seed and the pass number fix.
//!
//! The shards stand in a permutation, of which a rank has its portions (`share.rs`). `lanes` of them are open and give one
//! sample each in turn; a lane whose portion ends takes the next one, which is being opened already. Samples wait in the
//! shuffle buffer until a draw lets them go; at the end of the pass the buffer empties. In the order of arrival
//! (`pass/arrival.rs`) the lane that has a sample gives it, and late ones are passed over.
//!
//! A pass over a list that is followed ends only with the run: its order grows as shards appear.

mod again;
mod arrival;

use super::account::Account;
use super::buffer::{Buffer, Waiter};
use super::cursor::{Place, Point};
use super::lane::{Lane, Shared};
use super::share::{Portion, Share, deal, shared};
use super::shuffle::permutation;
use super::stream::Passes;
use super::trail::Log;
use crate::config::{Order, StreamPlan};
use crate::error::Result;
use crate::shards::index::{Part, Row, Stamp};
use crate::shards::ledger::ShardEnd;
use crate::shards::sample::{Lost, Step};
use crate::shards::{Ending, Ledger, Loss, Reason, SampleId, ShardUrl, Trouble, Verdict, fingerprint};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const MIB: usize = 1024 * 1024;

/// What stays the same from pass to pass.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub seed: u64,
    pub lanes: usize,
    /// Samples in the shuffle buffer,
    pub shuffle: usize,
    /// and bytes.
    pub shuffle_bytes: usize,
    pub share: Share,
    pub in_order: bool,
    pub by_arrival: bool,
    /// Whether the list grows within the pass.
    pub follows: bool,
    pub max_shard_loss: f64,
    pub ledger: Arc<Ledger>,
}

impl Rules {
    pub(super) fn new(plan: &StreamPlan, passes: Passes, share: Share, ledger: Arc<Ledger>) -> Self {
        let is_endless = passes == Passes::Endless;
        Self {
            seed: plan.seed,
            lanes: if is_endless { plan.lanes.max(1) } else { 1 },
            shuffle: if is_endless { plan.shuffle } else { 0 },
            shuffle_bytes: match plan.shuffle_mib {
                0 => usize::MAX,
                mib => mib.saturating_mul(MIB),
            },
            share,
            in_order: !is_endless,
            by_arrival: is_endless && plan.order == Order::Arrival,
            follows: is_endless && plan.follow,
            max_shard_loss: plan.max_shard_loss,
            ledger,
        }
    }

    /// Shards open at once at most.
    pub(super) fn most_open(&self) -> usize {
        match self.by_arrival {
            true => 2 * self.lanes,
            false => self.lanes,
        }
    }

    /// The portions of a pass over so many shards.
    pub(super) fn order(&self, pass: u64, shards: usize) -> Vec<Portion> {
        let order: Vec<usize> = match self.in_order {
            true => (0..shards).collect(),
            false => permutation(self.seed, pass, shards),
        };
        deal(&order, pass, self.share, self.lanes)
    }

    /// The portion of a shard that appeared in a list that is followed: all ranks share each.
    pub(super) fn appeared(&self, shard: usize, name: &str) -> Portion {
        shared(shard, self.share.rank(), self.share.world(), SampleId::of(name, 0).0)
    }
}

/// One pass over a list.
#[derive(Debug)]
pub(super) struct Pass {
    pub number: u64,
    /// Samples that left so far.
    pub draws: u64,
    pub shards: Vec<ShardUrl>,
    pub buffer: Buffer,
    /// Passes dealt anew that come before the next ordinary one.
    pub later: VecDeque<Point>,
    names: Arc<[Arc<str>]>,
    fingerprint: String,
    rules: Rules,
    shared: Arc<Shared>,
    order: Arc<[Portion]>,
    /// Whether the order is another than the rules give.
    is_own_order: bool,
    taken: usize,
    lanes: Vec<Lane>,
    turn: usize,
    /// The portion after those taken, being opened already.
    upcoming: Option<Lane>,
    /// Whether something was lost with which a restart would go another way: what may be there again by then, and shards that are
    /// other ones than before.
    met_passing: bool,
    /// Versions of the shards that gave samples, by number.
    stamps: BTreeMap<usize, Stamp>,
    /// Samples of portions that ended before a restart, by number.
    ended: BTreeMap<usize, u64>,
    /// Since this was last asked: shards that began, with their versions, and portions that ended, with how many samples they
    /// gave.
    begun: Vec<(usize, Stamp)>,
    over: Vec<(usize, u64)>,
}

impl Pass {
    fn new(number: u64, shards: Vec<ShardUrl>, order: Arc<[Portion]>, rules: Rules, shared: Arc<Shared>) -> Self {
        let mut pass = Self {
            number,
            draws: 0,
            shards,
            buffer: Buffer::default(),
            later: VecDeque::new(),
            names: Arc::default(),
            fingerprint: String::new(),
            is_own_order: rules.follows,
            rules,
            shared,
            order,
            taken: 0,
            lanes: Vec::new(),
            turn: 0,
            upcoming: None,
            met_passing: false,
            stamps: BTreeMap::new(),
            ended: BTreeMap::new(),
            begun: Vec::new(),
            over: Vec::new(),
        };
        pass.take_names();
        pass
    }

    fn take_names(&mut self) {
        self.names = self.shards.iter().map(|shard| Arc::clone(shard.name())).collect();
        self.fingerprint = fingerprint(self.names.iter().map(|name| &**name));
    }

    /// The beginning of a pass.
    pub(super) fn begin(number: u64, shards: Vec<ShardUrl>, rules: Rules, shared: Arc<Shared>) -> Result<Self> {
        if rules.follows {
            let mut pass = Self::new(number, Vec::new(), Arc::default(), rules, Arc::clone(&shared));
            pass.grow(shards, shared)?;
            return Ok(pass);
        }
        let order = rules.order(number, shards.len()).into();
        let mut pass = Self::new(number, shards, order, rules, shared);
        pass.open_first_lanes()?;
        Ok(pass)
    }

    /// The pass at a point. `shards` are those of the point.
    pub(super) async fn resume(at: &Point, shards: Vec<ShardUrl>, rules: Rules, shared: Arc<Shared>) -> Result<Self> {
        let order = match &at.order {
            Some(order) => Arc::clone(order),
            None => rules.order(at.pass, shards.len()).into(),
        };
        at.check(&order)?;
        let mut pass = Self::new(at.pass, shards, order, rules, shared);
        pass.is_own_order = at.order.is_some();
        pass.draws = at.draws;
        pass.taken = at.taken;
        pass.turn = at.turn;
        pass.later = at.later.clone();
        pass.stamps = at.stamps.clone();
        pass.ended = at.ended.clone();
        for (spot, account) in at.lanes.iter().zip(&at.accounts) {
            let rest = pass.order[spot.number as usize].after(spot.offset, spot.ordinal);
            let lane = pass.open(spot.number, rest)?;
            pass.lanes.push(Lane { account: account.clone(), ..lane });
        }
        pass.buffer = pass.read_again(&at.waiting).await?;
        pass.open_first_lanes()?;
        if pass.upcoming.is_none() {
            pass.open_upcoming()?;
        }
        Ok(pass)
    }

    /// The state of the pass between two samples.
    pub(super) fn point(&self) -> Point {
        Point {
            pass: self.number,
            fingerprint: self.fingerprint.clone(),
            shards: Arc::clone(&self.names),
            order: self.is_own_order.then(|| Arc::clone(&self.order)),
            taken: self.taken,
            lanes: self.lanes.iter().map(Lane::spot).collect(),
            accounts: self.lanes.iter().map(|lane| lane.account_at_spot().clone()).collect(),
            turn: self.turn,
            waiting: self.buffer.places(),
            stamps: self.stamps_in_use(),
            ended: BTreeMap::new(),
            draws: self.draws,
            later: self.later.clone(),
        }
    }

    /// Whether it is what other ranks had left of a pass.
    pub(super) fn is_remainder(&self) -> bool {
        self.is_own_order && !self.rules.follows
    }

    /// Portions of the pass that have not been read to their end.
    pub(super) fn rest(&self) -> Vec<Portion> {
        let open = self.lanes.iter().map(|lane| lane.rest);
        open.chain(self.order[self.taken..].iter().copied()).collect()
    }

    /// Whether a lane is free for which there is no shard.
    pub(super) fn is_short_of_shards(&self) -> bool {
        self.taken == self.order.len() && self.lanes.len() < self.rules.lanes
    }

    /// Adds shards that appeared in a list that is followed.
    pub(super) fn grow(&mut self, new: Vec<ShardUrl>, shared: Arc<Shared>) -> Result<()> {
        let before = self.shards.len();
        let mut order = self.order.to_vec();
        for position in permutation(self.rules.seed, before as u64, new.len()) {
            order.push(self.rules.appeared(before + position, new[position].name()));
        }
        self.order = order.into();
        self.shards.extend(new);
        self.take_names();
        self.shared = shared;
        self.open_first_lanes()
    }

    /// The next sample of the pass; none at its end.
    pub(super) async fn leave(&mut self, log: &mut Log) -> Result<Option<Waiter>> {
        match self.rules.by_arrival {
            false => self.fill_in_turn(log.is_again()).await?,
            true if log.is_going_over() => self.fill_as_before(log).await?,
            true => self.fill_by_arrival(log).await?,
        }
        let leaver = self.buffer.leave(self.rules.seed, self.number, self.draws);
        self.draws += u64::from(leaver.is_some());
        Ok(leaver)
    }

    /// Whether, since this was last asked, something was lost with which a restart would go another way.
    pub(super) fn take_passing(&mut self) -> bool {
        std::mem::take(&mut self.met_passing)
    }

    async fn fill_in_turn(&mut self, is_again: bool) -> Result<()> {
        for _ in 0..self.buffer.entering(self.rules.shuffle) {
            if !self.buffer.has_room(self.rules.shuffle_bytes) {
                break;
            }
            match self.enter(is_again).await? {
                Some(waiter) => self.buffer.push(waiter),
                None => break,
            }
        }
        Ok(())
    }

    /// The next sample of the lanes, in turn; none when all portions have ended. Again after a restart, no shard may fail.
    async fn enter(&mut self, is_again: bool) -> Result<Option<Waiter>> {
        while let Some(lane) = self.lanes.get_mut(self.turn) {
            let shard = lane.rest.shard;
            if lane.changed.is_some() {
                // each of its samples that came before the restart is a gap, so that the draws stay the same
                if self.ended.get(&(lane.number as usize)).is_some_and(|&samples| lane.given() >= samples) {
                    self.end_changed(self.turn)?;
                    continue;
                }
                lane.gaps += 1;
                self.turn = (self.turn + 1) % self.lanes.len();
                return Ok(Some(Waiter::gap(shard)));
            }
            let (step, ordinal) = lane.reader.step().await?;
            if is_again && let Some(trouble) = passing(&step) {
                return Err(self.cannot_go_on(shard, trouble));
            }
            if let Step::End(ending) = &step
                && is_again
                && ending.verdict == Verdict::Failed(Reason::ShardChanged)
            {
                lane.changed = Some(ending.clone());
                continue;
            }
            if let Some(waiter) = self.take_step(self.turn, step, ordinal)? {
                return Ok(Some(waiter));
            }
        }
        Ok(None)
    }

    /// Accounts for a step of a lane; gives the sample, where it is one.
    fn take_step(&mut self, index: usize, step: Step, ordinal: u64) -> Result<Option<Waiter>> {
        self.met_passing |= passing(&step).is_some();
        let lane = &mut self.lanes[index];
        let shard = lane.rest.shard;
        match step {
            Step::Sample(sample) => {
                if lane.rest.offset == 0 {
                    self.begun.extend(lane.stamp().map(|stamp| (shard, stamp.clone())));
                }
                lane.rest = lane.rest.after(sample.end, ordinal + 1);
                lane.account.samples += 1;
                lane.account_before = None;
                if self.rules.ledger.index().is_some() {
                    lane.offsets.insert(sample.offset);
                }
                self.turn = (index + 1) % self.lanes.len();
                self.rules.ledger.seen(1);
                for &notice in &sample.notices {
                    self.rules.ledger.notice(notice, 1);
                }
                self.rules.ledger.check()?;
                let place = Place { shard, offset: sample.offset };
                return Ok(Some(Waiter { place, sample: Some(sample) }));
            }
            Step::Lost(lost) => {
                lane.account_before.get_or_insert_with(|| lane.account.clone());
                lane.account.lose(&lost);
                if lost.key.is_some() && self.rules.ledger.index().is_some() {
                    lane.offsets.insert(lost.offset);
                }
                let quarantine = lane.account.quarantine(self.rules.max_shard_loss);
                self.rules.ledger.seen(u64::from(lost.key.is_some()));
                self.lose(shard, lost);
                self.rules.ledger.check()?;
                if let Some(trouble) = quarantine {
                    self.end_lane(index, shard, Ending::failed(trouble))?;
                }
            }
            Step::End(ending) => self.end_lane(index, shard, ending)?,
        }
        Ok(None)
    }

    /// Accounts for the shard of a lane and gives the lane another.
    fn end_lane(&mut self, index: usize, shard: usize, ending: Ending) -> Result<()> {
        self.met_passing |= ending.verdict == Verdict::Failed(Reason::ShardChanged);
        let lane = &mut self.lanes[index];
        if let Some(stamp) = lane.stamp() {
            self.stamps.insert(shard, stamp.clone());
            self.over.push((lane.number as usize, lane.given()));
        }
        let reading = lane.reader.reading();
        let (offset, bytes) = match ending.verdict {
            Verdict::Complete => (0, reading.position()),
            Verdict::TruncatedAt(offset) => (offset, offset),
            Verdict::Failed(Reason::Quarantined) => (lane.rest.offset, lane.rest.offset),
            Verdict::Failed(_) => (0, 0),
        };
        let lost = ending.trouble.clone().map(|trouble| Lost { key: None, offset, trouble });
        if let Some(lost) = &lost {
            lane.account.lose(lost);
        }
        let Account { from_byte, samples, losses, .. } = std::mem::take(&mut lane.account);
        let (name, parts) = (&self.names[shard], lane.rest.every);
        let end = ShardEnd { from_byte, parts, samples, losses, ..ShardEnd::new(self.number, name, &ending, bytes) };
        if let Some(index) = self.rules.ledger.index() {
            let (part, offsets) = (Part { member: lane.rest.member, of: parts }, std::mem::take(&mut lane.offsets));
            index.ended(name, &end, offsets, reading.stamp().filter(|_| lane.opened_at == 0), part);
        }
        self.rules.ledger.shard_done(end);
        if let Some(lost) = lost {
            self.lose(shard, lost);
        }
        self.rules.ledger.check()?;
        // in the order of arrival it depends on the others whether there is room for another
        let next = if self.rules.by_arrival { None } else { self.take_portion()? };
        match next {
            Some(lane) => self.lanes[index] = lane,
            None => self.remove_lane(index),
        }
        Ok(())
    }

    fn remove_lane(&mut self, index: usize) {
        self.lanes.remove(index);
        if index < self.turn {
            self.turn -= 1;
        }
        if self.turn == self.lanes.len() {
            self.turn = 0;
        }
    }

    fn open_first_lanes(&mut self) -> Result<()> {
        while self.lanes.len() < self.rules.lanes {
            match self.take_portion()? {
                Some(lane) => self.lanes.push(lane),
                None => break,
            }
        }
        Ok(())
    }

    /// The next portion of the order, with the one after it on its way.
    fn take_portion(&mut self) -> Result<Option<Lane>> {
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
            Some(&portion) => Some(self.open(self.taken as u32, portion)?),
            None => None,
        };
        Ok(())
    }

    fn open(&self, number: u32, rest: Portion) -> Result<Lane> {
        let version_before = self.stamps.get(&rest.shard).cloned();
        Lane::open(number, rest, &self.shards[rest.shard], version_before, &self.shared)
    }

    fn lose(&self, shard: usize, lost: Lost) {
        if let (Some(index), Some(_)) = (self.rules.ledger.index(), &lost.key) {
            index.heard(self.number, &self.names[shard], Row::lost_at(lost.offset, lost.trouble.reason));
        }
        self.rules.ledger.lose(Loss {
            pass: self.number,
            shard: self.names[shard].to_string(),
            key: lost.key,
            offset: lost.offset,
            reason: lost.trouble.reason,
            detail: lost.trouble.detail,
            encoding: None,
        });
    }
}

/// What keeps a shard from giving what it has, if that may have passed by another start.
fn passing(step: &Step) -> Option<&Trouble> {
    let trouble = match step {
        Step::Sample(_) => None,
        Step::Lost(lost) => Some(&lost.trouble),
        Step::End(ending) => ending.trouble.as_ref(),
    };
    trouble.filter(|trouble| trouble.reason.may_pass())
}
