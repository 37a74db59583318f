//! Reads shards to account for every byte of them, in the order of the list: what `shoal shards check` and `list` show.
//!
//! In: a list, and a judge that decodes. Out: one [`ShardReport`] a shard: complete or truncated at byte N, samples, losses
//! by reason, which the ledger gets as well. `lanes` shards are read at once, each in a blocking thread of the runtime. Memory: one sample a thread.

use super::archive::{Archive, Ending, Verdict, Wrapping};
use super::ledger::{Ledger, Loss, ShardEnd};
use super::list::ShardList;
use super::reading::Reading;
use super::reason::{FilteredCounts, Notice, Reason, Rejection, Trouble};
use super::sample::{Lost, Samples, ShardSample, Step};
use super::source::Fetcher;
use super::url::ShardUrl;
use crate::config::{FetchPlan, StreamPlan};
use crate::error::{Error, Result};
use futures_util::{Stream, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Decides whether a sample can be trained on: what is odd about it, or why not.
pub type Judge = dyn Fn(&ShardSample) -> Result<Vec<Notice>, Rejection> + Send + Sync;

/// What one shard holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardReport {
    /// The shard's name.
    pub shard: Arc<str>,
    /// How it ended.
    pub ending: Ending,
    /// Bytes of the uncompressed tar that were read.
    pub bytes: u64,
    /// Samples that the judge let pass.
    pub samples: u64,
    /// What was lost: samples, members, and the shard itself.
    pub losses: BTreeMap<Reason, u64>,
    /// What was odd about samples that passed.
    pub notices: BTreeMap<Notice, u64>,
    /// What was passed over on purpose.
    pub filtered: FilteredCounts,
}

/// A look at one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The shard's name.
    pub shard: Arc<str>,
    /// What is there, or why nothing is.
    pub beginning: Result<Beginning, Trouble>,
}

/// The beginning of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// What the tar is wrapped in.
    pub wrapping: Wrapping,
    /// Length in bytes of the shard as it is stored, if it is known.
    pub stored_bytes: Option<u64>,
    /// The key of its first sample, if it has one.
    pub first_key: Option<String>,
}

/// Reads every shard of a list to its end. The ledger gets every loss and every end; its limits are not applied.
///
/// # Errors
/// Outside of a tokio runtime; in the stream, where a reader panicked.
pub fn audit(
    list: &ShardList,
    plan: &StreamPlan,
    fetch: &FetchPlan,
    ledger: Arc<Ledger>,
    judge: Arc<Judge>,
) -> Result<impl Stream<Item = Result<ShardReport>> + Send + use<>> {
    let most = plan.max_member_mib as u64 * 1024 * 1024;
    let job: Arc<Job<ShardReport>> =
        Arc::new(move |url, fetcher, reading| read_shard(url, fetcher, reading, most, &ledger, &*judge));
    in_list_order(list, plan, fetch, job)
}

/// Looks at the beginning of every shard of a list.
///
/// # Errors
/// As [`audit`].
pub fn glance(
    list: &ShardList,
    plan: &StreamPlan,
    fetch: &FetchPlan,
) -> Result<impl Stream<Item = Result<Glance>> + Send + use<>> {
    let most = plan.max_member_mib as u64 * 1024 * 1024;
    let job: Arc<Job<Glance>> = Arc::new(move |url, fetcher, reading| Glance {
        shard: Arc::clone(url.name()),
        beginning: look(url, fetcher, reading, most),
    });
    in_list_order(list, plan, fetch, job)
}

/// What is done with one shard.
pub(super) type Job<T> = dyn Fn(&ShardUrl, &Arc<Fetcher>, &Arc<Reading>) -> T + Send + Sync;

