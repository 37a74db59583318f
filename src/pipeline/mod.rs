//! The whole drawing, joined: shards → ingest → decode → batch → train ⇄ cluster, with snapshots and observers beside.
//!
//! [`pretrain`] opens or resumes a run and then loops over one question at a time: asked to stop? done? a cycle due? a
//! snapshot due? else train on the next block. The trainer runs on the calling thread; everything left of it runs in
//! [`feed::Feed`].
//!
//! What can go wrong: everything that a stage reports; the first error ends the run, and what the last snapshot holds is
//! kept.

mod classes;
pub mod encode;
pub mod feed;
pub mod find;
pub mod gather;
mod guard;
pub mod probing;
pub mod run_folder;
mod saving;
pub mod stop;
pub mod used;
mod watchers;

use crate::batch::Standing;
use crate::cluster::assignments::{self, Assignments};
use crate::config::{Indexing, Plan, Precision, Refresh};
use crate::decode::CenterCrops;
use crate::error::{Error, Result};
use crate::ingest::{Cursor, Passes, Past};
use crate::observe::console::say;
use crate::observe::{Activity, Baseline, CollapseWatch, Controls, Hardware, Live, Meters, Observer, Stage, Summary};
use crate::shards::index::{Collector, Index};
use crate::shards::{Ledger, ShardList};
use crate::snapshot::Store;
use crate::torch::device::{Placement, place, set_threads};
use crate::train::Trainer;
use crate::train::progress::Times;
use crate::train::record::{AlarmRecord, CycleRecord, Record, SnapshotRecord};
use crate::train::upload::{DeviceBatch, Uploader};
use feed::{Feed, FeedPlan, Filters, Next};
use saving::Saving;
use std::cell::LazyCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stop::Stop;
use tch::Device;
use tokio::runtime::Runtime;
use watchers::Watchers;

/// Starts the run in `folder`, or goes on with the one that is there, until it is done or asked to stop.
///
/// `bar` shows a progress bar where stderr is a terminal.
///
/// # Errors
/// [`Error::Interrupted`] after Ctrl-C or SIGTERM, with the snapshot that was written.
pub fn pretrain(plan: &Plan, folder: &Path, bar: bool) -> Result<Summary> {
    let store = Store::open(folder, &plan.snapshot)?;
    let mut plan = classes::of_run(plan, folder)?;
    run_folder::settle_plan(&plan, folder)?;
    let placement = place(&plan.device)?;
    set_threads(&placement);
    tracing::info!("device {:?}: {}", placement.device, placement.reason);
    let list = ShardList::parse_with(&plan.stream.shards, &plan.fetch)?;
    if list.duplicates > 0 {
        tracing::warn!("{} shards are named more than once, and read once", list.duplicates);
    }
    let runtime = start_runtime()?;
    let stop = Stop::default();
    stop.on_signals(runtime.handle())?;
    if classes::are_unknown(&plan) {
        plan.train.classes = classes::count(&plan, &list, &runtime, &stop)?;
        run_folder::settle_plan(&plan, folder)?;
    }
    let plan = &plan;

    let mut ledger = Ledger::open(&folder.join("ledger.jsonl"), &plan.stream)?;
    if plan.stream.index == Indexing::Auto {
        ledger = ledger.with_index(Collector::new(Index::new(folder.join("index"))));
    }
    let ledger = Arc::new(ledger);
    let mut trainer = Trainer::new(plan, &placement)?;
    let resumed = match store.latest()? {
        Some(snapshot) => Some(trainer.restore(&snapshot.path)?),
        None => None,
    };
    let progress = resumed.is_some().then(|| trainer.progress());
    let mut observer = Observer::open(folder, plan, progress, bar)?;
    if let Some(progress) = progress {
        tracing::info!("{} goes on at step {}", folder.display(), progress.step);
    }
    let standing = resumed.unwrap_or_else(|| Standing::new(&plan.filter));
    let feed_plan = FeedPlan {
        passes: Passes::Endless,
        start: standing.cursor.clone(),
        batch_size: plan.train.batch_size,
        center_views: feed::wanted_center_views(plan),
        train_views: true,
        held: trainer.block_len(),
        filters: Filters::All(standing.remembered.clone()),
    };
    let feed = Feed::open(runtime.handle(), plan, &placement, list.clone(), &ledger, feed_plan)?;
    let hardware = Hardware { cuda: placement.device != Device::Cpu, bf16: plan.device.precision == Precision::Bf16 };
    let sources = feed.sources().clone();
    observer.runs_on(hardware, Arc::clone(&sources.decoders));
    let live = Live::new(sources, Controls::new(stop.flag()), hardware.cuda, plan.stream.shuffle);
    let live = Arc::new(live);
    let baseline = Baseline {
        step: trainer.progress().step,
        images: trainer.progress().images,
        losses: by_name(&ledger.losses()),
        filtered: by_name(&standing.filtered),
    };
    let watchers = Watchers::start(plan, folder, &list, &live, baseline, &mut observer)?;
    let started_at = trainer.progress().step;
    let mut collapse = CollapseWatch::new(plan.train.batch_size, plan.cluster.every_steps, plan.observe.collapse_share);
    if let Some(clustering) = trainer.clustering() {
        collapse.clustered(&clustering.sizes);
    }
    let mut run = Run {
        uploader: Uploader::new(placement.device),
        collapse,
        folder: folder.to_path_buf(),
        waited: Duration::ZERO,
        snapshot_step: started_at,
        kept: VecDeque::new(),
        plan,
        placement: &placement,
        list,
        runtime: &runtime,
        stop,
        ledger,
        trainer,
        store: Arc::new(store),
        saving: None,
        feed,
        activity: Arc::clone(&live.activity),
        live,
        meters: watchers.meters.clone(),
        standing,
        observer: &mut observer,
    };
    let outcome = guard::guard("train", || run.go());
    let last = match &outcome {
        Ok(()) | Err(Error::Interrupted { .. }) => None,
        Err(_) => {
            drop(run.saving.take()); // it may be the last good one
            run.last_snapshot()
        }
    };
    drop(run);
    match outcome {
        Ok(()) => Ok(observer.summary()),
        Err(error @ Error::Interrupted { .. }) => {
            say(&observer.summary().to_string());
            Err(error)
        }
        Err(error) => Err(name_last_snapshot(error, last)),
    }
}

