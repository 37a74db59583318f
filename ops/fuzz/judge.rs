//! What is right of an archive and of a picture, whatever their bytes: shared by the fuzzers.
//!
//! In: bytes. Out: a complaint, or none. A tar is judged by the strict reading of `tests/strict.rs`: certain samples are given, in
//! order, and nothing that is wrong is passed over without a word. Any other archive must come to an end, with offsets that ascend. A
//! picture must become pixels within the limits of the decoder, or a reason why not.

use super::strict::Strict;
use bytes::Bytes;
use shoal::config::{FetchPlan, StreamPlan, ViewsPlan};
use shoal::decode::Decoder;
use shoal::ingest::{RawSample, SampleMeta};
use shoal::shards::archive::{Archive, Verdict};
use shoal::shards::sample::{Samples, Step};
use shoal::shards::source::Fetcher;
use shoal::shards::{Reading, Reason, Rejection, SampleId, ShardList, ShardUrl};
use std::path::Path;
use std::sync::Arc;

/// Pictures of more are refused.
const MEGAPIXELS: f64 = 4.0;
const LARGEST_MEMBER: u64 = 1 << 20;
const SIDE: usize = 32;

/// Reads and decodes what it is given.
pub struct Judge {
    file: ShardUrl,
    fetcher: Arc<Fetcher>,
    decoder: Decoder,
    _runtime: tokio::runtime::Runtime,
}

/// What came of a picture.
pub enum Outcome {
    Decoded,
    Refused,
    /// A panic that the decoder caught.
    Caught,
    Wrong(String),
}

impl Judge {
    /// Archives lie in `file` while they are read.
    pub fn new(file: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        std::fs::write(file, "")?;
        let list = ShardList::parse(&[file.display().to_string()])?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let fetcher = {
            let _inside = runtime.enter();
            Fetcher::new(&list.shards, &FetchPlan::default())?
        };
        let views = ViewsPlan { size: SIDE as u32, resize: 36, ..ViewsPlan::default() };
        let stream = StreamPlan { max_megapixels: MEGAPIXELS, ..StreamPlan::default() };
        let decoder = Decoder::new(&views, &stream);
        Ok(Self { file: list.shards[0].clone(), fetcher, decoder, _runtime: runtime })
    }

    fn open(&self) -> Option<Samples> {
        let reading = Reading::new(Arc::clone(self.file.name()));
        let archive = Archive::open(&self.file, &self.fetcher, &reading).ok()?;
        Some(Samples::new(archive, LARGEST_MEMBER))
    }

    /// What is wrong with the way the archive in the file, of these bytes, was read.
    pub fn read(&self, archive: &[u8]) -> Option<String> {
        let wrappings = [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"PK"];
        match wrappings.iter().any(|magic| archive.starts_with(magic)) {
            true => self.read_any(),
            false => self.read_tar(archive),
        }
    }

    fn read_tar(&self, tar: &[u8]) -> Option<String> {
        let strict = Strict::read(tar);
        let Some(mut samples) = self.open() else {
            return strict.is_whole.then(|| "a whole tar was refused".to_owned());
        };
        let mut is_quiet = true;
        let mut offsets = Vec::new();
        for _ in 0..tar.len() {
            match samples.step() {
                Step::Sample(sample) => offsets.push(sample.offset as usize),
                Step::Lost(lost) => {
                    let of_the_contents = [Reason::NoImage, Reason::EmptyShard, Reason::MemberTooLarge];
                    is_quiet &= of_the_contents.contains(&lost.trouble.reason);
                    if lost.key.is_some() && of_the_contents.contains(&lost.trouble.reason) {
                        offsets.push(lost.offset as usize);
                    }
                }
                Step::End(ending) => {
                    is_quiet &= ending.verdict == Verdict::Complete;
                    let certain: Vec<usize> = strict.samples(tar).iter().map(|sample| sample.offset).collect();
                    if is_quiet != strict.is_whole {
                        return Some(format!("said nothing: {is_quiet}, is whole: {}", strict.is_whole));
                    }
                    return (!offsets.starts_with(&certain))
                        .then(|| format!("samples at {offsets:?}, not {certain:?}"));
                }
            }
        }
        Some("no end".to_owned())
    }

    /// A zip, or a tar in something.
    fn read_any(&self) -> Option<String> {
        /// More than any archive of a few hundred KiB may have.
        const STEPS: usize = 1 << 20;
        let mut samples = self.open()?;
        let mut last = None;
        for _ in 0..STEPS {
            match samples.step() {
                Step::Sample(sample) => {
                    if last.is_some_and(|last| last >= sample.offset) || sample.end <= sample.offset {
                        return Some(format!("a sample from {} to {} after {last:?}", sample.offset, sample.end));
                    }
                    last = Some(sample.offset);
                }
                Step::Lost(_) => {}
                Step::End(ending) => {
                    let is_told = ending.trouble.is_some() || ending.verdict == Verdict::Complete;
                    return (!is_told).then(|| format!("{:?} without a reason", ending.verdict));
                }
            }
        }
        Some("no end".to_owned())
    }

    /// Decodes a picture into both views.
    pub fn decode(&self, picture: &[u8]) -> Outcome {
        let meta =
            SampleMeta { id: SampleId(1), key: String::new(), shard: Arc::from(""), offset: 0, pass: 0, class: None };
        let sample = RawSample::new(meta, Bytes::copy_from_slice(picture));
        let (mut center, mut train) = ([0; SIDE * SIDE * 3], [0; SIDE * SIDE * 3]);
        match self.decoder.decode_into(&sample, Some(&mut center), Some(&mut train)) {
            Ok(decoded) => {
                let pixels = f64::from(decoded.size.0) * f64::from(decoded.size.1);
                match pixels > MEGAPIXELS * 1e6 {
                    true => Outcome::Wrong(format!("{decoded:?} is over the limit")),
                    false => Outcome::Decoded,
                }
            }
            Err(Rejection::Lost(trouble)) if trouble.detail.contains("panicked") => Outcome::Caught,
            Err(_) => Outcome::Refused,
        }
    }
}
