//! The bytes of one stretch on their way to its reader, raced for by a second request where the first is late.
//!
//! In: a [`Stretch`]. Out: its bytes in a channel, in order and each once, and how it ended. Where the reader waits for a range of
//! which the server tells the version, and the range takes much longer than this host usually does (`usual.rs`), the rest of
//! it is asked for once more over another connection, if the host has room for that. Both go on then: a byte is delivered
//! when it is the next one, whoever brings it, and whoever is at the end first ends the other. A second request is made once and for one
//! range once; it answers to the same version as every other, and where it fails the first goes on as if there had been none.

use super::super::reason::Trouble;
use super::hosts::{Host, Slot};
use super::stretch::{Arrived, Piece, Stretch};
use bytes::{Buf, Bytes};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// How often it is looked whether a late range may be asked for a second time.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Whether the reader waits for a stretch, and since when the server has been asked for it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    state: Mutex<Watched>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Watched {
    is_awaited: bool,
    asked_at: Option<Instant>,
}

impl Watch {
    /// The reader has nothing else to read.
    pub(super) fn reader_waits(&self) {
        if !std::mem::replace(&mut self.state().is_awaited, true) {
            self.changed.notify_one();
        }
    }

    /// A request was sent, or has ended.
    pub(super) fn asked(&self, at: Option<Instant>) {
        self.state().asked_at = at;
        self.changed.notify_one();
    }

    /// How long the server has been asked for what the reader waits for.
    fn waited(&self) -> Option<Duration> {
        let state = self.state();
        state.asked_at.filter(|_| state.is_awaited).map(|at| at.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the bytes of a stretch go, whoever brings them.
#[derive(Debug)]
pub(super) struct Outlet {
    pieces: mpsc::Sender<Piece>,
    /// The first byte that was not delivered.
    next: Mutex<u64>,
}

impl Outlet {
    pub(super) fn new(pieces: mpsc::Sender<Piece>, next: u64) -> Self {
        Self { pieces, next: Mutex::new(next) }
    }

    /// The first byte that was not delivered.
    pub(super) fn next(&self) -> u64 {
        *self.place()
    }

    /// Whether the reader is behind.
    pub(super) fn is_full(&self) -> bool {
        self.pieces.capacity() == 0
    }

    /// Waits until nobody reads any more.
    pub(super) async fn closed(&self) {
        self.pieces.closed().await;
    }

    /// Delivers the bytes from `from` on that were not yet delivered; false if nobody reads.
    pub(super) async fn send(&self, from: u64, mut bytes: Bytes) -> bool {
        let full = {
            let mut next = self.place();
            let known = next.saturating_sub(from).min(bytes.len() as u64);
            bytes.advance(known as usize);
            if bytes.is_empty() {
                return true;
            }
            *next += bytes.len() as u64;
            // at once: between two that race nothing may come between the place and the bytes
            match self.pieces.try_send(Piece::Bytes(bytes)) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(piece)) => piece,
            }
        };
        // the channel of a range has room for all of its bytes: this is a whole shard, which is never raced for
        self.pieces.send(full).await.is_ok()
    }

    async fn end(&self, outcome: Result<(), Trouble>) {
        let last = outcome.map_or_else(Piece::Failed, |()| Piece::End);
        let _ = self.pieces.send(last).await; // a reader that has left needs no end
    }

    fn place(&self) -> MutexGuard<'_, u64> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Delivers a stretch, and says how it ended.
pub(super) async fn deliver(stretch: Stretch, first: Option<Arrived>, outlet: &Outlet) {
    let outcome = match stretch.second() {
        Some(second) => race(stretch, first, second, outlet).await,
        None => stretch.deliver(first, outlet).await,
    };
    outlet.end(outcome).await;
}

async fn race(stretch: Stretch, first: Option<Arrived>, second: Stretch, outlet: &Outlet) -> Result<(), Trouble> {
    let (host, watch) = (stretch.host(), Arc::clone(stretch.watch()));
    let mut usual = pin!(stretch.deliver(first, outlet));
    let slot = tokio::select! {
        outcome = &mut usual => return outcome,
        slot = late(&host, &watch) => slot,
    };
    let mut extra = pin!(second.begin_second(slot, outlet.next()).deliver(None, outlet));
    tokio::select! {
        outcome = &mut usual => match outcome {
            Ok(()) => Ok(()),
            Err(trouble) => extra.await.map_err(|_| trouble),
        },
        outcome = &mut extra => match outcome {
            Ok(()) => {
                // how long it would have taken is not known, and at least so long
                watch.waited().into_iter().for_each(|time| host.took(time));
                Ok(())
            }
            Err(trouble) => {
                tracing::debug!(%trouble, "the second request failed, the first goes on");
                usual.await
            }
        },
    }
}

/// Waits until the reader has waited too long, and the host has room for a second request.
async fn late(host: &Arc<Host>, watch: &Watch) -> Slot {
    loop {
        let changed = watch.changed.notified();
        let mut left = match (watch.waited(), host.late_after()) {
            (None, _) => Duration::MAX,
            (Some(_), None) => LOOK_AGAIN,
            (Some(waited), Some(late_after)) => late_after.saturating_sub(waited),
        };
        if left.is_zero() {
            match host.try_second() {
                Some(slot) => return slot,
                None => left = LOOK_AGAIN,
            }
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(left) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn two_that_race_deliver_each_byte_once(steps in prop::collection::vec((any::<bool>(), 1_usize..20), 1..80), ahead in 0_usize..30) {
            let object: Bytes = (0..400_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (sender, mut pieces) = mpsc::channel(object.len() + 1);
            let outlet = Outlet::new(sender, 0);
            let mut sent = Bytes::new();
            runtime.block_on(async {
                outlet.send(0, object.slice(..ahead)).await;
                // one of them began at the first byte that the other had not brought
                let mut places = [0, ahead];
                for (is_second, count) in steps {
                    let place = &mut places[usize::from(is_second)];
                    let end = (*place + count).min(object.len());
                    assert!(outlet.send(*place as u64, object.slice(*place..end)).await);
                    *place = end;
                }
                sent = object.slice(..places[0].max(places[1]));
            });
            let mut got = Vec::new();
            while let Ok(Piece::Bytes(bytes)) = pieces.try_recv() {
                got.extend_from_slice(&bytes);
            }
            prop_assert!(got == sent && outlet.next() == sent.len() as u64);
        }
    }
}
