//! The lines of `ledger.jsonl`: what was lost, how each shard ended, and what older passes came to.
//!
//! Each line is a JSON object with a `time` (seconds since 1970, UTC) and a `kind`: "loss" (a [`Loss`]), "shard" (a
//! [`ShardEnd`]: the proof that a shard was read to its end, or the word that it was not) or "sum" (a [`Sum`] of older
//! lines that were folded together). A line without a kind is a loss. A last line without its end is one that a crash
//! cut short: readers pass it over. Any other line that does not parse makes the file no ledger.

use crate::error::{Error, Result};
use crate::shards::archive::{Ending, Verdict};
use crate::shards::reason::Reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

/// Something lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Which pass over the list, from 0.
    pub pass: u64,
    /// Shard, without credentials.
    pub shard: String,
    /// WebDataset key, where there is one.
    pub key: Option<String>,
    /// Byte offset in the uncompressed shard.
    pub offset: u64,
    /// Why.
    pub reason: Reason,
    /// Particulars, for the operator.
    pub detail: String,
    /// The step whose clustering the list was encoded for (`cluster.refresh = "full"`), where that is the reading meant:
    /// the pass is then the one that training was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<u64>,
}

/// How a shard ended, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardVerdict {
    /// Read to its proper end.
    Complete,
    /// Readable up to a byte.
    Truncated,
    /// Not readable at all.
    Failed,
    /// Given up, since too much of it was lost (`stream.max_shard_loss`).
    Quarantined,
}

impl ShardVerdict {
    /// As it stands in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Truncated => "truncated",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
        }
    }
}

/// What became of one shard in one pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEnd {
    /// Which pass over the list, from 0.
    pub pass: u64,
    /// Shard, without credentials.
    pub shard: String,
    /// How it ended.
    pub verdict: ShardVerdict,
    /// Bytes of the uncompressed tar up to where it was read: for a truncated shard the byte of the cut.
    pub bytes: u64,
    /// The byte from which on `samples` and `losses` count: above 0 only where the rest of a shard was dealt to another rank.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub from_byte: u64,
    /// Ranks that share the shard, of which this one counts what it was dealt.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub parts: u64,
    /// Samples that the shard gave. Decoding may reject some of them later.
    pub samples: u64,
    /// What was lost while it was read.
    pub losses: BTreeMap<Reason, u64>,
    /// As in [`Loss`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<u64>,
}

/// What lines came to that were folded together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// The last of their passes.
    pub through_pass: u64,
    /// Losses by reason.
    pub losses: BTreeMap<Reason, u64>,
    /// Shards that were read, once for each pass.
    pub shards: u64,
    /// Samples that they gave.
    pub samples: u64,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Something lost.
    Loss(Loss),
    /// The end of a shard.
    Shard(ShardEnd),
    /// Older lines.
    Sum(Sum),
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Loss,
    Shard,
    Sum,
}

/// What tells the lines apart.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: Kind,
}

#[derive(Serialize)]
struct Line<'a, T> {
    time: f64,
    kind: Kind,
    #[serde(flatten)]
    what: &'a T,
}

impl Loss {
    /// Names the loss across restarts.
    pub(super) fn fingerprint(&self) -> u64 {
        let reading = reading(self.pass, self.encoding);
        let text = format!("{reading} {} {} {}", self.offset, self.reason, self.shard);
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
}

impl ShardEnd {
    /// The entry for a shard that ended so, before anything is counted.
    pub fn new(pass: u64, shard: &str, ending: &Ending, bytes: u64) -> Self {
        let verdict = match ending.verdict {
            Verdict::Complete => ShardVerdict::Complete,
            Verdict::TruncatedAt(_) => ShardVerdict::Truncated,
            Verdict::Failed(Reason::Quarantined) => ShardVerdict::Quarantined,
            Verdict::Failed(_) => ShardVerdict::Failed,
        };
        let (shard, losses) = (shard.to_owned(), BTreeMap::new());
        Self { pass, shard, verdict, bytes, from_byte: 0, parts: 1, samples: 0, losses, encoding: None }
    }

