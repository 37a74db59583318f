//! Many small objects below a prefix of a store: their names, and each whole, fetched ahead of its reader.
//!
//! In: the address of a prefix; then the objects that are wanted, in order. Out: names with sizes; then bytes, or why there are
//! none, object by object. One request for a small object takes as long as one for a large range, so many are in flight at
//! once: as many as `fetch.connections` allows to their host, within the byte budget that all shards share beyond the one object that
//! each may always hold. Cuts, refusals and retries are those of any stretch (`stretch.rs`). A reader that ends, or goes
//! elsewhere, ends its requests.

use super::super::reading::{Activity, Reading};
use super::super::reason::{Reason, Trouble};
use super::Fetcher;
use super::race::{self, Outlet};
use super::remote::Remote;
use super::store::Page;
use super::stretch::{Piece, Stretch};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;

/// Names below one prefix: more would be no shard any more.
const MOST_OBJECTS: usize = 5_000_000;
/// Pieces of one object between its request and whoever puts them together.
const PIECES: usize = 16;
/// The unit of the budget.
const ROOM_UNIT: u64 = 1024;

/// An object below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::shards) struct Object {
    /// Its key without the prefix.
    pub name: String,
    /// Its length in bytes when it was listed.
    pub bytes: u64,
}

/// Everything below the prefix `s3://bucket/a/b/`, page by page; `is_flat` leaves out names with a `/`. Blocks.
///
/// # Errors
/// Why it cannot be listed, after every retry.
pub(in crate::shards) fn list(
    address: &str,
    is_flat: bool,
    fetcher: &Arc<Fetcher>,
    reading: &Arc<Reading>,
) -> Result<Vec<Object>, Trouble> {
    let (bucket, prefix) = fetcher.stores.bucket(address)?;
    let (prefix, shared, wanted) = (prefix.to_owned(), Arc::clone(fetcher), Arc::clone(reading));
    let listing = async move {
        let host = shared.hosts.named(bucket.host());
        let (mut objects, mut next) = (Vec::new(), None);
        loop {
            let page = || timeout(shared.rules.patience, bucket.page(&prefix, is_flat, next.clone()));
            let ask = || page().map(|page| page.unwrap_or_else(|_| Err(shared.rules.silence())));
            let Page { keys, after, .. } = shared.rules.persist(&host, ask).await?;
            let named = keys.into_iter().filter_map(|(key, bytes)| {
                let name = key.strip_prefix(&prefix)?.to_owned();
                Some(Object { name, bytes })
            });
            objects.extend(named);
            if objects.len() > MOST_OBJECTS {
                let detail = format!("more than {MOST_OBJECTS} objects below one prefix");
                return Err(Trouble::new(Reason::Unreadable, detail));
            }
            if after.is_none() {
                return Ok(objects);
            }
            next = after;
        }
    };
    let (done, outcome) = oneshot::channel();
    fetcher.runtime.spawn(async move {
        tokio::select! {
            objects = listing => {
                let _ = done.send(objects); // whoever asked may have gone
            }
            () = wanted.stopped() => {}
        }
    });
    outcome.blocking_recv().map_err(|_| Trouble::new(Reason::Unreachable, "stopped"))?
}

/// What came of one object.
#[derive(Debug)]
pub(in crate::shards) enum Fetched {
    /// All of its bytes.
    Whole(Bytes),
    /// More bytes than are read; at least this many.
    TooLarge(u64),
    /// Why there are none.
    Failed(Trouble),
}

/// Objects on their way, in the order in which they will be taken.
pub(in crate::shards) struct Ahead {
    fetcher: Arc<Fetcher>,
    reading: Arc<Reading>,
    asked: VecDeque<Asked>,
}

