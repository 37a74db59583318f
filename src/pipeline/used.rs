//! Which samples were used: nothing of that size is written down during a run, since the stream says it again.
//!
//! In: a run folder, or a list. Out: each sample without its pixels. What a run has used is what its stream gives from the beginning up
//! to the cursor of its last snapshot, in the same order: samples that did not decode, or that a filter passed over, are among them. A run past
//! its first pass has used the whole list; so, as far as anybody can tell, has one in the order of arrival, which chance made,
//! one that followed a list, or one whose list is another by now.

use super::start_runtime;
use crate::config::{FetchPlan, Order, Plan, StreamPlan};
use crate::error::Result;
use crate::ingest::{self, Cursor, Opening, Passes, SampleMeta};
use crate::shards::metadata::Licences;
use crate::shards::{Ledger, ShardList};
use crate::snapshot::Snapshot;
use crate::train::state::Position;
use futures_util::StreamExt;
use std::path::Path;
use std::sync::Arc;

/// Tells `each` of every sample that a run has used, of those licences that its pipeline names.
///
/// # Errors
/// The folder is no run or has no snapshot, nothing of its list can be read, or `each` fails.
pub fn by_run(run: &Path, mut each: impl FnMut(&SampleMeta) -> Result<()>) -> Result<()> {
    let plan = Plan::load(&run.join("pipeline.toml"), &[])?;
    let end = Position::read(&Snapshot::open(run)?.path)?.cursor;
    if end == Cursor::default() {
        return Ok(());
    }
    let licences = Licences::open(&plan.filter)?;
    let list = ShardList::parse_with(&plan.stream.shards, &plan.fetch)?;
    let is_repeatable = plan.stream.order == Order::Exact && !plan.stream.follow && !end.is_past_first_pass();
    let is_known = is_repeatable
        && match plan.stream.weights.is_empty() {
            true => end.is_of(std::slice::from_ref(&list)),
            false => end.is_of(&list.by_spec()?),
        };
    let passes = if is_known { Passes::Endless } else { Passes::Once };
    walk(list, &plan.stream, &plan.fetch, passes, |sample, cursor| {
        // of mixed lists one may come round again before the others have ended
        let is_first = sample.pass == 0;
        if is_first && licences.as_ref().is_none_or(|licences| licences.judge(&sample.shard, &sample.key).is_ok()) {
            each(sample)?;
        }
        // shards that give other samples than they gave lead by other cursors: then the whole list counts as used
        Ok(passes == Passes::Once || (*cursor != end && !cursor.is_past_first_pass()))
    })
}

/// Tells `each` of every sample of a list.
///
/// # Errors
/// Nothing of the list can be read, or `each` fails.
pub fn by_list(specs: &[String], mut each: impl FnMut(&SampleMeta) -> Result<()>) -> Result<()> {
    let stream = StreamPlan { shards: specs.to_vec(), ..StreamPlan::default() };
    let fetch = FetchPlan::default();
    let list = ShardList::parse_with(specs, &fetch)?;
    walk(list, &stream, &fetch, Passes::Once, |sample, _| each(sample).map(|()| true))
}

/// Reads a stream from its beginning for as long as `wants_more` says.
fn walk(
    list: ShardList,
    stream: &StreamPlan,
    fetch: &FetchPlan,
    passes: Passes,
    mut wants_more: impl FnMut(&SampleMeta, &Cursor) -> Result<bool>,
) -> Result<()> {
    let stream = StreamPlan { max_loss_rate: 1.0, ..stream.clone() };
    let ledger = Arc::new(Ledger::in_memory(&stream));
    start_runtime()?.block_on(async {
        let samples = ingest::stream(Opening::new(list, &stream, fetch, passes, ledger));
        let mut samples = std::pin::pin!(samples);
        while let Some(sample) = samples.next().await {
            let sample = sample?;
            if !wants_more(&sample.meta, &sample.cursor)? {
                break;
            }
        }
        Ok(())
    })
}
