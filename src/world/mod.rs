//! The ranks that train together, over PyTorch's own engine ([`crate::torch::c10d`]).
//!
//! A [`World`] is what one rank knows of all: its number, and the calls by which they compute together. In a world of one every call
//! gives at once what it was given. In a larger one all ranks make the same calls in the same order; each call may take
//! `ranks.timeout_s`, except for those that say that they are patient. Who joins is found by [`Launch`], from the environment.
//!
//! What can go wrong: a rank dies, freezes, or is cut off. [`watch`] finds out which one, and ends the others with its name and exit
//! code 4, also where they wait in a call that nobody will answer.

pub mod launch;
mod roll;
#[cfg(test)]
pub(crate) mod tests;
pub mod watch;
mod way;

pub use launch::Launch;
pub(crate) use roll::hostname;

use crate::config::RanksPlan;
use crate::error::{Error, Result};
use crate::torch::c10d::{Group, Joining, Reducer, Reduction, Store, nccl};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use watch::{Watch, Whereabouts};

/// How much longer a call may take than the watch waits.
const MARGIN: Duration = Duration::from_secs(60);
/// Between two looks of a patient wait.
const LOOK: Duration = Duration::from_millis(20);

/// All ranks, as one of them sees them. Clones are the same rank.
#[derive(Clone, Debug, Default)]
pub struct World {
    many: Option<Arc<Many>>,
}

#[derive(Debug)]
struct Many {
    rank: usize,
    size: usize,
    group: Group,
    /// Of the group, by which it is watched.
    number: usize,
    store: Store,
    joining: Joining,
    bucket_bytes: i64,
    occasions: AtomicU64,
    watch: Arc<Watch>,
}

impl World {
    /// A world of one.
    pub fn alone() -> Self {
        Self { many: None }
    }

    /// Meets the other ranks of `launch`, to compute on `device`. `agreed` is what must be the same on all of them: whoever differs is told so. `end` ends
    /// this process for a reason that lies with another rank, while the thread that trains may be stuck.
    ///
    /// # Errors
    /// Some rank does not come in time, two claim the same number, or they do not agree.
    pub fn join(launch: &Launch, plan: &RanksPlan, device: Device, agreed: &str, end: fn(&Error)) -> Result<Self> {
        let cuda = if device == Device::Cpu { None } else { Some(nccl::maker()?) };
        let timeout = Duration::from_secs_f64(plan.timeout_s);
        let roll::Met { store, store_is_at, host } = roll::call(launch, timeout, agreed)?;
        let (rank, size) = (launch.rank, launch.size);
        let number = |count: usize| i32::try_from(count).map_err(|_| Error::usage("too many ranks"));
        // The watch finds out first who does not come.
        let joining = Joining { rank: number(rank)?, size: number(size)?, timeout: timeout + MARGIN, host, cuda };
        let here = Whereabouts { rank, size, store_is_at, timeout };
        let watch = Watch::start(&store, here, end)?;
        let watch = Arc::new(watch);
        let number = watch.add_group();
        watch.enter(number, "meeting");
        let group = Group::join(&store.under("group")?, &joining).map_err(|error| watch.explain(error))?;
        watch.leave(number);
        let bucket_bytes = (plan.bucket_mib as i64) << 20;
        let occasions = AtomicU64::new(0);
        Ok(Self {
            many: Some(Arc::new(Many { rank, size, group, number, store, joining, bucket_bytes, occasions, watch })),
        })
    }

    /// The same ranks again, for a thread that computes with its like while this one goes on: calls of one never meet calls of the
    /// other.
    pub fn aside(&self, name: &str) -> Result<Self> {
        let Some(many) = &self.many else { return Ok(Self::alone()) };
        if many.joining.cuda.is_some() {
            let what = format!(
                "several ranks on GPUs cannot {name} beside training: NCCL wants one order of all calls of a GPU"
            );
            return Err(Error::usage(what).with_hint("set cluster.overlap = false"));
        }
        let store = many.store.under(name)?;
        let group = self.call("meeting", |many| Group::join(&store.under("group")?, &many.joining))?;
        let occasions = AtomicU64::new(0);
        let aside = Many {
            rank: many.rank,
            size: many.size,
            group,
            number: many.watch.add_group(),
            store,
            joining: many.joining.clone(),
            bucket_bytes: many.bucket_bytes,
            occasions,
            watch: Arc::clone(&many.watch),
        };
        Ok(Self { many: Some(Arc::new(aside)) })
    }