/// tokio moves bytes only: two threads are enough.
pub fn start_runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("bytes")
        .enable_all()
        .build()
        .map_err(|error| Error::device(format!("cannot start the I/O threads: {error}")))
}

fn name_last_snapshot(error: Error, last: Option<PathBuf>) -> Error {
    let Some(path) = last else { return error };
    let kept = format!("the last good snapshot is {}", path.display());
    let hint = error.hint().map_or_else(|| kept.clone(), |hint| format!("{hint}; {kept}"));
    error.with_hint(hint)
}

fn by_name<T: ToString>(counts: &BTreeMap<T, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(what, count)| (what.to_string(), *count)).collect()
}

/// A run in flight.
struct Run<'a> {
    plan: &'a Plan,
    placement: &'a Placement,
    folder: PathBuf,
    list: ShardList,
    runtime: &'a Runtime,
    stop: Stop,
    ledger: Arc<Ledger>,
    trainer: Trainer,
    store: Arc<Store>,
    saving: Option<Saving>,
    feed: Feed,
    uploader: Uploader,
    activity: Arc<Activity>,
    live: Arc<Live>,
    meters: Option<Arc<Meters>>,
    collapse: CollapseWatch,
    observer: &'a mut Observer,
    /// The stream up to the last batch that the trainer took.
    standing: Standing,
    /// How long the block at hand was waited for.
    waited: Duration,
    snapshot_step: u64,
    /// Steps of the newest snapshots, but for those of an earlier process, and where each stands in the stream.
    kept: VecDeque<(u64, Cursor)>,
}

