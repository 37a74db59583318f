//! One stretch of a remote shard, seen through whatever the server does.
//!
//! In: a [`Remote`], the bytes wanted, and the [`Version`] that all bytes must come from. Out: those bytes in order, as
//! [`Piece`]s, each once. After a cut, a stall or a trickle the next request begins at the byte that is missing; a server
//! that ignores ranges is read again up to there. Attempts are counted from the last byte that came, with growing, jittered
//! pauses between them, or when the host may be asked again where it named a time; they go on through an outage of all
//! hosts. What goes wrong: the attempts run out, the server says that more are useless, or the object is another one than
//! before ([`Reason::ShardChanged`]). Bytes before that are delivered.

use super::super::reading::{Activity, Reading};
use super::super::reason::{Reason, Trouble};
use super::hosts::{Host, Slot};
use super::race::{Outlet, Watch};
use super::remote::{Answer, Refusal, Remote};
use super::rest::chance;
use super::{Fetcher, Rules};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use xxhash_rust::xxh3::Xxh3;

const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What the reader of a stretch gets. The end is said: a task that is dropped must not look like one.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    Failed(Trouble),
    End,
}

/// What the first answer says of the object.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub length: Option<u64>,
    pub tag: Option<Arc<str>>,
    /// Whether the server honours ranges.
    pub ranges: bool,
}

impl Version {
    /// Refuses an answer from another object than the one before, and one that goes on where there is no telling. With
    /// `is_compared` the bytes that came before come again and prove it themselves.
    fn check(&self, answer: &Answer, is_compared: bool) -> Result<(), Refusal> {
        let tells = (self.tag.is_some() && answer.tag.is_some()) || (self.length.is_some() && answer.length.is_some());
        if answer.from > 0 && !tells {
            let detail = "the server told neither version nor length: the rest may be of another shard";
            return Err(Refusal::Final(Trouble::new(Reason::ConnectionLost, detail)));
        }
        let same_tag = match (self.tag.as_deref(), answer.tag.as_deref()) {
            (Some(old), Some(new)) if old != new => {
                let trouble = Trouble::new(Reason::ShardChanged, "the server has another version now");
                return Err(Refusal::Final(trouble));
            }
            (Some(_), None) if !is_compared => {
                let detail = "the server told a version before, and none now";
                return Err(Refusal::Passing(Trouble::new(Reason::HttpStatus, detail), None));
            }
            (old, new) => old.is_some() && new.is_some(),
        };
        match (self.length, answer.length) {
            (Some(old), Some(new)) if old != new => {
                let detail = format!("{new} bytes long, {old} before");
                Err(match same_tag {
                    true => Refusal::Passing(Trouble::new(Reason::HttpStatus, format!("said to be {detail}")), None),
                    false => Refusal::Final(Trouble::new(Reason::ShardChanged, detail)),
                })
            }
            _ => Ok(()),
        }
    }
}

/// The bytes of a shard from one place to another.
pub(super) struct Stretch {
    remote: Arc<dyn Remote>,
    fetcher: Arc<Fetcher>,
    reading: Arc<Reading>,
    /// The next byte to deliver.
    next: u64,
    /// Where the stretch ends; none for wherever the server does.
    end: Option<u64>,
    version: Option<Version>,
    /// Of all bytes delivered, where a server without ranges must be read again from the first byte.
    digest: Option<Xxh3>,
    /// Attempts since the last byte.
    failures: u32,
    watch: Arc<Watch>,
    role: Role,
}

/// Which request for the same bytes this is.
enum Role {
    First,
    /// Beside one that is late, with the slot of its only attempt.
    Second(Option<Slot>),
}

/// An answer that was checked, its body to be read.
pub(super) struct Arrived {
    body: BoxStream<'static, Result<Bytes, String>>,
    is_range: bool,
    /// Bytes at the beginning of the body that were delivered before.
    to_skip: u64,
    /// Held while a range is read into memory. The body of a whole shard waits for its reader, and must not keep others out.
    slot: Option<Slot>,
}