/// Runs a blocking job for each shard, `lanes` at once; gives the results in the order of the list.
pub(super) fn in_list_order<T: Send + 'static>(
    list: &ShardList,
    plan: &StreamPlan,
    fetch: &FetchPlan,
    job: Arc<Job<T>>,
) -> Result<impl Stream<Item = Result<T>> + Send + use<T>> {
    let fetcher = Fetcher::new(&list.shards, fetch)?;
    let jobs = list.shards.clone().into_iter().map(move |url| {
        let (fetcher, job) = (Arc::clone(&fetcher), Arc::clone(&job));
        async move {
            let wanted = Wanted(Reading::new(Arc::clone(url.name())));
            let reading = Arc::clone(&wanted.0);
            let done = tokio::task::spawn_blocking(move || job(&url, &fetcher, &reading)).await;
            done.map_err(|error| Error::Stage { stage: "ingest", what: format!("{}: {error}", wanted.0.shard) })
        }
    });
    Ok(futures_util::stream::iter(jobs).buffered(plan.lanes.max(1)))
}

/// Stops the reading when nobody waits for its result any more.
struct Wanted(Arc<Reading>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn read_shard(
    url: &ShardUrl,
    fetcher: &Arc<Fetcher>,
    reading: &Arc<Reading>,
    most: u64,
    ledger: &Ledger,
    judge: &Judge,
) -> ShardReport {
    let mut report = ShardReport {
        shard: Arc::clone(url.name()),
        ending: Ending { verdict: Verdict::Complete, trouble: None },
        bytes: 0,
        samples: 0,
        losses: BTreeMap::new(),
        notices: BTreeMap::new(),
        filtered: FilteredCounts::new(),
    };
    let mut samples = match Archive::open(url, fetcher, reading) {
        Ok(archive) => Samples::new(archive, most).with_class(url.class()),
        Err(trouble) => {
            report.lose(Lost { key: None, offset: 0, trouble: trouble.clone() }, ledger);
            report.ending = Ending::failed(trouble);
            report.close(ledger);
            return report;
        }
    };
    loop {
        match samples.step() {
            Step::Sample(sample) => report.judge(sample, ledger, judge),
            Step::Lost(lost) => report.lose(lost, ledger),
            Step::End(ending) => {
                report.bytes = samples.archive().position();
                if let (Verdict::TruncatedAt(offset), Some(trouble)) = (ending.verdict, ending.trouble.clone()) {
                    report.lose(Lost { key: None, offset, trouble }, ledger);
                }
                report.ending = ending;
                report.close(ledger);
                return report;
            }
        }
    }
}

impl ShardReport {
    fn judge(&mut self, sample: ShardSample, ledger: &Ledger, judge: &Judge) {
        match judge(&sample) {
            Ok(notices) => {
                self.samples += 1;
                for notice in sample.notices.into_iter().chain(notices) {
                    *self.notices.entry(notice).or_default() += 1;
                    ledger.notice(notice, 1);
                }
            }
            Err(Rejection::Filtered(filtered)) => *self.filtered.entry(filtered).or_default() += 1,
            Err(Rejection::Lost(trouble)) => {
                self.lose(Lost { key: Some(sample.key), offset: sample.offset, trouble }, ledger)
            }
        }
    }

    /// Writes the shard's line.
    fn close(&self, ledger: &Ledger) {
        let end = ShardEnd::new(0, &self.shard, &self.ending, self.bytes);
        ledger.shard_done(ShardEnd { samples: self.samples, losses: self.losses.clone(), ..end });
    }

    fn lose(&mut self, lost: Lost, ledger: &Ledger) {
        *self.losses.entry(lost.trouble.reason).or_default() += 1;
        ledger.lose(Loss {
            pass: 0,
            shard: self.shard.to_string(),
            key: lost.key,
            offset: lost.offset,
            reason: lost.trouble.reason,
            detail: lost.trouble.detail,
            encoding: None,
        });
    }
}

fn look(url: &ShardUrl, fetcher: &Arc<Fetcher>, reading: &Arc<Reading>, most: u64) -> Result<Beginning, Trouble> {
    let archive = Archive::open(url, fetcher, reading)?;
    let (wrapping, stored_bytes) = (archive.wrapping(), archive.stored_length());
    let mut samples = Samples::new(archive, most);
    loop {
        let first_key = match samples.step() {
            Step::Sample(sample) => Some(sample.key),
            Step::Lost(_) => continue,
            Step::End(_) => None,
        };
        return Ok(Beginning { wrapping, stored_bytes, first_key });
    }
}
