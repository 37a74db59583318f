//! A run under way: one question at a time, asked of all ranks alike.
//!
//! [`Run::go`] loops: done? a cycle due? a snapshot due? else train on the next block. What depends on one rank alone (whether somebody
//! asked it to stop, whether its batch has come) is put to the vote first ([`Ballot`]), so that all ranks do the same things in the same
//! order. In a world of one a vote costs nothing.

use super::by_name;
use super::feed::{Feed, FeedPlan, Filters, Polled};
use super::ranks::{self, Ballot, Passes, reports_of_all, share_of, summed};
use super::run_folder;
use super::saving::{Saving, Writer};
use super::stop::Stop;
use crate::batch::Standing;
use crate::cluster::assignments::{self, Assignments};
use crate::config::{Plan, Refresh};
use crate::decode::CenterCrops;
use crate::error::{Error, Result};
use crate::ingest::{self, Cursor, Past};
use crate::observe::{Activity, CollapseWatch, Live, Meters, Observer, Report, Stage};
use crate::shards::{Ledger, ShardList};
use crate::torch::device::Placement;
use crate::train::Trainer;
use crate::train::progress::Times;
use crate::train::record::{AlarmRecord, CycleRecord, Record, SnapshotRecord};
use crate::train::upload::{DeviceBatch, Uploader};
use crate::world::{World, hostname};
use std::cell::LazyCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Between two looks of a run that stands still.
const PAUSE: Duration = Duration::from_millis(100);

/// A run in flight.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) world: World,
    pub(super) placement: &'a Placement,
    pub(super) folder: PathBuf,
    pub(super) list: ShardList,
    pub(super) runtime: &'a Runtime,
    pub(super) stop: Stop,
    pub(super) ledger: Arc<Ledger>,
    /// Losses of ranks of earlier sessions that are no more.
    pub(super) lost_before: BTreeMap<String, u64>,
    pub(super) trainer: Trainer,
    pub(super) snapshots: Arc<Writer>,
    pub(super) saving: Option<Saving>,
    pub(super) feed: Feed,
    pub(super) uploader: Uploader,
    pub(super) activity: Arc<Activity>,
    pub(super) live: Arc<Live>,
    pub(super) meters: Option<Arc<Meters>>,
    pub(super) collapse: CollapseWatch,
    pub(super) observer: Observer,
    /// The stream up to the last batch that the trainer took.
    pub(super) standing: Standing,
    /// How long the block at hand was waited for.
    pub(super) waited: Duration,
    /// How long this process has waited for batches of its own, without what it waited for other ranks.
    pub(super) waited_for_own: Duration,
    pub(super) snapshot_step: u64,
    /// Steps of the newest snapshots, but for those of an earlier process, and where each stands in the stream.
    pub(super) kept: VecDeque<(u64, Cursor)>,
}