enum Received {
    All,
    Cut(Trouble),
    NobodyReads,
}

impl Stretch {
    /// Bytes `from..end`. The version is none for the first stretch of a shard only: should the server ignore ranges, that one
    /// becomes the whole shard.
    pub(super) fn new(
        remote: &Arc<dyn Remote>,
        fetcher: &Arc<Fetcher>,
        reading: &Arc<Reading>,
        (from, end): (u64, Option<u64>),
        version: Option<Version>,
    ) -> Self {
        let has_no_ranges = version.as_ref().is_some_and(|version| !version.ranges);
        Self {
            remote: Arc::clone(remote),
            fetcher: Arc::clone(fetcher),
            reading: Arc::clone(reading),
            next: from,
            end,
            version,
            digest: has_no_ranges.then(Xxh3::new),
            failures: 0,
            watch: Arc::default(),
            role: Role::First,
        }
    }

    /// The same bytes, to be asked for a second time; none where `fetch.hedge` says no, or there is no part of a known version
    /// to ask for.
    pub(super) fn second(&self) -> Option<Self> {
        let version = self.version.as_ref().filter(|version| version.ranges && version.tag.is_some())?;
        if !self.fetcher.rules.hedge || self.end.is_none() {
            return None;
        }
        let place = (self.next, self.end);
        let second = Self::new(&self.remote, &self.fetcher, &self.reading, place, Some(version.clone()));
        Some(Self { role: Role::Second(None), ..second })
    }

    /// Sends a second request for what is left from this byte on.
    pub(super) fn begin_second(self, slot: Slot, next: u64) -> Self {
        tracing::debug!(shard = %self.reading.shard, byte = next, "late: asks a second time");
        self.reading.asks_again();
        Self { role: Role::Second(Some(slot)), next, ..self }
    }

    /// Whom it asks.
    pub(super) fn host(&self) -> Arc<Host> {
        self.fetcher.hosts.named(self.remote.host())
    }

    /// Hears whether the reader waits.
    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Where it begins, before the first answer.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Where it ends, if that is known, and what the object is: after an answer.
    pub(super) fn known(&self) -> (Option<u64>, Option<&Version>) {
        (self.end, self.version.as_ref())
    }

    /// The head of an answer that succeeded.
    pub(super) async fn answer(&mut self) -> Result<Arrived, Trouble> {
        let host = self.host();
        loop {
            let slot = self.enter(&host).await;
            self.watch.asked(Some(slot.entered()));
            let patience = self.fetcher.rules.patience;
            let tag = self.version.as_ref().and_then(|version| version.tag.as_deref());
            let answered = match timeout(patience, self.remote.get(self.next, self.end, tag)).await {
                Ok(answered) => answered,
                Err(_) => {
                    let detail = format!("no answer for {} s", patience.as_secs_f64());
                    Err(Refusal::Passing(Trouble::new(Reason::Unreachable, detail), None))
                }
            };
            let refusal = match answered {
                Ok(answer) => {
                    slot.answered();
                    match self.accept(answer, slot) {
                        Ok(arrived) => return Ok(arrived),
                        Err(refusal) => refusal,
                    }
                }
                Err(refusal) => {
                    if let Refusal::Passing(trouble, asked_pause) = &refusal {
                        slot.refused(trouble.reason == Reason::Unreachable, *asked_pause);
                    }
                    drop(slot);
                    refusal
                }
            };
            match refusal {
                Refusal::Final(trouble) => return Err(trouble),
                Refusal::Passing(trouble, asked_pause) => self.fail(trouble, asked_pause).await?,
            }
        }
    }

    /// Waits until the host may be asked.
    async fn enter(&mut self, host: &Arc<Host>) -> Slot {
        if let Role::Second(slot) = &mut self.role
            && let Some(slot) = slot.take()
        {
            return slot;
        }
        let mut has_rested = false;
        let reading = &self.reading;
        let slot = host.enter(|| {
            has_rested = true;
            reading.set(Activity::Retrying);
        });
        let slot = slot.await;
        if has_rested {
            reading.set(Activity::Opening);
        }
        slot
    }

