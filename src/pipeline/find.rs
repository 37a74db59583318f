//! Samples of a list by their ids: pictures need photographs, and a run keeps only ids.
//!
//! What an index of the list knows is gone to directly; for what is left the list is read until all is found.

use super::start_runtime;
use crate::config::{Plan, StreamPlan, ViewsPlan};
use crate::decode::Decoder;
use crate::error::{Error, Result};
use crate::ingest::{self, Opening, Passes, RawSample, SampleMeta};
use crate::shards::index::Index;
use crate::shards::{Ledger, SampleId, ShardList};
use futures_util::StreamExt;
use image::RgbImage;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Square thumbnails of `side` pixels (whole center views) of the samples `wanted`, by way of `index` or read in one go through
/// `list`; what is no longer there, or does not decode, is left out.
///
/// # Errors
/// Nothing in the list can be read.
pub fn thumbnails(
    plan: &Plan,
    list: ShardList,
    index: &Index,
    wanted: &HashSet<SampleId>,
    side: u32,
) -> Result<HashMap<SampleId, (SampleMeta, RgbImage)>> {
    let views = ViewsPlan { size: side, resize: side, ..plan.views.clone() };
    let stream = StreamPlan { shuffle: 1, max_loss_rate: 1.0, ..plan.stream.clone() };
    let decoder = Decoder::new(&views, &stream);
    let ledger = Arc::new(Ledger::in_memory(&stream));
    start_runtime()?.block_on(async {
        let mut found = HashMap::new();
        let mut missing = wanted.clone();
        let mut take = |sample: &RawSample| {
            if !missing.remove(&sample.meta.id) {
                return Ok(missing.is_empty());
            }
            if let Some(image) = thumbnail(&decoder, sample, side)? {
                found.insert(sample.meta.id, (sample.meta.clone(), image));
            }
            Ok::<bool, Error>(missing.is_empty())
        };
        let mut is_complete = wanted.is_empty();
        for sample in ingest::pick(&list, &stream, &plan.fetch, index, wanted).await? {
            is_complete = take(&sample)?;
        }
        let samples = ingest::stream(Opening::new(list, &stream, &plan.fetch, Passes::Once, ledger));
        let mut samples = std::pin::pin!(samples);
        while !is_complete && let Some(sample) = samples.next().await {
            let sample = sample?;
            is_complete = take(&sample)?;
        }
        Ok(found)
    })
}

/// None where the image does not decode.
fn thumbnail(decoder: &Decoder, sample: &RawSample, side: u32) -> Result<Option<RgbImage>> {
    let mut pixels = vec![0; side as usize * side as usize * 3];
    if decoder.decode_into(sample, Some(&mut pixels), None).is_err() {
        return Ok(None);
    }
    let image = RgbImage::from_raw(side, side, pixels);
    let key = &sample.meta.key;
    image.map(Some).ok_or_else(|| Error::data(format!("a thumbnail of {key} is not {side} pixels wide")))
}