impl Run<'_> {
    /// Trains until it is done or asked to stop.
    pub(super) fn go(&mut self) -> Result<()> {
        loop {
            if self.is_done() {
                self.record_steps()?;
                if self.trainer.progress().step > self.snapshot_step {
                    self.snapshot()?;
                }
                self.finish_snapshot()?;
                return Ok(());
            }
            if self.trainer.cycle_due(None) && !self.cluster(self.trainer.progress().pass)? {
                return self.leave();
            }
            if self.trainer.beside_due() {
                self.activity.enter(Stage::Cluster, "waiting for the clustering beside");
                let found = self.trainer.finish_beside()?;
                self.tell_cycle(found)?;
            }
            if self.snapshot_due() {
                self.snapshot()?;
            }
            let Some((block, pass)) = self.next_block()? else { return self.leave() };
            if self.trainer.cycle_due(Some(pass)) && !self.cluster(pass)? {
                return self.leave();
            }
            self.take(block)?;
        }
    }

    /// Keeps everything, and says that somebody asked to stop.
    fn leave(&mut self) -> Result<()> {
        self.snapshot()?;
        Err(Error::Interrupted { snapshot: self.finish_snapshot()? })
    }

    /// Ends its stages; what is left can sum it up.
    pub(super) fn into_observer(self) -> Observer {
        self.observer
    }

    fn is_done(&self) -> bool {
        self.plan.train.steps > 0 && self.trainer.progress().step >= self.plan.train.steps
    }

    /// The batches of the next block on the device, and the highest pass that any rank has in it; `None` once somebody asked to stop.
    fn next_block(&mut self) -> Result<Option<(Vec<DeviceBatch>, u64)>> {
        let _span = tracing::debug_span!("wait").entered();
        let wanted = if self.trainer.has_labels() { self.trainer.block_len() } else { 1 };
        let mut block = Vec::with_capacity(wanted);
        self.waited = Duration::ZERO;
        self.activity.enter(Stage::Wait, "");
        let passes = loop {
            let started = Instant::now();
            if !self.live.controls.is_paused() {
                self.fill_block(&mut block, wanted)?;
            }
            let waits_for = (block.len() < wanted).then(|| self.world.rank());
            let agreed = Ballot { waits_for, ..self.ballot(&block) }.agree(&self.world)?;
            self.waited += started.elapsed();
            if agreed.stop {
                return Ok(None);
            }
            if agreed.snapshot && self.trainer.progress().step > self.snapshot_step {
                self.snapshot()?;
                self.activity.enter(Stage::Wait, "");
            }
            if self.saving.as_ref().is_some_and(Saving::is_done) {
                self.finish_snapshot()?;
            }
            if agreed.pause {
                self.stand_still();
                continue;
            }
            let Some(waited_for) = agreed.waits_for else { break agreed.passes };
            if waits_for.is_none() {
                self.activity.enter(Stage::Wait, format!("for a batch of rank {waited_for}"));
            }
        };
        self.trainer.interval_mut().times.wait += self.waited;
        Ok(Some((block, passes.highest)))
    }

    /// Takes what batches there are, up to `wanted` of them, without waiting for long.
    fn fill_block(&mut self, block: &mut Vec<DeviceBatch>, wanted: usize) -> Result<()> {
        let started = Instant::now();
        while block.len() < wanted && !self.stop.is_requested() {
            match self.feed.poll()? {
                Polled::Batch(batch) => block.push(self.uploader.upload(*batch)?),
                Polled::Nothing => break,
                Polled::End => return Err(Error::data("the endless stream of samples has ended")),
            }
        }
        self.waited_for_own += started.elapsed();
        Ok(())
    }

    /// What this rank wants, beside the batches that it has.
    fn ballot(&self, block: &[DeviceBatch]) -> Ballot {
        Ballot {
            stop: self.stop.is_requested(),
            pause: self.live.controls.is_paused(),
            snapshot: self.live.controls.take_snapshot() || self.snapshot_is_overdue(),
            passes: Passes::of(block),
            ..Ballot::default()
        }
    }

    fn stand_still(&mut self) {
        let started = Instant::now();
        self.activity.enter(Stage::Pause, "until somebody lets it go on at the page");
        std::thread::sleep(PAUSE);
        self.trainer.interval_mut().skip(started.elapsed());
    }

    /// Gives a block to the trainer: for the bank before the first clustering, to train on after it.
    fn take(&mut self, mut block: Vec<DeviceBatch>) -> Result<()> {
        let before = self.trainer.progress().step;
        let times_before = self.trainer.interval_mut().times;
        if !self.trainer.has_labels() {
            self.activity.enter(Stage::Assign, "for the bank");
            for batch in &block {
                self.trainer.fill(batch)?;
            }
            let (rows, capacity) = (self.trainer.bank().len(), self.plan.bank.capacity);
            self.observer.note(&format!("filling the bank for the first clustering: {rows} of {capacity} rows"));
        } else {
            self.activity.enter(Stage::Train, "");
            let _span = tracing::debug_span!("train", step = before, steps = block.len()).entered();
            self.trainer.train(&block)?;
            let steps = self.trainer.progress().step - before;
            let spent = Times { wait: self.waited, ..self.trainer.interval_mut().times.since(&times_before) };
            self.meters.iter().for_each(|meters| meters.steps(spent, steps));
        }
        for batch in &mut block {
            self.standing.advance(std::mem::take(&mut batch.end));
        }
        drop(block);
        self.activity.tick();
        let every = self.plan.observe.every_steps.max(1);
        if self.trainer.progress().step / every > before / every {
            self.record_steps()?;
        }
        Ok(())
    }

    fn record_steps(&mut self) -> Result<()> {
        if self.trainer.progress().steps == 0 && self.trainer.interval_mut().is_empty() {
            return Ok(());
        }
        let (losses, filtered) = self.hear_ranks()?;
        let (mut record, labels) = self.trainer.close_interval(losses, filtered)?;
        record.pass_share = self.feed.sources().progress.share_of(record.pass);
        let step = record.step;
        self.observer.record(&Record::Step(record))?;
        let Some(collapse) = self.collapse.labels(labels.iter().map(|label| *label as u32)) else { return Ok(()) };
        let message = collapse.message();
        self.observer.record(&Record::Alarm(AlarmRecord {
            step,
            alarm: "collapse".into(),
            message: message.clone(),
        }))?;
        if self.plan.observe.collapse_stop {
            return Err(Error::data(message).with_hint("observe.collapse_stop = false goes on all the same"));
        }
        Ok(())
    }

    /// Hears what each rank says of itself; samples of all of them that were lost, and passed over, so far.
    pub(super) fn hear_ranks(&mut self) -> Result<(BTreeMap<String, u64>, BTreeMap<String, u64>)> {
        let own = Report {
            host: hostname(),
            losses: summed([&by_name(&self.ledger.losses()), &self.lost_before].into_iter()),
            filtered: by_name(&self.standing.filtered),
            totals: self.live.totals(),
            waited_s: self.waited_for_own.as_secs_f64(),
            shards: self.live.sources().progress.lane_words(),
        };
        let reports = reports_of_all(&self.world, own)?;
        let losses = summed(reports.iter().map(|report| &report.losses));
        let filtered = summed(reports.iter().map(|report| &report.filtered));
        self.live.hear(reports);
        Ok((losses, filtered))
    }

    /// One cycle. `false` if somebody asked to stop before its end.
    fn cluster(&mut self, next_pass: u64) -> Result<bool> {
        let _span = tracing::debug_span!("cycle", step = self.trainer.progress().step).entered();
        let started = Instant::now();
        self.activity.enter(Stage::Encode, "nothing yet");
        let complete = tracing::debug_span!("encode").in_scope(|| match self.plan.cluster.refresh {
            Refresh::Refill => self.refill(),
            Refresh::Rolling => Ok(true),
            Refresh::Full => self.encode_list(next_pass),
        })?;
        if !complete {
            self.trainer.begin_refresh(); // half of an encoding is worth nothing, and a snapshot need not hold it
            return Ok(false);
        }
        let _span =
            tracing::debug_span!("cluster", rows = self.trainer.bank().len(), k = self.plan.cluster.k).entered();
        self.activity.enter(Stage::Cluster, format!("{} rows into {}", self.trainer.bank().len(), self.plan.cluster.k));
        if self.plan.cluster.overlap && self.trainer.clustering().is_some() {
            self.trainer.begin_beside(next_pass, started)?;
        } else {
            let found = self.trainer.cluster(next_pass, started)?;
            self.tell_cycle(found)?;
        }
        Ok(true)
    }

    fn tell_cycle(&mut self, (record, found): (CycleRecord, Assignments)) -> Result<()> {
        if self.world.is_first() {
            found.write(&run_folder::clusters(&self.folder)?.join(assignments::file_name(record.step)))?;
        }
        self.collapse.clustered(&record.sizes);
        self.observer.record(&Record::Cycle(record))
    }

    /// Encodes the next `bank.capacity` samples of the stream with the student, or a whole pass where the list is shorter.
    /// `false` if somebody asked to stop before its end; the stream then goes on from where it was.
    fn refill(&mut self) -> Result<bool> {
        let mut ends = Vec::new();
        let mut taken = 0;
        let mut first_pass = None;
        self.trainer.begin_refresh();
        while taken < self.plan.bank.capacity {
            let mut block = Vec::with_capacity(1);
            let agreed = loop {
                self.fill_block(&mut block, 1)?;
                let (stop, passes) = (self.stop.is_requested(), Passes::of(&block));
                let waits_for = block.is_empty().then(|| self.world.rank());
                let agreed = Ballot { stop, passes, waits_for, ..Ballot::default() }.agree(&self.world)?;
                if agreed.stop || agreed.waits_for.is_none() {
                    break agreed;
                }
            };
            if agreed.stop {
                return Ok(false);
            }
            for batch in block {
                self.trainer.refill(&batch)?;
                ends.push(batch.end.clone());
            }
            taken += self.plan.train.batch_size;
            self.show_encoding(taken);
            let first = *first_pass.get_or_insert(agreed.passes.lowest);
            // lists that are mixed have passes of their own, which say nothing of the whole
            let is_one_list = self.plan.stream.weights.is_empty();
            if is_one_list && agreed.passes.highest_of_slowest > first + 1 {
                break; // the pass after the first is in, all of it
            }
        }
        ends.into_iter().for_each(|end| self.standing.advance(end));
        Ok(true)
    }

    fn show_encoding(&mut self, images: usize) {
        let text = format!("{images} of {} images", self.plan.bank.capacity);
        self.observer.note(&format!("{}: {text}", Stage::Encode.doing()));
        self.activity.enter(Stage::Encode, text);
        self.activity.tick();
    }

    /// Encodes every sample of the list, once, with the student, while training is in `pass`. `false` if somebody asked to stop
    /// before its end.
    fn encode_list(&mut self, pass: u64) -> Result<bool> {
        match self.list.reload() {
            Ok(list) => self.list = list,
            Err(error) => tracing::warn!("the list cannot be read again, the old one is kept: {error}"),
        }
        ranks::see_one_list(&self.world, self.plan, &self.list)?;
        let feed_plan = FeedPlan {
            passes: ingest::Passes::Once,
            start: Cursor::default(),
            batch_size: self.trainer.own_batch(),
            center_views: Some(CenterCrops::Middle),
            train_views: false,
            held: 1,
            share: share_of(&self.world)?,
            // what is a duplicate depends on the order, and this one is not that of training
            filters: Filters::Alone,
        };
        let ledger = Arc::new(self.ledger.for_encoding(pass, self.trainer.progress().step));
        let mut feed =
            Feed::open(self.runtime.handle(), self.plan, self.placement, self.list.clone(), &ledger, feed_plan)?;
        let _watched = self.live.watch(feed.sources().clone());
        let mut uploader = Uploader::new(self.placement.device);
        self.trainer.begin_refresh();
        let (mut batch, mut ended) = (None, false);
        loop {
            if batch.is_none() && !ended {
                let started = Instant::now();
                match feed.poll()? {
                    Polled::Batch(found) => batch = Some(uploader.upload(*found)?),
                    Polled::End => ended = true,
                    Polled::Nothing => {}
                }
                self.waited_for_own += started.elapsed();
            }
            let waits_for = (batch.is_none() && !ended).then(|| self.world.rank());
            let ballot = Ballot { stop: self.stop.is_requested(), waits_for, goes_on: !ended, ..Ballot::default() };
            let agreed = ballot.agree(&self.world)?;
            if agreed.stop {
                return Ok(false);
            }
            if !agreed.goes_on {
                return Ok(true);
            }
            // Parts of the list are not equally long: who has come to the end waits for the others by encoding nothing.
            if agreed.waits_for.is_none() {
                self.trainer.refresh(batch.take().as_ref())?;
                self.show_encoding(self.trainer.bank().len());
            }
        }
    }

    fn snapshot_due(&self) -> bool {
        let every = self.plan.snapshot.every_steps;
        let step = self.trainer.progress().step;
        step > self.snapshot_step && every > 0 && step / every > self.snapshot_step / every
    }

    /// Whether the clock of this rank says so: that of rank 0 counts.
    fn snapshot_is_overdue(&self) -> bool {
        let minutes = self.plan.snapshot.every_minutes;
        let has_trained = self.trainer.progress().step > self.snapshot_step;
        let is_late = || self.live.snapshot_age() > Duration::from_secs_f64(minutes * 60.0);
        self.world.is_first() && minutes > 0.0 && has_trained && is_late()
    }

    /// Begins to write a snapshot, once the one before is on disk.
    fn snapshot(&mut self) -> Result<()> {
        self.activity.enter(Stage::Snapshot, "");
        let _span = tracing::debug_span!("snapshot", step = self.trainer.progress().step).entered();
        let started = Instant::now();
        self.finish_snapshot()?;
        self.world.meet()?; // the one before may take its time
        let step = self.trainer.progress().step;
        let saved = self.trainer.capture(&self.standing)?;
        let mut saving = Saving::begin(&self.snapshots, step, self.standing.cursor.clone(), saved)?;
        self.snapshot_step = step;
        self.live.snapshot_begins();
        saving.stood = started.elapsed();
        self.trainer.interval_mut().skip(saving.stood);
        self.saving = Some(saving);
        Ok(())
    }

    /// Waits for the snapshot that is being written, if there is one, and tells of it.
    fn finish_snapshot(&mut self) -> Result<Option<PathBuf>> {
        let Some(saving) = self.saving.take() else { return Ok(None) };
        let (step, cursor, stood) = (saving.step, saving.cursor.clone(), saving.stood);
        let info = saving.finish()?;
        self.settle_ledger(step, cursor);
        self.observer.record(&Record::Snapshot(SnapshotRecord {
            step,
            path: info.relative,
            bytes: info.bytes,
            seconds: info.took.as_secs_f64(),
            stood_s: stood.as_secs_f64(),
        }))?;
        Ok(Some(info.path))
    }

    /// Folds what no kept snapshot will read again, once all that are kept are of this process. Only where each of them is damaged
    /// does a run go back further (to one of `snapshot.keep_every`), and counts losses since then a second time.
    fn settle_ledger(&mut self, step: u64, cursor: Cursor) {
        self.kept.pop_back_if(|(last, _)| *last == step);
        self.kept.push_back((step, cursor));
        if self.kept.len() < self.plan.snapshot.keep_last.max(1) {
            return;
        }
        if let Some((oldest, cursor)) = self.kept.pop_front() {
            let past = LazyCell::new(|| Past::of(&cursor));
            self.ledger.settle(|entry| past.holds(entry) || entry.encoding().is_some_and(|step| step < oldest));
        }
    }

    /// The last one that is whole.
    pub(super) fn last_snapshot(&self) -> Option<PathBuf> {
        self.snapshots.latest()
    }
}