    /// Checks an answer against what was asked for and against the answers before.
    fn accept(&mut self, answer: Answer, slot: Slot) -> Result<Arrived, Refusal> {
        let expected = if answer.ranges { self.next } else { 0 };
        if answer.from != expected {
            let detail = format!("asked for bytes from {}, the server sent them from {}", self.next, answer.from);
            return Err(Refusal::Passing(Trouble::new(Reason::HttpStatus, detail), None));
        }
        if answer.ranges && answer.length.is_none() {
            let detail = "the server sent a part of the shard without saying how long it is";
            return Err(Refusal::Passing(Trouble::new(Reason::HttpStatus, detail), None));
        }
        match &self.version {
            Some(version) => {
                version.check(&answer, self.digest.is_some() && answer.from == 0)?;
                let is_proven = version.tag.is_some() && version.tag.as_deref() == answer.tag.as_deref();
                if !answer.ranges && self.digest.is_none() && self.next > 0 && !is_proven {
                    let detail = "the server sent the whole shard for a part of it, and no version to tell it by";
                    return Err(Refusal::Passing(Trouble::new(Reason::HttpStatus, detail), None));
                }
                if answer.ranges {
                    self.end = self.end.or(answer.length);
                }
            }
            None => {
                let Answer { length, ranges, .. } = answer;
                let tag = answer.tag.as_deref().map(Arc::from);
                self.version = Some(Version { length, tag, ranges });
                match ranges {
                    true => self.end = self.end.into_iter().chain(length).min(),
                    false => (self.end, self.digest) = (length, Some(Xxh3::new())),
                }
            }
        }
        let slot = self.digest.is_none().then_some(slot);
        Ok(Arrived { body: answer.body, is_range: answer.ranges, to_skip: self.next - expected, slot })
    }

    /// Delivers the body of an answer, and of more answers until the stretch is complete or nobody reads it.
    pub(super) async fn deliver(mut self, first: Option<Arrived>, outlet: &Outlet) -> Result<(), Trouble> {
        let mut arrived = first;
        loop {
            let answer = match arrived.take() {
                Some(answer) => answer,
                None => {
                    if self.digest.is_none() {
                        // another may have brought some of it meanwhile
                        self.next = self.next.max(outlet.next());
                    }
                    if self.end == Some(self.next) {
                        return Ok(());
                    }
                    self.answer().await?
                }
            };
            let received = self.receive(answer, outlet).await?;
            self.watch.asked(None);
            match received {
                Received::All | Received::NobodyReads => return Ok(()),
                Received::Cut(trouble) => self.fail(trouble, None).await?,
            }
        }
    }