    /// Whether the shard could be used at all.
    pub fn worked(&self) -> bool {
        matches!(self.verdict, ShardVerdict::Complete | ShardVerdict::Truncated)
    }

    /// Names the entry across restarts. The same shard with another outcome is another entry.
    pub(super) fn fingerprint(&self) -> u64 {
        let losses: Vec<_> = self.losses.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let text = format!(
            "shard {} {} {:?} {} {} {} {}",
            reading(self.pass, self.encoding),
            self.shard,
            self.verdict,
            self.bytes,
            self.from_byte,
            self.samples,
            losses.join(" ")
        );
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
}

impl Entry {
    /// The pass it is of.
    pub fn pass(&self) -> u64 {
        match self {
            Self::Loss(loss) => loss.pass,
            Self::Shard(end) => end.pass,
            Self::Sum(sum) => sum.through_pass,
        }
    }

    /// The step of the encoding that it is of, if it is of one.
    pub fn encoding(&self) -> Option<u64> {
        match self {
            Self::Loss(loss) => loss.encoding,
            Self::Shard(end) => end.encoding,
            Self::Sum(_) => None,
        }
    }

    /// Names the entry across restarts, if it is of one thing alone.
    pub(super) fn fingerprint(&self) -> Option<u64> {
        match self {
            Self::Loss(loss) => Some(loss.fingerprint()),
            Self::Shard(end) => Some(end.fingerprint()),
            Self::Sum(_) => None,
        }
    }

    pub(super) fn parse(text: &[u8]) -> serde_json::Result<Self> {
        let head: Head = serde_json::from_slice(text)?;
        Ok(match head.kind {
            Kind::Loss => Self::Loss(serde_json::from_slice(text)?),
            Kind::Shard => Self::Shard(serde_json::from_slice(text)?),
            Kind::Sum => Self::Sum(serde_json::from_slice(text)?),
        })
    }

    /// As a line, at the present time.
    pub(super) fn to_line(&self) -> serde_json::Result<String> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let time = (now.as_secs_f64() * 1e3).round() / 1e3;
        let mut text = match self {
            Self::Loss(what) => serde_json::to_string(&Line { time, kind: Kind::Loss, what }),
            Self::Shard(what) => serde_json::to_string(&Line { time, kind: Kind::Shard, what }),
            Self::Sum(what) => serde_json::to_string(&Line { time, kind: Kind::Sum, what }),
        }?;
        text.push('\n');
        Ok(text)
    }
}

/// Hands `each` the entries of a ledger with the bytes of their lines; the length of the file up to its last whole line.
///
/// # Errors
/// The file cannot be read, or is no ledger; what `each` returns.
pub(super) fn for_each(
    path: &Path,
    mut reader: impl BufRead,
    mut each: impl FnMut(Entry, &[u8]) -> Result<()>,
) -> Result<u64> {
    let mut text = Vec::new();
    let (mut whole, mut number) = (0, 0);
    loop {
        text.clear();
        let length = reader.read_until(b'\n', &mut text).map_err(|source| Error::file("read", path, &source))?;
        if !text.ends_with(b"\n") {
            return Ok(whole);
        }
        whole += length as u64;
        number += 1;
        let entry = Entry::parse(&text).map_err(|error| {
            Error::data(format!("{} line {number}: {error}", path.display()))
                .with_hint("this is not a ledger of shoal: move it away and start again")
        })?;
        each(entry, &text)?;
    }
}

/// Every entry of a ledger, in the order of the file.
///
/// # Errors
/// The file cannot be read, or is no ledger.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let file = std::fs::File::open(path).map_err(|source| Error::file("read", path, &source))?;
    let mut entries = Vec::new();
    for_each(path, std::io::BufReader::new(file), |entry, _| {
        entries.push(entry);
        Ok(())
    })?;
    Ok(entries)
}

/// Names one reading of the list.
fn reading(pass: u64, encoding: Option<u64>) -> String {
    encoding.map_or_else(|| pass.to_string(), |step| format!("encoding {step}"))
}

fn one() -> u64 {
    1
}

fn is_one(number: &u64) -> bool {
    *number == 1
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
