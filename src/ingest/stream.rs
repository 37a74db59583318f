//! The stream itself: passes one after the other, of one list or of several mixed, each sample with the cursor behind it.
//!
//! In: lists, a plan, a cursor. Out: an asynchronous stream of [`RawSample`]s that ends with an error where the ledger says that
//! too much is lost, where a whole pass gives nothing, or where the cursor does not fit the list. Needs a tokio
//! runtime. Dropping the stream ends its threads and connections.

use super::buffer::Waiter;
use super::cursor::{Checkpoint, Cursor, Point, damaged};
use super::follow::Follow;
use super::lane::Shared;
use super::mix::Mix;
use super::pass::{Pass, Rules};
use super::progress::Progress;
use super::redeal::RankState;
use super::share::Share;
use super::trail::Log;
use super::{RawSample, SampleMeta};
use crate::config::{FetchPlan, StreamPlan};
use crate::error::{Error, Result};
use crate::shards::source::Fetcher;
use crate::shards::{Ledger, Notice, SampleId, ShardList, ShardSample, ShardUrl};
use futures_util::Stream;
use std::sync::Arc;

/// Samples between two checkpoints: more make going on slower, fewer make the stream copy its state more often.
const CHECKPOINT_EVERY: u64 = 1_000;
/// Passes in a row in which one rank of several may find nothing, for each other rank: a list of few samples comes round to all.
const BARREN_PASSES: u64 = 16;

/// How often the list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Without end, each pass in an order of its own; the list is read again at the end of each.
    Endless,
    /// Once, in the order of the list, unshuffled, all lists as one: for evaluation.
    Once,
}

/// What a stream is opened with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The shards.
    pub list: ShardList,
    /// In which order, and how much is held.
    pub plan: StreamPlan,
    /// How bytes come over the network.
    pub fetch: FetchPlan,
    /// How often the list is read.
    pub passes: Passes,
    /// Whose part of it.
    pub share: Share,
    /// Where the stream starts.
    pub start: Cursor,
    /// Hears of what is lost.
    pub ledger: Arc<Ledger>,
    /// Hears of what is going on.
    pub progress: Arc<Progress>,
}

impl Opening {
    /// The whole list from its beginning.
    pub fn new(list: ShardList, plan: &StreamPlan, fetch: &FetchPlan, passes: Passes, ledger: Arc<Ledger>) -> Self {
        let (plan, fetch) = (plan.clone(), fetch.clone());
        let (start, progress) = (Cursor::default(), Arc::default());
        Self { list, plan, fetch, passes, share: Share::whole(), start, ledger, progress }
    }
}

/// The samples of a list, from a cursor on.
pub fn stream(opening: Opening) -> impl Stream<Item = Result<RawSample>> + Send + use<> {
    stream_with(opening, CHECKPOINT_EVERY)
}

/// As [`stream`], with a checkpoint every so many samples.
pub(super) fn stream_with(
    opening: Opening,
    checkpoint_every: u64,
) -> impl Stream<Item = Result<RawSample>> + Send + use<> {
    async_stream::try_stream! {
        let mut running = Running::start(opening, checkpoint_every).await?;
        while let Some(sample) = running.next().await? {
            yield sample;
        }
    }
}

/// A stream under way.
pub(super) struct Running {
    opening: Opening,
    checkpoint_every: u64,
    mix: Mix,
    shared: Arc<Shared>,
    sources: Vec<Source>,
    /// Samples that left, of all lists.
    mixed: u64,
    checkpoint: Arc<Checkpoint>,
    /// Samples that left since the checkpoint.
    since: u64,
    log: Log,
    follow: Option<Follow>,
}

/// One of the lists.
struct Source {
    list: ShardList,
    rules: Rules,
    pass: Pass,
    /// Passes in a row that gave nothing.
    barren: u64,
}

