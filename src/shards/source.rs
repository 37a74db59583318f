//! The bytes of one shard, from a file or from an HTTP server.
//!
//! In: a [`ShardUrl`] and a byte to begin at. Out: a blocking [`Read`] for the thread that owns the shard. A file is read
//! in that thread; a server's answer is streamed by a task of the async runtime through a small bounded channel, so that a slow
//! reader slows the server. Connecting is retried with growing, jittered pauses until an answer has come; 404 and its like are final.
//! A body that breaks or stalls gives a [`Reason::ConnectionLost`] at the byte where it broke. Nothing here shows
//! credentials or queries.

use super::reading::{Activity, Reading};
use super::reason::{Reason, Trouble};
use super::url::{Address, ShardUrl};
use crate::config::FetchPlan;
use crate::error::{Error, Result};
use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE, RETRY_AFTER};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Chunks (of some 10 to 100 kB) between the task that receives and the thread that reads.
const CHUNKS_AHEAD: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What all shards share: the HTTP client, the runtime, and how patient to be.
#[derive(Debug)]
pub struct Fetcher {
    client: Option<reqwest::Client>,
    runtime: tokio::runtime::Handle,
    retries: u32,
    patience: Duration,
}

impl Fetcher {
    /// For shards of this kind: a client is made only where one of them is remote.
    ///
    /// # Errors
    /// Outside of a tokio runtime, or without the system's TLS certificates.
    pub fn new(shards: &[ShardUrl], plan: &FetchPlan) -> Result<Arc<Self>> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::Stage { stage: "ingest", what: error.to_string() })?;
        let patience = Duration::try_from_secs_f64(plan.timeout_s)
            .map_err(|error| Error::usage(format!("fetch.timeout_s = {}: {error}", plan.timeout_s)))?;
        let client = match shards.iter().any(ShardUrl::is_remote) {
            true => Some(client(patience)?),
            false => None,
        };
        Ok(Arc::new(Self { client, runtime, retries: plan.retries, patience }))
    }

    /// Waits for something asynchronous in the thread of a shard. Not for async code.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

fn client(patience: Duration) -> Result<reqwest::Client> {
    // An error only says that the provider of TLS is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(patience)
        // With HTTP/2 all shards of a host share one window: those that wait for their turn would starve the others.
        .http1_only()
        .build()
        .map_err(|error| {
            Error::data(format!("cannot set up HTTP: {}", causes(error)))
                .with_hint("are the system's certificates installed (package ca-certificates)?")
        })
}

/// The bytes of one shard, from some byte on.
#[derive(Debug)]
pub struct Source {
    url: ShardUrl,
    fetcher: Arc<Fetcher>,
    reading: Arc<Reading>,
    body: Body,
    length: Option<u64>,
}

#[derive(Debug)]
enum Body {
    File(File),
    Remote(ChunkReader),
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
                let file = File::open(path).map_err(|error| local_trouble(&error))?;
                let metadata = file.metadata().map_err(|error| local_trouble(&error))?;
                if metadata.is_dir() {
                    return Err(Trouble::new(Reason::Unreadable, "is a folder"));
                }
                (Body::File(file), metadata.is_file().then_some(metadata.len()))
            }
            Address::Remote(address) => {
                let (body, length) = open_remote(address, 0, fetcher, reading)?;
                (Body::Remote(body), length)
            }
        };
        reading.set(Activity::Reading);
        Ok(Self { url: url.clone(), fetcher: Arc::clone(fetcher), reading: Arc::clone(reading), body, length })
    }

    /// Length of the shard in bytes as the file system or the server tells it.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether going to another byte costs next to nothing.
    pub fn is_local(&self) -> bool {
        matches!(self.body, Body::File(_))
    }

    /// The state shared with whoever wants this shard.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Goes to a byte of the shard. A server is asked anew; one that ignores ranges is read up to there.
    ///
    /// # Errors
    /// Why there are no bytes from there on.
    pub fn go_to(&mut self, byte: u64) -> Result<(), Trouble> {
        match (&mut self.body, self.url.address()) {
            (Body::File(file), _) => {
                file.seek(SeekFrom::Start(byte)).map_err(|error| local_trouble(&error))?;
            }
            (Body::Remote(body), Address::Remote(address)) => {
                *body = open_remote(address, byte, &self.fetcher, &self.reading)?.0;
                self.reading.set(Activity::Reading);
            }
            (Body::Remote(_), Address::Local(_)) => {}
        }
        Ok(())
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.reading.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let count = match &mut self.body {
            Body::File(file) => file.read(into)?,
            Body::Remote(body) => body.read(into)?,
        };
        self.reading.add_bytes(count);
        Ok(count)
    }
}

fn local_trouble(error: &io::Error) -> Trouble {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => Reason::NotFound,
        io::ErrorKind::PermissionDenied => Reason::Forbidden,
        _ => Reason::Unreadable,
    };
    Trouble::new(reason, error.to_string())
}