    /// Delivers the body of one answer. An error is final.
    async fn receive(&mut self, arrived: Arrived, outlet: &Outlet) -> Result<Received, Trouble> {
        let Arrived { mut body, is_range, to_skip, slot } = arrived;
        let mut again = Again { left: to_skip, digest: (to_skip > 0 && self.digest.is_some()).then(Xxh3::new) };
        let Rules { patience, slowest, .. } = self.fetcher.rules;
        let mut pace = Pace::new(patience, slowest);
        loop {
            let left = self.end.map(|end| end - self.next);
            if left == Some(0) {
                slot.iter().for_each(Slot::received);
                return Ok(Received::All);
            }
            let mut chunk = match timeout(patience, body.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(why))) => return Ok(cut(why)),
                Ok(None) => {
                    return Ok(match left {
                        Some(left) => cut(format!("the server ended it {left} bytes early")),
                        None if again.left > 0 => cut(format!("the server ended it {} bytes early", again.left)),
                        None => Received::All,
                    });
                }
                Err(_) => return Ok(cut(format!("no byte for {} s", patience.as_secs_f64()))),
            };
            let trickle = pace.came(chunk.len());
            again.pass_over(&mut chunk);
            if again.left == 0
                && let (Some(again), Some(before)) = (again.digest.take(), &self.digest)
                && again.digest() != before.digest()
            {
                return Err(Trouble::new(Reason::ShardChanged, "the bytes up to here are not what they were"));
            }
            if let Some(left) = left.filter(|&left| left < chunk.len() as u64) {
                if is_range {
                    return Ok(cut("the server sent more than it was asked for".to_owned()));
                }
                chunk.truncate(left as usize);
            }
            if !chunk.is_empty() {
                let from = self.next;
                self.next += chunk.len() as u64;
                self.failures = 0;
                if let Some(digest) = &mut self.digest {
                    digest.update(&chunk);
                }
                let is_ahead = outlet.is_full();
                if !outlet.send(from, chunk).await {
                    return Ok(Received::NobodyReads);
                }
                if is_ahead {
                    // time in which nobody wants more bytes is not the server's
                    pace = Pace::new(patience, slowest);
                }
            }
            if let Some(why) = trickle.filter(|_| self.end != Some(self.next)) {
                return Ok(cut(why));
            }
        }
    }

    /// Waits before another attempt, unless there were enough.
    async fn fail(&mut self, trouble: Trouble, asked_pause: Option<Duration>) -> Result<(), Trouble> {
        self.watch.asked(None);
        if matches!(self.role, Role::Second(_)) {
            return Err(trouble);
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures > self.fetcher.rules.retries && !self.is_outage(&trouble) {
            let detail = format!("{} after {} attempts", trouble.detail, self.failures);
            return Err(Trouble::new(trouble.reason, detail));
        }
        self.reading.set(Activity::Retrying);
        tracing::debug!(shard = %self.reading.shard, byte = self.next, attempt = self.failures, %trouble, "will try again");
        tokio::time::sleep(self.pause(asked_pause)).await;
        self.reading.set(Activity::Opening);
        Ok(())
    }

    /// Whether nothing can be reached that could be before: that heals, and says nothing of this shard.
    fn is_outage(&self, trouble: &Trouble) -> bool {
        let Fetcher { hosts, rules, .. } = &*self.fetcher;
        trouble.reason == Reason::Unreachable
            && self.host().ever_answered()
            && hosts.outage_since().is_some_and(|since| since.elapsed() < rules.longest_outage)
    }

    /// Somewhere between nothing and a time that doubles with each failure, so that readers do not march in step; none where the
    /// server named a time: its host is closed until then.
    fn pause(&self, asked: Option<Duration>) -> Duration {
        if asked.is_some_and(|asked| !asked.is_zero()) {
            return Duration::ZERO;
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        doubled.min(self.fetcher.rules.longest_pause).mul_f64(chance(self.next))
    }
}

fn cut(why: String) -> Received {
    Received::Cut(Trouble::new(Reason::ConnectionLost, why))
}

/// Bytes of an answer that were delivered from an earlier one.
struct Again {
    left: u64,
    digest: Option<Xxh3>,
}

impl Again {
    fn pass_over(&mut self, chunk: &mut Bytes) {
        let passed = chunk.split_to(self.left.min(chunk.len() as u64) as usize);
        self.left -= passed.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(&passed);
        }
    }
}

/// How fast a body comes, over windows of the reader's patience.
struct Pace {
    window: Duration,
    slowest: f64,
    since: Instant,
    bytes: usize,
}

impl Pace {
    fn new(window: Duration, slowest: f64) -> Self {
        Self { window, slowest, since: Instant::now(), bytes: 0 }
    }

    /// Why the body should be given up, if it comes too slowly.
    fn came(&mut self, count: usize) -> Option<String> {
        self.bytes += count;
        let time = self.since.elapsed();
        if time < self.window {
            return None;
        }
        let pace = self.bytes as f64 / time.as_secs_f64();
        (self.since, self.bytes) = (Instant::now(), 0);
        (pace < self.slowest).then(|| format!("only {:.1} KiB a second", pace / 1024.0))
    }
}