impl Running {
    pub(super) async fn start(opening: Opening, checkpoint_every: u64) -> Result<Self> {
        let (mix, lists) = lists(&opening).await?;
        let rules = Rules::new(&opening.plan, opening.passes, opening.share, Arc::clone(&opening.ledger));
        let rules = mix.rules(&rules);
        let shared = shared(&opening, lists.iter().flat_map(|list| &list.shards), &rules)?;
        let follow = rules.iter().any(|rules| rules.follows).then(|| Follow::new(&opening.plan)).transpose()?;
        let at = opening.start.checkpoint.clone();
        if let Some(at) = &at {
            at.check(opening.plan.seed, opening.share, lists.len())?;
        }
        let mut sources = Vec::with_capacity(lists.len());
        for (number, (list, rules)) in lists.into_iter().zip(rules).enumerate() {
            let pass = match at.as_ref().and_then(|at| at.lists.get(number)) {
                Some(point) => {
                    let point = point.with_events(number, &opening.start.since);
                    resume(&point, &list, &rules, &shared).await?
                }
                None => {
                    let shards = match &follow {
                        Some(follow) => follow.settled(&list.shards),
                        None => list.shards.clone(),
                    };
                    Pass::begin(0, shards, rules.clone(), Arc::clone(&shared))?
                }
            };
            sources.push(Source { list, rules, pass, barren: 0 });
        }
        let mixed = at.as_ref().map_or(0, |at| at.mixed);
        let log = Log::going_over(&opening.start.trail, &opening.start.since);
        let checkpoint = at.unwrap_or_else(|| Arc::new(checkpoint_of(&opening, mixed, &sources)));
        let mut running =
            Self { opening, checkpoint_every, mix, shared, sources, mixed, checkpoint, since: 0, log, follow };
        running.tell_passes();
        running.go_over().await?;
        Ok(running)
    }

    /// Lets the samples pass that left between the checkpoint and the cursor.
    async fn go_over(&mut self) -> Result<()> {
        while self.since < self.opening.start.skip {
            let is_logged = self.next_source().rules.by_arrival;
            if is_logged && !self.log.is_going_over() {
                return Err(damaged());
            }
            if self.leave().await?.is_some() {
                continue;
            }
            if is_logged {
                return Err(damaged());
            }
            // a shard has fewer samples than it had: its list is at the end of the pass, others may not be
            self.mixed += 1;
            self.since += 1;
        }
        if self.log.is_going_over() {
            return Err(damaged());
        }
        self.log.has_gone_over();
        let mut is_another_way = false;
        for source in &mut self.sources {
            source.pass.end_all_changed()?;
            is_another_way |= source.pass.take_passing();
        }
        if is_another_way {
            self.take_checkpoint();
        }
        Ok(())
    }

    fn next_source(&self) -> &Source {
        &self.sources[self.mix.list_of(self.opening.plan.seed, self.mixed)]
    }

    /// The next sample of the list whose turn it is, with that list's number; none at the end of its pass.
    async fn leave(&mut self) -> Result<Option<(usize, Waiter)>> {
        let list = self.mix.list_of(self.opening.plan.seed, self.mixed);
        let left = self.sources[list].pass.leave(&mut self.log).await?;
        for event in self.sources[list].pass.take_events(list) {
            self.log.note(event);
        }
        let waiting = self.sources.iter().map(|source| &source.pass.buffer);
        let (samples, bytes) = waiting.fold((0, 0), |sum, buffer| (sum.0 + buffer.len(), sum.1 + buffer.bytes()));
        self.opening.progress.holds(samples, bytes);
        let Some(waiter) = left else { return Ok(None) };
        self.mixed += 1;
        self.since += 1;
        Ok(Some((list, waiter)))
    }

