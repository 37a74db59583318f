//! The first samples of a few shards of a list, read as a run would read them, and how fast they came.
//!
//! In: a list and a plan. Out: up to [`SAMPLES`] samples with what was lost among them. A shard that cannot be read is
//! part of the answer.

use crate::config::Plan;
use crate::error::Result;
use crate::ingest::{RawSample, SampleMeta};
use crate::pipeline::start_runtime;
use crate::shards::archive::Archive;
use crate::shards::sample::{Samples, Step};
use crate::shards::source::Fetcher;
use crate::shards::{Reading, SampleId, ShardList, ShardUrl, Trouble};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Samples that are looked at.
pub const SAMPLES: usize = 200;
/// Shards that they come from, read at once.
const SHARDS: usize = 4;

/// What was found.
#[derive(Debug, Default)]
pub struct Probe {
    /// Samples, undecoded.
    pub samples: Vec<RawSample>,
    /// Shards that were opened.
    pub shards: usize,
    /// Bytes that came from files and servers.
    pub bytes: u64,
    /// From the first request to the last sample.
    pub time: Duration,
    /// Samples in a shard, by the length of the shards and the room that a sample takes; none where lengths are unknown.
    pub samples_a_shard: Option<f64>,
    /// What was lost: shards that cannot be read, samples that are broken.
    pub lost: Vec<(Arc<str>, Trouble)>,
}

/// What one shard gave.
#[derive(Default)]
struct Part {
    samples: Vec<RawSample>,
    bytes: u64,
    expected: Option<f64>,
    lost: Vec<(Arc<str>, Trouble)>,
}

/// Reads the first samples of shards that lie evenly in the list.
///
/// # Errors
/// When no connection can be prepared at all.
pub fn probe(list: &ShardList, plan: &Plan) -> Result<Probe> {
    let runtime = start_runtime()?;
    let _context = runtime.enter();
    let count = SHARDS.min(plan.stream.lanes.max(1)).min(list.shards.len());
    let chosen: Vec<ShardUrl> = (0..count).map(|i| list.shards[i * list.shards.len() / count].clone()).collect();
    let fetcher = Fetcher::new(&chosen, &plan.fetch)?;
    let most = (plan.stream.max_member_mib as u64) << 20;
    let quota = SAMPLES.div_ceil(count);

    let started = Instant::now();
    let handle = runtime.handle();
    let parts: Vec<Part> = std::thread::scope(|scope| {
        let readers: Vec<_> = chosen
            .iter()
            .map(|url| {
                scope.spawn(|| {
                    let _context = handle.enter();
                    read(url, &fetcher, most, quota)
                })
            })
            .collect();
        readers.into_iter().filter_map(|reader| reader.join().ok()).collect()
    });
    let mut probe = Probe { shards: count, time: started.elapsed(), ..Probe::default() };
    let expected: Vec<f64> = parts.iter().filter_map(|part| part.expected).collect();
    if !expected.is_empty() {
        probe.samples_a_shard = Some(expected.iter().sum::<f64>() / expected.len() as f64);
    }
    for part in parts {
        probe.samples.extend(part.samples);
        probe.bytes += part.bytes;
        probe.lost.extend(part.lost);
    }
    Ok(probe)
}

fn read(url: &ShardUrl, fetcher: &Arc<Fetcher>, most: u64, quota: usize) -> Part {
    let shard = Arc::clone(url.name());
    let reading = Reading::new(Arc::clone(&shard));
    let mut part = Part::default();
    let mut samples = match Archive::open(url, fetcher, &reading) {
        Ok(archive) => Samples::new(archive, most),
        Err(trouble) => {
            part.lost.push((shard, trouble));
            return part;
        }
    };
    let mut end = 0;
    let mut ended = false;
    while part.samples.len() < quota && !ended {
        match samples.step() {
            Step::Sample(sample) => {
                end = sample.end;
                let meta = SampleMeta {
                    id: SampleId(part.samples.len() as u64),
                    key: sample.key,
                    shard: Arc::clone(&shard),
                    offset: sample.offset,
                    pass: 0,
                    class: sample.class,
                };
                part.samples.push(RawSample::new(meta, sample.image));
            }
            Step::Lost(lost) => part.lost.push((Arc::clone(&shard), lost.trouble)),
            Step::End(ending) => {
                ended = true;
                part.lost.extend(ending.trouble.map(|trouble| (Arc::clone(&shard), trouble)));
            }
        }
    }
    part.bytes = reading.bytes();
    let count = part.samples.len() as f64;
    // Of a compressed shard fewer bytes have come than lie unpacked; of a plain one some come ahead of their need.
    let room = end.min(part.bytes) as f64 / count.max(1.0);
    part.expected = match samples.archive().stored_length() {
        _ if ended => Some(count),
        Some(length) if room > 0.0 => Some(length as f64 / room),
        _ => None,
    };
    part
}
