//! The bytes of one shard, from a file, a server, an object store or a command.
//!
//! In: a [`ShardUrl`] and a byte to begin at. Out: a blocking [`Read`] for the thread that owns the shard. A file is read
//! in that thread (`local.rs`); what a command writes passes through a small channel (`pipe.rs`). What is on a server (`remote.rs`
//! says what is asked of it, `http.rs` and `store.rs` ask) comes in ranges (`ranges.rs`), some of them in flight at once; each
//! is seen through cuts, stalls and refusals (`stretch.rs`) without ever mixing versions, and no host gets more requests
//! than it bears, or any while it asks to be left alone (`hosts.rs`). Single images of a store come whole, many at once
//! (`objects.rs`). Whole shards may be kept on disk (`cache.rs`). What cannot be read is a [`Trouble`] with its
//! reason; the bytes before it count. Nothing here shows credentials or queries.

mod cache;
mod hosts;
mod http;
mod local;
mod lookup;
mod objects;
mod pipe;
mod profile;
mod race;
mod ranges;
mod remote;
mod rest;
mod store;
mod stretch;
mod usual;

use self::cache::{Cache, Entry};
use self::hosts::Hosts;
use self::http::HttpShard;
pub(super) use self::lookup::Lookup;
pub(super) use self::objects::{Ahead, Fetched, list as list_objects};
use self::pipe::PipeReader;
use self::ranges::RemoteReader;
use self::remote::Remote;
pub(super) use self::store::SCHEMES;
use self::store::Stores;
use self::stretch::Version;
use super::reading::{Activity, Reading};
use super::reason::{Reason, Trouble};
use super::url::{Address, ShardUrl};
use crate::config::FetchPlan;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Installs the cryptography that TLS of this process uses; whoever opens connections calls it first.
pub(crate) fn provide_tls() {
    // An error only says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// What all shards share: the HTTP client, the runtime, room for bytes ahead, what hosts bear, and how patient to be.
#[derive(Debug)]
pub struct Fetcher {
    /// Made for the first shard that needs it: a list that is followed may gain one later.
    client: OnceLock<reqwest::Client>,
    stores: Stores,
    cache: Option<Arc<Cache>>,
    runtime: tokio::runtime::Handle,
    rules: Rules,
    hosts: Hosts,
    /// Room, in KiB, for the ranges beyond the one that each shard may always hold.
    room: Arc<Semaphore>,
}

/// `[fetch]` of the pipeline, in the units that readers count in.
#[derive(Clone, Debug)]
struct Rules {
    retries: u32,
    /// Time without a byte, and the time over which the pace of a body is taken.
    patience: Duration,
    longest_pause: Duration,
    /// How long retries go on while no host can be reached.
    longest_outage: Duration,
    /// Bytes per second under which a body is given up.
    slowest: f64,
    /// Bytes of the largest range.
    range: u64,
    /// Ranges of one shard in flight or waiting to be read.
    ranges: usize,
    /// Whether late ranges are asked for a second time.
    hedge: bool,
}

impl Rules {
    fn new(plan: &FetchPlan) -> Result<Self> {
        let duration = |key, seconds| {
            Duration::try_from_secs_f64(seconds).map_err(|error| Error::usage(format!("{key} = {seconds}: {error}")))
        };
        Ok(Self {
            retries: plan.retries,
            patience: duration("fetch.timeout_s", plan.timeout_s)?,
            longest_pause: duration("fetch.max_pause_s", plan.max_pause_s)?,
            longest_outage: duration("fetch.outage_minutes", plan.outage_minutes * 60.0)?,
            slowest: plan.min_kib_per_s * KIB,
            range: ((plan.range_mib * MIB) as u64).max(1),
            ranges: plan.ranges.max(1),
            hedge: plan.hedge,
        })
    }
}

impl Fetcher {
    /// For shards of this kind: where one of them is remote, what HTTP lacks is told here.
    ///
    /// # Errors
    /// Outside of a tokio runtime, or without the system's TLS certificates.
    pub fn new(shards: &[ShardUrl], plan: &FetchPlan) -> Result<Arc<Self>> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::Stage { stage: "ingest", what: error.to_string() })?;
        let rules = Rules::new(plan)?;
        let client = match shards.iter().any(ShardUrl::is_remote) {
            true => OnceLock::from(http::client(rules.patience)?),
            false => OnceLock::new(),
        };
        let room = Arc::new(Semaphore::new(plan.buffer_mib.saturating_mul(1024).min(Semaphore::MAX_PERMITS)));
        let stores = Stores::new(plan, rules.patience);
        let cache = Cache::open(plan)?;
        let hosts = Hosts::new(plan.connections, rules.longest_pause);
        Ok(Arc::new(Self { client, stores, cache, runtime, rules, hosts, room }))
    }

    /// Waits for something asynchronous in the thread of a shard. Not for async code.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Whoever has the object of this address.
    fn remote(&self, address: &str) -> Result<Arc<dyn Remote>, Trouble> {
        let client = match self.client.get() {
            Some(client) => client,
            None => {
                let made = http::client(self.rules.patience)
                    .map_err(|error| Trouble::new(Reason::Unreachable, error.to_string()))?;
                self.client.get_or_init(|| made)
            }
        };
        Ok(Arc::new(HttpShard::new(client.clone(), address)?))
    }
}