struct Asked {
    number: usize,
    fetched: oneshot::Receiver<Fetched>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Ahead {
    pub(in crate::shards) fn new(fetcher: &Arc<Fetcher>, reading: &Arc<Reading>) -> Self {
        Self { fetcher: Arc::clone(fetcher), reading: Arc::clone(reading), asked: VecDeque::new() }
    }

    /// The object of the first of `wanted` (number, address, bytes when listed), which come in the order in which they will be taken;
    /// as many of the others as there is room for are asked for as well. Objects of more than `most` bytes are not received. Blocks.
    pub(in crate::shards) fn take(&mut self, wanted: impl Iterator<Item = (usize, String, u64)>, most: u64) -> Fetched {
        let mut wanted = wanted.filter(|(_, _, bytes)| *bytes <= most).peekable();
        let Some(&(first, _, _)) = wanted.peek() else {
            return Fetched::Failed(Trouble::new(Reason::NotFound, "no object was asked for"));
        };
        while self.asked.front().is_some_and(|asked| asked.number != first) {
            self.asked.pop_front();
        }
        let newest = self.asked.back().map(|asked| asked.number);
        let mut rest = wanted.skip_while(|(number, _, _)| newest.is_some_and(|newest| *number <= newest));
        while self.asked.len() < self.fetcher.hosts.most() {
            let Some((number, address, bytes)) = rest.next() else { break };
            let room = match self.asked.is_empty() {
                true => None,
                false => match self.room_for(bytes) {
                    Some(room) => Some(room),
                    None => break,
                },
            };
            match self.ask(&address, most) {
                Ok(fetched) => self.asked.push_back(Asked { number, fetched, _room: room }),
                Err(trouble) if number == first => return Fetched::Failed(trouble),
                // told when it is its turn
                Err(_) => break,
            }
        }
        let Some(asked) = self.asked.pop_front() else {
            return Fetched::Failed(Trouble::new(Reason::Unreadable, "was not asked for"));
        };
        let stopped = || Fetched::Failed(Trouble::new(Reason::Unreachable, "stopped"));
        let fetched = asked.fetched.blocking_recv().unwrap_or_else(|_| stopped());
        self.reading.set(Activity::Reading);
        fetched
    }

    fn room_for(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.fetcher.room).try_acquire_many_owned(units).ok()
    }

    /// Starts the task that fetches an object.
    fn ask(&self, address: &str, most: u64) -> Result<oneshot::Receiver<Fetched>, Trouble> {
        let remote: Arc<dyn Remote> = Arc::new(self.fetcher.stores.object(address)?);
        let stretch = Stretch::new(&remote, &self.fetcher, &self.reading, (0, None), None);
        let (mut done, fetched) = oneshot::channel();
        let wanted = Arc::clone(&self.reading);
        self.fetcher.runtime.spawn(async move {
            tokio::select! {
                whole = receive(stretch, most) => {
                    let _ = done.send(whole);
                }
                () = wanted.stopped() => {}
                () = done.closed() => {}
            }
        });
        Ok(fetched)
    }
}

/// All bytes of an object.
async fn receive(stretch: Stretch, most: u64) -> Fetched {
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let together = async move {
        let mut whole = BytesMut::new();
        loop {
            match pieces.recv().await {
                // most objects come in one piece
                Some(Piece::Bytes(bytes)) if whole.is_empty() => whole = bytes.into(),
                Some(Piece::Bytes(bytes)) => whole.extend_from_slice(&bytes),
                Some(Piece::End) => return Fetched::Whole(whole.freeze()),
                Some(Piece::Failed(trouble)) => return Fetched::Failed(trouble),
                None => return Fetched::Failed(Trouble::new(Reason::ConnectionLost, "stopped")),
            }
            if whole.len() as u64 > most {
                return Fetched::TooLarge(whole.len() as u64);
            }
        }
    };
    // dropping the pieces ends the delivery
    let outlet = Outlet::new(sender, stretch.next());
    tokio::join!(race::deliver(stretch, None, &outlet), together).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_wanted_is_a_value() {
        let fetcher = Fetcher::new(&[], &crate::config::FetchPlan::default()).unwrap();
        let reading = Reading::new("images:s3://b/x".into());
        let mut ahead = Ahead::new(&fetcher, &reading);
        let outcome = tokio::task::spawn_blocking(move || ahead.take(std::iter::empty(), 10)).await.unwrap();
        assert!(matches!(outcome, Fetched::Failed(trouble) if trouble.reason == Reason::NotFound));
    }
}
