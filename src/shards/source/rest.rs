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

/// The longest rest that is kept in mind.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Until when one host rests.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// What it has asked for, the last at the end; each is for longer than those behind it.
    asked: Mutex<Vec<Asked>>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    until: Instant,
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
        let at = Instant::now();
        let until = at + pause.min(YEAR);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|before| before.until > until);
        asked.push(Asked { at, until });
    }

    /// How long the host is yet to be left alone by somebody who bears no longer pause than this; none where it may be asked.
    pub(super) fn left(&self, longest_pause: Duration) -> Option<Duration> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let end = asked.iter().map(|asked| asked.until.min(asked.at + longest_pause.min(YEAR))).max()?;
        end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Waits out what is left of the rest, and a part of the spread, which is no longer than the longest pause.
    pub(super) async fn wait(&self, longest_pause: Duration) {
        let Some(left) = self.left(longest_pause) else { return };
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

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn a_rest_is_one_for_all_who_ask_the_host() {
        let (one, same, other) = (Rest::of("rests:1"), Rest::of("rests:1"), Rest::of("rests:2"));
        assert!(one.left(LONG).is_none());
        one.begin(Duration::from_secs(60));
        same.begin(Duration::from_millis(1));
        assert!(
            same.left(LONG) > Some(Duration::from_secs(30)) && other.left(LONG).is_none(),
            "a shorter one shortens nothing"
        );
        let started = Instant::now();
        other.begin(Duration::from_millis(40));
        other.wait(Duration::from_secs(1)).await;
        assert!(started.elapsed() >= Duration::from_millis(40) && other.left(LONG).is_none());
    }

    #[tokio::test]
    async fn each_waits_no_longer_than_it_would() {
        let rest = Rest::of("rests:3");
        rest.begin(Duration::MAX);
        assert!(rest.left(LONG) > Some(Duration::from_secs(3_000)));
        rest.wait(Duration::from_millis(20)).await;
        assert!(rest.left(Duration::from_millis(20)).is_none() && rest.left(LONG).is_some());
        rest.begin(Duration::from_millis(5));
        let left = rest.left(Duration::from_millis(20));
        assert!(left.is_some_and(|left| left <= Duration::from_millis(5)), "what it says now counts: {left:?}");
    }
}