/// The bytes of one shard, from some byte on.
#[derive(Debug)]
pub struct Source {
    reading: Arc<Reading>,
    body: Body,
    length: Option<u64>,
    /// The version of a shard that is on a server, also where the cache has it.
    tag: Option<Arc<str>>,
    /// The shard on its way into the cache, while it is read from its first byte on without a jump.
    entry: Option<Entry>,
}

#[derive(Debug)]
enum Body {
    File(File),
    Remote(Box<RemoteReader>),
    Pipe(Box<PipeReader>),
}

impl Source {
    /// Opens a shard at its first byte. Blocks: not for async code.
    ///
    /// # Errors
    /// Why there are no bytes, after every retry.
    pub fn open(url: &ShardUrl, fetcher: &Arc<Fetcher>, reading: &Arc<Reading>) -> Result<Self, Trouble> {
        reading.set(Activity::Opening);
        let (body, length) = match url.address() {
            Address::Local(path) => {
                let (file, length) = local::open(path)?;
                (Body::File(file), length)
            }
            Address::Images(_) => return Err(Trouble::new(Reason::Unreadable, "is a folder")),
            Address::Remote(address) => return Self::open_remote(fetcher.remote(address)?, fetcher, reading),
            Address::Store(address) => {
                return Self::open_remote(Arc::new(fetcher.stores.object(address)?), fetcher, reading);
            }
            Address::Pipe(command) => (Body::Pipe(Box::new(PipeReader::start(command, fetcher, reading)?)), None),
        };
        reading.set(Activity::Reading);
        Ok(Self { reading: Arc::clone(reading), body, length, tag: None, entry: None })
    }

    /// Opens a shard on a server, or what the cache has of it.
    fn open_remote(remote: Arc<dyn Remote>, fetcher: &Arc<Fetcher>, reading: &Arc<Reading>) -> Result<Self, Trouble> {
        let (name, cache) = (&reading.shard, fetcher.cache.as_ref());
        if let Some(cache) = cache.filter(|cache| cache.knows(name)) {
            let Version { tag, length, .. } = ranges::version(&remote, fetcher, reading)?;
            if let Some(file) = cache.find(name, tag.as_deref(), length) {
                reading.set(Activity::Reading);
                return Ok(Self { reading: Arc::clone(reading), body: Body::File(file), length, tag, entry: None });
            }
        }
        let reader = RemoteReader::open(remote, fetcher, reading)?;
        let Version { tag, length, .. } = reader.version().clone();
        let entry = cache.and_then(|cache| cache.begin(name, tag.as_deref(), length));
        reading.set(Activity::Reading);
        Ok(Self { reading: Arc::clone(reading), body: Body::Remote(Box::new(reader)), length, tag, entry })
    }

    /// Length of the shard in bytes as the file system or the server tells it.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The version of the shard as the server tells it (ETag, or else Last-Modified).
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Whether going to another byte costs next to nothing.
    pub fn is_local(&self) -> bool {
        matches!(self.body, Body::File(_))
    }

    /// Whether [`Source::go_to`] leaves out the bytes between: in files, and on servers that honour ranges, at the price of
    /// a request.
    pub fn can_jump(&self) -> bool {
        match &self.body {
            Body::File(_) => true,
            Body::Remote(reader) => reader.can_jump(),
            Body::Pipe(_) => false,
        }
    }

    /// The state shared with whoever wants this shard.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Goes to a byte of the shard. From a command, or a server that ignores ranges, all bytes up to there are read.
    ///
    /// # Errors
    /// Why there are no bytes from there on.
    pub fn go_to(&mut self, byte: u64) -> Result<(), Trouble> {
        self.entry = None;
        match &mut self.body {
            Body::File(file) => file.seek(SeekFrom::Start(byte)).map(drop).map_err(|error| local::trouble(&error)),
            Body::Remote(reader) => reader.go_to(byte),
            Body::Pipe(reader) => reader.go_to(byte),
        }
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.reading.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let count = match &mut self.body {
            Body::File(file) => file.read(into)?,
            Body::Remote(reader) => reader.read(into)?,
            Body::Pipe(reader) => reader.read(into)?,
        };
        if let Some(entry) = self.entry.take_if(|_| count > 0) {
            self.entry = entry.write(&into[..count]);
        }
        self.reading.add_bytes(count);
        Ok(count)
    }
}