impl Run<'_> {
    fn go(&mut self) -> Result<()> {
        loop {
            if self.is_done() {
                self.record_steps()?;
                if self.trainer.progress().step > self.snapshot_step {
                    self.snapshot()?;
                }
                self.finish_snapshot()?;
                return Ok(());
            }
            self.heed_the_page()?;
            if self.trainer.cycle_due(None) && !self.cluster(self.trainer.progress().pass)? {
                return self.leave();
            }
            if self.trainer.beside_due() {
                self.activity.enter(Stage::Cluster, "waiting for the clustering beside");
                let found = self.trainer.finish_beside()?;
                self.tell_cycle(found)?;
            }
            if self.saving.as_ref().is_some_and(Saving::is_done) {
                self.finish_snapshot()?;
            }
            if self.snapshot_due() {
                self.snapshot()?;
            }
            let Some(block) = self.next_block()? else { return self.leave() };
            let pass = block.iter().flat_map(|batch| &batch.samples).map(|sample| sample.pass).max();
            if self.trainer.cycle_due(pass) && !self.cluster(pass.unwrap_or(0))? {
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

    fn is_done(&self) -> bool {
        self.plan.train.steps > 0 && self.trainer.progress().step >= self.plan.train.steps
    }

    /// The batches of the next block on the device; `None` once somebody asked to stop.
    fn next_block(&mut self) -> Result<Option<Vec<DeviceBatch>>> {
        self.activity.enter(Stage::Wait, "");
        let _span = tracing::debug_span!("wait").entered();
        let started = Instant::now();
        let wanted = if self.trainer.has_labels() { self.trainer.block_len() } else { 1 };
        let mut block = Vec::with_capacity(wanted);
        while block.len() < wanted {
            match self.feed.next(&self.stop)? {
                Next::Batch(batch) => block.push(self.uploader.upload(*batch)?),
                Next::Stopped => return Ok(None),
                Next::End => return Err(Error::data("the endless stream of samples has ended")),
            }
        }
        self.waited = started.elapsed();
        self.trainer.interval_mut().times.wait += self.waited;
        Ok(Some(block))
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
        let (mut record, labels) =
            self.trainer.close_interval(by_name(&self.ledger.losses()), by_name(&self.standing.filtered))?;
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
        found.write(&run_folder::clusters(&self.folder)?.join(assignments::file_name(record.step)))?;
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
            let batch = match self.feed.next(&self.stop)? {
                Next::Batch(batch) => self.uploader.upload(*batch)?,
                Next::Stopped => return Ok(false),
                Next::End => return Err(Error::data("the endless stream of samples has ended")),
            };
            self.trainer.refill(&batch)?;
            taken += batch.samples.len();
            ends.push(batch.end.clone());
            self.show_encoding(taken);
            let passes = batch.samples.iter().map(|sample| sample.pass);
            let first = *first_pass.get_or_insert(passes.clone().min().unwrap_or(0));
            // lists that are mixed have passes of their own, which say nothing of the whole
            let is_one_list = self.plan.stream.weights.is_empty();
            if is_one_list && passes.max() > Some(first + 1) {
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
        let feed_plan = FeedPlan {
            passes: Passes::Once,
            start: Cursor::default(),
            batch_size: self.plan.train.batch_size,
            center_views: Some(CenterCrops::Middle),
            train_views: false,
            held: 1,
            // what is a duplicate depends on the order, and this one is not that of training
            filters: Filters::Alone,
        };
        let ledger = Arc::new(self.ledger.for_encoding(pass, self.trainer.progress().step));
        let mut feed =
            Feed::open(self.runtime.handle(), self.plan, self.placement, self.list.clone(), &ledger, feed_plan)?;
        let _watched = self.live.watch(feed.sources().clone());
        let mut uploader = Uploader::new(self.placement.device);
        self.trainer.begin_refresh();
        loop {
            let batch = match feed.next(&self.stop)? {
                Next::Batch(batch) => uploader.upload(*batch)?,
                Next::End => return Ok(true),
                Next::Stopped => return Ok(false),
            };
            self.trainer.refresh(&batch)?;
            self.show_encoding(self.trainer.bank().len());
        }
    }

    fn snapshot_due(&self) -> bool {
        let plan = &self.plan.snapshot;
        let step = self.trainer.progress().step;
        let by_steps = plan.every_steps > 0 && step / plan.every_steps > self.snapshot_step / plan.every_steps;
        let age = self.live.snapshot_age();
        let by_time = plan.every_minutes > 0.0 && age > Duration::from_secs_f64(plan.every_minutes * 60.0);
        step > self.snapshot_step && (by_steps || by_time)
    }

    /// Begins to write a snapshot, once the one before is on disk.
    fn snapshot(&mut self) -> Result<()> {
        self.activity.enter(Stage::Snapshot, "");
        let _span = tracing::debug_span!("snapshot", step = self.trainer.progress().step).entered();
        let started = Instant::now();
        self.finish_snapshot()?;
        let step = self.trainer.progress().step;
        let saved = self.trainer.capture(&self.standing)?;
        let mut saving = Saving::begin(&self.store, step, self.standing.cursor.clone(), saved)?;
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

    fn last_snapshot(&self) -> Option<PathBuf> {
        self.store.latest().ok().flatten().map(|snapshot| snapshot.path)
    }
}
