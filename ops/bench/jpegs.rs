//! What the benches decode: every JPEG of some tars, in memory.

use shoal::decode::{Format, sniff};
use shoal::ingest::{RawSample, SampleMeta};
use shoal::shards::SampleId;
use std::io::Read;
use std::sync::Arc;

/// The JPEGs of `shards`, in order; their ids count from 0.
pub fn read_jpegs(shards: &[String]) -> std::io::Result<Vec<RawSample>> {
    let mut samples = Vec::new();
    for shard in shards {
        let mut archive = tar::Archive::new(std::fs::File::open(shard)?);
        for member in archive.entries()? {
            let mut member = member?;
            let mut image = Vec::new();
            member.read_to_end(&mut image)?;
            if sniff(&image) != Ok(Format::Jpeg) {
                continue;
            }
            let meta = SampleMeta {
                id: SampleId(samples.len() as u64),
                key: member.path()?.display().to_string(),
                shard: Arc::from(shard.as_str()),
                offset: member.raw_header_position(),
                pass: 0,
                class: None,
            };
            samples.push(RawSample::new(meta, image.into()));
        }
    }
    Ok(samples)
}
