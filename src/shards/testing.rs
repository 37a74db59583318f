//! Small shards for the tests of this crate.

use super::ledger::Ledger;
use super::list::ShardList;
use crate::config::{FetchPlan, StreamPlan};
use std::io::Write;
use std::path::Path;

/// Begins as a JPEG does; its text tells it from others.
pub(crate) fn image(text: &str) -> Vec<u8> {
    [b"\xff\xd8\xff\xe0", text.as_bytes()].concat()
}

/// A tar of these members, with its end marker.
pub(crate) fn tar_of(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A tar of `count` samples `NAME/0`, `NAME/1`, ..., each an image and a class.
pub(crate) fn samples(name: &str, count: usize) -> Vec<u8> {
    let names: Vec<(String, String)> =
        (0..count).map(|i| (format!("{name}/{i}.jpg"), format!("{name}/{i}.cls"))).collect();
    let mut members = Vec::new();
    for (i, (jpg, cls)) in names.iter().enumerate() {
        members.push((jpg.as_str(), image(&format!("{jpg}{}", "x".repeat(37 * (i % 40))))));
        members.push((cls.as_str(), i.to_string().into_bytes()));
    }
    tar_of(&members)
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn plan() -> StreamPlan {
    StreamPlan::default()
}

pub(crate) fn fetch() -> FetchPlan {
    FetchPlan { timeout_s: 5.0, retries: 2, ..FetchPlan::default() }
}

pub(crate) fn ledger() -> std::sync::Arc<Ledger> {
    // tests lose more than runs may
    std::sync::Arc::new(Ledger::in_memory(&StreamPlan { max_loss_rate: 1.0, ..plan() }))
}

/// Writes shards into a folder and lists it.
pub(crate) fn list_of(folder: &Path, shards: &[(String, Vec<u8>)]) -> ShardList {
    for (name, data) in shards {
        std::fs::write(folder.join(name), data).unwrap();
    }
    ShardList::parse(&[folder.display().to_string()]).unwrap()
}