/// The blocking end of the channel that a server's answer comes through.
#[derive(Debug)]
struct ChunkReader {
    chunks: mpsc::Receiver<Result<Bytes, String>>,
    current: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(why)) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.current.len());
        into[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// Asks for the shard from a byte on, in a task of its own, and waits for the answer's head.
fn open_remote(
    address: &str,
    from: u64,
    fetcher: &Fetcher,
    reading: &Arc<Reading>,
) -> Result<(ChunkReader, Option<u64>), Trouble> {
    let Some(client) = fetcher.client.clone() else {
        return Err(Trouble::new(Reason::Unreachable, "no HTTP client for this list"));
    };
    let (head, opened) = oneshot::channel();
    let (chunks_in, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let (retries, patience) = (fetcher.retries, fetcher.patience);
    let request = Request { client, address: address.to_owned(), from, retries, patience };
    let reading = Arc::clone(reading);
    fetcher.runtime.spawn(async move {
        let nobody_reads = chunks_in.clone();
        tokio::select! {
            () = request.stream(head, chunks_in, &reading) => {}
            () = reading.stopped() => {}
            () = nobody_reads.closed() => {}
        }
    });
    match opened.blocking_recv() {
        Ok(Ok(length)) => Ok((ChunkReader { chunks, current: Bytes::new() }, length)),
        Ok(Err(trouble)) => Err(trouble),
        Err(_) => Err(Trouble::new(Reason::Unreachable, "stopped")),
    }
}

/// One GET, from a byte on.
struct Request {
    client: reqwest::Client,
    address: String,
    from: u64,
    retries: u32,
    /// Time without a byte of a server that is being waited for. While nobody wants more bytes no time counts.
    patience: Duration,
}

/// Whether another attempt may help.
enum Refusal {
    Final(Trouble),
    Passing(Trouble, Option<Duration>),
}

impl Request {
    async fn stream(
        &self,
        head: oneshot::Sender<Result<Option<u64>, Trouble>>,
        chunks: mpsc::Sender<Result<Bytes, String>>,
        reading: &Reading,
    ) {
        let (mut response, length, mut to_skip) = match self.answer(reading).await {
            Ok(answer) => answer,
            Err(trouble) => {
                let _ = head.send(Err(trouble));
                return;
            }
        };
        if head.send(Ok(length)).is_err() {
            return;
        }
        loop {
            let chunk = match timeout(self.patience, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    let _ = chunks.send(Err(causes(error))).await;
                    return;
                }
                Err(_) => {
                    let _ = chunks.send(Err(format!("no byte for {} s", self.patience.as_secs_f64()))).await;
                    return;
                }
            };
            let skipped = to_skip.min(chunk.len() as u64);
            to_skip -= skipped;
            let rest = chunk.slice(skipped as usize..);
            if !rest.is_empty() && chunks.send(Ok(rest)).await.is_err() {
                return;
            }
        }
    }

    /// The head of an answer that succeeded, the length of the whole shard, and how many bytes to leave out.
    async fn answer(&self, reading: &Reading) -> Result<(reqwest::Response, Option<u64>, u64), Trouble> {
        let mut attempt = 0;
        loop {
            reading.set(Activity::Opening);
            let (trouble, asked_pause) = match self.attempt().await {
                Ok(answer) => return Ok(answer),
                Err(Refusal::Final(trouble)) => return Err(trouble),
                Err(Refusal::Passing(trouble, asked_pause)) => (trouble, asked_pause),
            };
            if attempt == self.retries {
                let detail = format!("{} after {} attempts", trouble.detail, attempt + 1);
                return Err(Trouble::new(trouble.reason, detail));
            }
            reading.set(Activity::Retrying);
            tracing::debug!(shard = %reading.shard, attempt, %trouble, "will try again");
            tokio::time::sleep(asked_pause.unwrap_or_else(|| self.pause(attempt))).await;
            attempt += 1;
        }
    }

    async fn attempt(&self) -> Result<(reqwest::Response, Option<u64>, u64), Refusal> {
        let mut request = self.client.get(&self.address);
        if self.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.from));
        }
        let unreachable = |detail| Refusal::Passing(Trouble::new(Reason::Unreachable, detail), None);
        let response = timeout(self.patience, request.send())
            .await
            .map_err(|_| unreachable(format!("no answer for {} s", self.patience.as_secs_f64())))?
            .map_err(|error| unreachable(causes(error)))?;
        let status = response.status();
        if let Some(refusal) = refusal(&response) {
            return Err(refusal);
        }
        let body_length = response.content_length();
        if status != StatusCode::PARTIAL_CONTENT {
            return Ok((response, body_length, self.from));
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !range.starts_with(&format!("bytes {}-", self.from)) {
            let detail = format!("asked for bytes from {}, the server sent \"{range}\"", self.from);
            return Err(Refusal::Final(Trouble::new(Reason::HttpStatus, detail)));
        }
        Ok((response, body_length.map(|length| length + self.from), 0))
    }

    /// Grows twofold with each attempt, up to a limit; between half of that and all of it, so that readers do not march in step.
    fn pause(&self, attempt: u32) -> Duration {
        let longest = FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(LONGEST_PAUSE);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let chance = xxhash_rust::xxh3::xxh3_64_with_seed(self.address.as_bytes(), now.subsec_nanos().into());
        longest.mul_f64(0.5 + (chance % 1024) as f64 / 2048.0)
    }
}

/// None for a success.
fn refusal(response: &reqwest::Response) -> Option<Refusal> {
    let status = response.status();
    let trouble = |reason| Trouble::new(reason, format!("HTTP status {status}"));
    match status.as_u16() {
        200 | 206 => None,
        404 | 410 => Some(Refusal::Final(trouble(Reason::NotFound))),
        401 | 403 => Some(Refusal::Final(trouble(Reason::Forbidden))),
        416 => Some(Refusal::Final(Trouble::new(Reason::ShardChanged, "shorter than it was"))),
        408 | 425 | 429 | 500..=599 => Some(Refusal::Passing(trouble(Reason::HttpStatus), asked_pause(response))),
        _ => Some(Refusal::Final(trouble(Reason::HttpStatus))),
    }
}

/// The pause that a busy server asks for, within reason.
fn asked_pause(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds).clamp(FIRST_PAUSE, LONGEST_PAUSE))
}

/// What lies behind an error of the HTTP client, without the URL.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
