//! Samples of a list by their ids: pictures need photographs, and a run keeps only ids.

use super::start_runtime;
use crate::config::{Plan, StreamPlan, ViewsPlan};
use crate::decode::Decoder;
use crate::error::{Error, Result};
use crate::ingest::{self, Opening, Passes, SampleMeta};
use crate::shards::{Ledger, SampleId, ShardList};
use futures_util::StreamExt;
use image::RgbImage;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Square thumbnails of `side` pixels (whole center views) of the samples `wanted`, read in one go through `list`; what is
/// no longer there, or does not decode, is left out.
///
/// # Errors
/// Nothing in the list can be read.
pub fn thumbnails(
    plan: &Plan,
    list: ShardList,
    wanted: &HashSet<SampleId>,
    side: u32,
) -> Result<HashMap<SampleId, (SampleMeta, RgbImage)>> {
    let views = ViewsPlan { size: side, resize: side, ..plan.views.clone() };
    let stream = StreamPlan { shuffle: 1, max_loss_rate: 1.0, ..plan.stream.clone() };
    let decoder = Decoder::new(&views, &stream);
    let ledger = Arc::new(Ledger::in_memory(&stream));
    let samples = ingest::stream(Opening::new(list, &stream, &plan.fetch, Passes::Once, ledger));
    start_runtime()?.block_on(async {
        let mut samples = std::pin::pin!(samples);
        let mut found = HashMap::new();
        while found.len() < wanted.len() {
            let Some(sample) = samples.next().await else { break };
            let sample = sample?;
            if !wanted.contains(&sample.meta.id) {
                continue;
            }
            let mut pixels = vec![0; side as usize * side as usize * 3];
            if decoder.decode_into(&sample, Some(&mut pixels), None).is_err() {
                continue;
            }
            let image = RgbImage::from_raw(side, side, pixels)
                .ok_or_else(|| Error::data(format!("a thumbnail of {} is not {side} pixels wide", sample.meta.key)))?;
            found.insert(sample.meta.id, (sample.meta, image));
        }
        Ok(found)
    })
}