    /// The number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.many.as_ref().map_or(0, |many| many.rank)
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.many.as_ref().map_or(1, |many| many.size)
    }

    /// Whether there is no other rank.
    pub fn is_alone(&self) -> bool {
        self.many.is_none()
    }

    /// Whether this is the rank that speaks for all.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Reduces `tensor`, of the same shape on all ranks, in place.
    pub fn reduce(&self, tensor: &Tensor, reduction: Reduction) -> Result<()> {
        match self.is_alone() {
            true => Ok(()),
            false => self.call("all-reduce", |many| many.group.all_reduce(tensor, reduction)),
        }
    }

    /// Sums numbers over all ranks.
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        self.reduce_numbers(numbers, Reduction::Sum)
    }

    /// The largest of each number over all ranks.
    pub fn largest<T: tch::kind::Element + Copy>(&self, numbers: &[T]) -> Result<Vec<T>>
    where
        Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
    {
        self.reduce_numbers(numbers, Reduction::Max)
    }

    fn reduce_numbers<T: tch::kind::Element + Copy>(&self, numbers: &[T], reduction: Reduction) -> Result<Vec<T>>
    where
        Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
    {
        if self.is_alone() {
            return Ok(numbers.to_vec());
        }
        let tensor = Tensor::f_from_slice(numbers)?;
        self.reduce(&tensor, reduction)?;
        Ok(Vec::try_from(tensor)?)
    }

    /// Whether it is so on every rank.
    pub fn all(&self, here: bool) -> Result<bool> {
        Ok(self.reduce_numbers(&[i64::from(here)], Reduction::Min)?[0] == 1)
    }

    /// The tensors of all ranks, of one shape: `[ranks, ...]`.
    pub fn gather(&self, part: &Tensor) -> Result<Tensor> {
        match self.is_alone() {
            true => Ok(part.f_unsqueeze(0)?),
            false => self.call("all-gather", |many| many.group.all_gather(part)),
        }
    }

    /// The bytes of every rank, of any length.
    pub fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.is_alone() {
            return Ok(vec![bytes.to_vec()]);
        }
        let lengths =
            Vec::<i64>::try_from(self.gather(&Tensor::f_from_slice(&[bytes.len() as i64])?)?.f_reshape([-1])?)?;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut padded = bytes.to_vec();
        padded.resize(longest.max(1), 0);
        let all = self.gather(&Tensor::f_from_slice(&padded)?)?;
        let mut parts = Vec::with_capacity(lengths.len());
        for (rank, length) in (0_i64..).zip(lengths) {
            parts.push(Vec::<u8>::try_from(all.f_select(0, rank)?.f_narrow(0, 0, length)?)?);
        }
        Ok(parts)
    }

    /// Those that have other bytes than rank 0.
    pub fn at_odds(&self, bytes: &[u8]) -> Result<Vec<usize>> {
        let all = self.gather_bytes(bytes)?;
        Ok((1..all.len()).filter(|&rank| all[rank] != all[0]).collect())
    }

    /// Rows for each rank: the first `sends[0]` go to rank 0, and so on; `takes[r]` come from rank `r`.
    pub fn exchange(&self, rows: &Tensor, sends: &[i64], takes: &[i64]) -> Result<Tensor> {
        match self.is_alone() {
            true => Ok(rows.shallow_clone()),
            false => self.call("all-to-all", |many| many.group.all_to_all(rows, sends, takes)),
        }
    }

    /// What `work` gives on rank 0, on every rank; an error there is an error on all. Tensors come back on `device`.
    pub fn on_first(&self, device: Device, work: impl FnOnce() -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
        if self.is_alone() {
            return work();
        }
        let done = if self.is_first() { Some(work()) } else { None };
        let head = match &done {
            Some(Ok(tensors)) => {
                let shapes: Vec<(usize, Vec<i64>)> =
                    tensors.iter().map(|tensor| (kind_number(tensor.kind()), tensor.size())).collect();
                serde_json::json!({ "shapes": shapes })
            }
            Some(Err(error)) => serde_json::json!({ "error": error.to_string(), "hint": error.hint() }),
            None => serde_json::Value::Null,
        };
        // It may take long: the others wait outside of any call.
        let key = self.next_key("answer")?;
        let told = match done {
            Some(_) => {
                let told = head.to_string().into_bytes();
                self.post(&key, &told)?;
                told
            }
            None => self.await_post(&key)?,
        };
        let head: serde_json::Value = serde_json::from_slice(&told)
            .map_err(|error| Error::device(format!("rank 0 has sent no answer: {error}")))?;
        if let Some(Err(error)) = done {
            return Err(error);
        }
        if let Some(what) = head["error"].as_str() {
            let error = Error::device(format!("rank 0: {what}"));
            return Err(match head["hint"].as_str() {
                Some(hint) => error.with_hint(hint),
                None => error,
            });
        }
        let shapes: Vec<(usize, Vec<i64>)> = serde_json::from_value(head["shapes"].clone())
            .map_err(|error| Error::device(format!("rank 0 has sent no answer: {error}")))?;
        let mut own = done.and_then(Result::ok).unwrap_or_default().into_iter();
        let mut tensors = Vec::with_capacity(shapes.len());
        for (kind, shape) in shapes {
            let tensor = match own.next() {
                Some(tensor) => tensor.f_to_device(Device::Cpu)?.f_contiguous()?,
                None => Tensor::f_empty(shape.as_slice(), (kind_of(kind)?, Device::Cpu))?,
            };
            self.call("broadcast", |many| many.group.broadcast(&tensor, 0))?;
            tensors.push(tensor.f_to_device(device)?);
        }
        Ok(tensors)
    }

    /// Waits, however long it takes, until every rank has come here, as long as all are alive.
    pub fn meet(&self) -> Result<()> {
        let Some(many) = &self.many else { return Ok(()) };
        let key = self.next_key("meeting")?;
        let explain = |error| many.watch.explain(error);
        let mut come = many.store.add(&key, 1).map_err(explain)?;
        while come < many.size as i64 {
            many.watch.check()?;
            std::thread::sleep(LOOK);
            come = many.store.add(&key, 0).map_err(explain)?;
        }
        Ok(())
    }

    /// Leaves a note for other ranks.
    pub fn post(&self, key: &str, value: &[u8]) -> Result<()> {
        let Some(many) = &self.many else { return Ok(()) };
        many.store.set(key, value).map_err(|error| many.watch.explain(error))
    }

    /// Waits, however long it takes, for a note of another rank. Any thread may.
    pub fn await_post(&self, key: &str) -> Result<Vec<u8>> {
        let Some(many) = &self.many else { return Err(Error::device("there is no other rank to wait for")) };
        let explain = |error| many.watch.explain(error);
        while !many.store.has(key).map_err(explain)? {
            many.watch.check()?;
            std::thread::sleep(LOOK);
        }
        many.store.get(key).map_err(explain)
    }

    /// What averages the gradients of `weights` over all ranks; nothing in a world of one.
    pub fn reducer(&self, weights: &[Tensor]) -> Result<Option<Reducer>> {
        if self.is_alone() || weights.is_empty() {
            return Ok(None);
        }
        self.call("reducer", |many| Reducer::new(&many.group, weights, many.bucket_bytes)).map(Some)
    }

    /// Runs a backward pass whose gradients the reducers average, and says of an error whose it is.
    pub fn backward(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.is_alone() {
            true => work(),
            false => self.call("gradients", |_| work()),
        }
    }

    /// The sum of all ranks' tensors, through which gradients flow.
    pub fn sum_with_gradient(&self, part: &Tensor) -> Result<Tensor> {
        match self.is_alone() {
            true => Ok(part.shallow_clone()),
            false => self.call("all-reduce", |many| many.group.sum_with_gradient(part)),
        }
    }

    /// Says that this rank has failed, before it puts its things in order, so that the others need not wait for that.
    pub fn fail(&self, error: &Error) {
        if let Some(many) = &self.many {
            many.watch.fail(error);
        }
    }

    /// Says how this rank ends, so that its silence is not taken for a death. Rank 0 waits a little for the others where it keeps the
    /// store.
    pub fn part(&self, outcome: Result<(), &Error>) {
        if let Some(many) = &self.many {
            many.watch.part(outcome);
        }
    }

    /// A name that all ranks give to the same occasion, each in its turn.
    fn next_key(&self, what: &str) -> Result<String> {
        let Some(many) = &self.many else { return Err(Error::device("a world of one has no occasions")) };
        Ok(format!("{what}-{}", many.occasions.fetch_add(1, Ordering::Relaxed)))
    }

    fn call<T>(&self, what: &'static str, work: impl FnOnce(&Many) -> Result<T>) -> Result<T> {
        let Some(many) = &self.many else { return Err(Error::device("a world of one has nobody to call")) };
        many.watch.enter(many.number, what);
        let outcome = work(many);
        many.watch.leave(many.number);
        outcome.map_err(|error| many.watch.explain(error))
    }
}

/// Kinds that go over the network, by their number there.
const KINDS: [Kind; 6] = [Kind::Float, Kind::Double, Kind::Half, Kind::Int64, Kind::Uint8, Kind::BFloat16];

fn kind_number(kind: Kind) -> usize {
    KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len())
}

fn kind_of(number: usize) -> Result<Kind> {
    KINDS.get(number).copied().ok_or_else(|| Error::device("rank 0 sends a tensor of a kind that is not sent"))
}

/// How long something has taken, for people.
pub(crate) fn seconds(since: Instant) -> String {
    format!("{:.0} s", since.elapsed().as_secs_f64())
}
