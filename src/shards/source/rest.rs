//! The time for which a host has asked to be left alone.
//!
//! In: the `Retry-After` of a refusal. Out: how long to wait before the next request to that host. A server that has too much to
//! do means everybody who asks it: a [`Rest`] is one for each host in the process, shared by the readers of shards, of lists and of
//! prefixes, however many of them there are. Whoever waits comes back at a moment of its own behind the rest, so that not all
//! come at once. How long a host may rest at most is for the caller to say.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How far apart those that waited come back.
const SPREAD: Duration = Duration::from_millis(250);

/// Until when one host rests.
#[derive(Debug, Default)]
pub(super) struct Rest {
    until: Mutex<Option<Instant>>,
}

impl Rest {
    /// That of the host of this name, whoever asks.
    pub(super) fn of(host: &str) -> Arc<Self> {
        static ALL: LazyLock<Mutex<HashMap<String, Arc<Rest>>>> = LazyLock::new(Mutex::default);
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rest) = all.get(host) {
            return Arc::clone(rest);
        }
        Arc::clone(all.entry(host.to_owned()).or_default())
    }

    /// Leaves the host alone for so long, or longer where it is being left alone already.
    pub(super) fn begin(&self, pause: Duration) {
        let end = Instant::now().checked_add(pause);
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(end);
    }

    /// How long the host is yet to be left alone; none where it may be asked.
    pub(super) fn left(&self) -> Option<Duration> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Waits out what is left of the rest, and a part of the spread, which is no longer than the longest pause.
    pub(super) async fn wait(&self, longest_pause: Duration) {
        let Some(left) = self.left() else { return };
        tokio::time::sleep(left + SPREAD.min(longest_pause).mul_f64(chance(0))).await;
    }
}

/// A number from 0 to 1 by the clock, another one for each seed: nothing that has to come again depends on it.
pub(super) fn chance(seed: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (xxh3_64_with_seed(&now.as_nanos().to_le_bytes(), seed) % 1024) as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rest_is_one_for_all_who_ask_the_host() {
        let (one, same, other) = (Rest::of("rests:1"), Rest::of("rests:1"), Rest::of("rests:2"));
        assert!(one.left().is_none());
        one.begin(Duration::from_secs(60));
        same.begin(Duration::from_millis(1));
        assert!(
            same.left() > Some(Duration::from_secs(30)) && other.left().is_none(),
            "a shorter one shortens nothing"
        );
        let started = Instant::now();
        other.begin(Duration::from_millis(40));
        other.wait(Duration::from_secs(1)).await;
        assert!(started.elapsed() >= Duration::from_millis(40) && other.left().is_none());
    }
}