    async fn next(&mut self) -> Result<Option<RawSample>> {
        loop {
            if self.since >= self.checkpoint_every {
                self.take_checkpoint();
            }
            if self.follow.as_ref().is_some_and(Follow::is_due) && self.next_source().pass.is_short_of_shards() {
                self.look_for_shards().await?;
            }
            let left = self.leave().await?;
            if let Some((list, _)) = &left
                && self.sources[*list].pass.take_passing()
            {
                // after a restart the shard may work again: no way that is gone over holds its failure
                self.take_checkpoint();
            }
            match left {
                Some((list, Waiter { place, sample: Some(sample) })) => {
                    return Ok(Some(self.raw_sample(list, place.shard, sample)));
                }
                Some((_, Waiter { sample: None, .. })) => {}
                None if self.follow.is_some() => self.wait_for_shards().await,
                None => {
                    if !self.turn_over().await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn take_checkpoint(&mut self) {
        self.checkpoint = Arc::new(checkpoint_of(&self.opening, self.mixed, &self.sources));
        self.since = 0;
        self.log = Log::default();
    }

    /// Samples that left, of all lists.
    pub(super) fn mixed(&self) -> u64 {
        self.mixed
    }

    /// Where the stream stands in each list.
    pub(super) fn states(&self) -> impl Iterator<Item = RankState> {
        self.sources.iter().map(|Source { rules, pass, .. }| RankState {
            rules: rules.clone(),
            point: pass.point(),
            rest: pass.rest(),
        })
    }

    /// After the end of a pass over the list whose turn it is: begins the next; false where there is none.
    async fn turn_over(&mut self) -> Result<bool> {
        let list = self.mix.list_of(self.opening.plan.seed, self.mixed);
        let source = &mut self.sources[list];
        // what was left of a pass that was dealt anew may be nothing
        if source.pass.draws > 0 || !source.pass.is_remainder() {
            source.barren = if source.pass.draws == 0 { source.barren + 1 } else { 0 };
        }
        if source.barren > BARREN_PASSES * u64::from(self.opening.share.world() - 1) {
            let count = source.pass.shards.len();
            return Err(self.opening.ledger.nothing_works(&format!("no sample in any of the {count} shards")));
        }
        if self.opening.passes == Passes::Once {
            return Ok(false);
        }
        self.begin_next_pass(list).await?;
        Ok(true)
    }

    async fn begin_next_pass(&mut self, list: usize) -> Result<()> {
        let source = &mut self.sources[list];
        let next = source.pass.later.pop_front();
        if next.is_none() {
            match reload(&source.list).await? {
                // addresses that were signed anew have the names of the old ones
                Ok(new) if new.shards != source.list.shards => {
                    source.list = new;
                    self.shared = self.shared_anew()?;
                }
                Ok(_) => {}
                Err(error) => self.keep_stale_list(&error),
            }
        }
        let source = &mut self.sources[list];
        source.pass = match next {
            Some(point) => {
                let later = std::mem::take(&mut source.pass.later);
                let mut pass = resume(&point, &source.list, &source.rules, &self.shared).await?;
                pass.later = later;
                pass
            }
            None => {
                let (number, shards) = (source.pass.number + 1, source.list.shards.clone());
                Pass::begin(number, shards, source.rules.clone(), Arc::clone(&self.shared))?
            }
        };
        self.tell_passes();
        self.take_checkpoint();
        Ok(())
    }

    /// Tells the ledger how far back its lines may be needed.
    fn tell_passes(&self) {
        let least = self.sources.iter().map(|source| source.pass.number).min();
        self.opening.ledger.reads_from_pass(least.unwrap_or(0));
        self.count_pass();
    }

    /// Looks up, beside the stream, how many samples the pass has. Lists that are mixed have passes of their own, one that is
    /// followed grows, and ranks share.
    fn count_pass(&self) {
        let [source] = self.sources.as_slice() else { return };
        let (Some(collector), false) = (self.opening.ledger.index(), source.rules.follows) else { return };
        if self.opening.share != Share::whole() || source.pass.is_remainder() {
            return;
        }
        let (index, progress) = (collector.index().clone(), Arc::clone(&self.opening.progress));
        let (pass, shards) = (source.pass.number, source.pass.shards.clone());
        tokio::task::spawn_blocking(move || {
            let samples = shards.iter().map(|shard| index.samples(shard.name()).ok().flatten());
            if let Some(samples) = samples.sum() {
                progress.pass_has(pass, samples);
            }
        });
    }

    fn shared_anew(&self) -> Result<Arc<Shared>> {
        let rules: Vec<Rules> = self.sources.iter().map(|source| source.rules.clone()).collect();
        shared(&self.opening, self.sources.iter().flat_map(|source| &source.list.shards), &rules)
    }

    fn keep_stale_list(&self, error: &Error) {
        tracing::warn!(%error, "the list of shards cannot be read again: going on with the old one");
        self.opening.ledger.notice(Notice::StaleList, 1);
    }

    /// Takes in what appeared in a list that is followed. A checkpoint comes right behind, so that no way that is gone over
    /// again holds such a moment.
    async fn look_for_shards(&mut self) -> Result<()> {
        let list = self.mix.list_of(self.opening.plan.seed, self.mixed);
        let (Some(follow), source) = (&mut self.follow, &mut self.sources[list]) else { return Ok(()) };
        follow.looks();
        match reload(&source.list).await? {
            Ok(list) => source.list = list,
            Err(error) => {
                self.keep_stale_list(&error);
                return Ok(());
            }
        }
        let new = follow.new_shards(&source.list.shards, &source.pass.shards);
        if new.is_empty() {
            return Ok(());
        }
        self.opening.progress.waits_for_shards(false);
        self.shared = self.shared_anew()?;
        self.sources[list].pass.grow(new, Arc::clone(&self.shared))?;
        self.take_checkpoint();
        Ok(())
    }

    async fn wait_for_shards(&self) {
        self.opening.progress.waits_for_shards(true);
        if let Some(follow) = &self.follow {
            tokio::time::sleep(follow.time_to_look()).await;
        }
    }

    fn raw_sample(&self, list: usize, shard: usize, sample: ShardSample) -> RawSample {
        let pass = &self.sources[list].pass;
        let shard = Arc::clone(pass.shards[shard].name());
        self.opening.progress.gave_sample(pass.number, pass.draws);
        RawSample {
            meta: SampleMeta {
                id: SampleId::of(&shard, sample.offset),
                key: sample.key,
                shard,
                offset: sample.offset,
                pass: pass.number,
                class: sample.class,
            },
            image: sample.image,
            known: sample.known,
            cursor: Cursor {
                checkpoint: Some(Arc::clone(&self.checkpoint)),
                skip: self.since,
                trail: self.log.trail(),
                since: self.log.shards(),
            },
        }
    }
}

/// One list, or one for each spec of `stream.shards` where there are weights.
async fn lists(opening: &Opening) -> Result<(Mix, Vec<ShardList>)> {
    let weights = &opening.plan.weights;
    if weights.is_empty() || opening.passes == Passes::Once {
        return Ok((Mix::single(), vec![opening.list.clone()]));
    }
    let list = opening.list.clone();
    let lists = aside(move || list.by_spec()).await??;
    if lists.len() != weights.len() {
        let (lists, weights) = (lists.len(), weights.len());
        return Err(Error::usage(format!("stream.weights has {weights} numbers for {lists} entries of stream.shards")));
    }
    Ok((Mix::of(weights), lists))
}

/// The list as it is now, or why it cannot be read.
async fn reload(list: &ShardList) -> Result<Result<ShardList>> {
    let list = list.clone();
    aside(move || list.reload()).await
}

/// Does something that blocks in a thread of its own: folders and stores may be large, and a list far away.
async fn aside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|error| Error::Stage { stage: "ingest", what: error.to_string() })
}

fn shared<'a>(opening: &Opening, shards: impl Iterator<Item = &'a ShardUrl>, rules: &[Rules]) -> Result<Arc<Shared>> {
    let shards: Vec<ShardUrl> = shards.cloned().collect();
    let fetcher = Fetcher::new(&shards, &opening.fetch)?;
    let readers = rules.iter().map(|rules| rules.most_open() + 1).sum();
    let index = opening.ledger.index().map(|collector| collector.index().clone());
    Ok(Shared::new(fetcher, Arc::clone(&opening.progress), &opening.plan, readers).with_index(index).into())
}

async fn resume(point: &Point, list: &ShardList, rules: &Rules, shared: &Arc<Shared>) -> Result<Pass> {
    let shards = point.shards_in(list, rules.follows)?;
    Pass::resume(point, shards, rules.clone(), Arc::clone(shared)).await
}

fn checkpoint_of(opening: &Opening, mixed: u64, sources: &[Source]) -> Checkpoint {
    Checkpoint {
        seed: opening.plan.seed,
        share: opening.share,
        mixed,
        lists: sources.iter().map(|source| source.pass.point()).collect(),
    }
}
