//! A list that grows while it is read: when to look for new shards, and which of them are ready.
//!
//! In: the list as it is now, and the shards known. Out: those that are new and settled. Each shard is taken once, by its
//! name; one that vanishes before it is read is lost, and recorded as such. A file that somebody still writes must not be
//! taken: names that end like a temporary file's wait, and so do local files changed within the last `stream.follow_settle_s`. What
//! a server lists has to be whole.

use crate::config::StreamPlan;
use crate::error::{Error, Result};
use crate::shards::ShardUrl;
use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

/// What programs append to a file until it is whole.
const TEMPORARY: [&str; 8] = [".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".incomplete", "~"];

/// When the list was looked at, and when to look again.
#[derive(Debug)]
pub(super) struct Follow {
    every: Duration,
    settle: Duration,
    looked: Instant,
}

impl Follow {
    /// For a list that has just been read.
    ///
    /// # Errors
    /// Times that are none.
    pub(super) fn new(plan: &StreamPlan) -> Result<Self> {
        Ok(Self {
            every: seconds("stream.follow_every_s", plan.follow_every_s)?,
            settle: seconds("stream.follow_settle_s", plan.follow_settle_s)?,
            looked: Instant::now(),
        })
    }

    /// The list is looked at.
    pub(super) fn looks(&mut self) {
        self.looked = Instant::now();
    }

    /// How long until it should be looked at.
    pub(super) fn time_to_look(&self) -> Duration {
        self.every.saturating_sub(self.looked.elapsed())
    }

    /// Whether it should be looked at.
    pub(super) fn is_due(&self) -> bool {
        self.time_to_look().is_zero()
    }

    /// The shards of a list that nobody is writing any more.
    pub(super) fn settled(&self, shards: &[ShardUrl]) -> Vec<ShardUrl> {
        shards.iter().filter(|shard| self.is_settled(shard)).cloned().collect()
    }

    /// Those of them that are not known.
    pub(super) fn new_shards(&self, shards: &[ShardUrl], known: &[ShardUrl]) -> Vec<ShardUrl> {
        let known: HashSet<&str> = known.iter().map(|shard| &**shard.name()).collect();
        let is_new = |shard: &&ShardUrl| !known.contains(&**shard.name()) && self.is_settled(shard);
        shards.iter().filter(is_new).cloned().collect()
    }

    fn is_settled(&self, shard: &ShardUrl) -> bool {
        let name: &str = shard.name();
        if TEMPORARY.iter().any(|ending| name.to_lowercase().ends_with(ending)) {
            return false;
        }
        if name.contains("://") {
            return true;
        }
        // of a file that cannot be looked at, the reader will say why
        let Ok(changed) = std::fs::metadata(name).and_then(|metadata| metadata.modified()) else { return true };
        let age = SystemTime::now().duration_since(changed).unwrap_or_else(|ahead| ahead.duration());
        age >= self.settle
    }
}

fn seconds(key: &str, value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| Error::usage(format!("{key} = {value}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes};

    #[test]
    fn files_under_way_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let shard = |name: &str, age: Duration| {
            let path = folder.path().join(name);
            File::create(&path).unwrap().set_times(FileTimes::new().set_modified(now - age)).unwrap();
            ShardUrl::local(path)
        };
        let hour = Duration::from_secs(3_600);
        let (old, known) = (shard("old.tar", hour), shard("known.tar", hour));
        let shards = [old.clone(), known.clone(), shard("fresh.tar", Duration::ZERO), shard("c.tar.PART", hour)];
        let plan = StreamPlan { follow_settle_s: 60.0, ..StreamPlan::default() };
        let follow = Follow::new(&plan).unwrap();
        assert_eq!(follow.settled(&shards), [old.clone(), known.clone()]);
        assert_eq!(follow.new_shards(&shards, std::slice::from_ref(&known)), [old]);
        let at_once = Follow::new(&StreamPlan { follow_settle_s: 0.0, ..plan }).unwrap();
        assert_eq!(at_once.settled(&shards).len(), 3);
        let remote = ShardUrl::remote("https://host/x.tar?signature=a.part");
        assert_eq!(follow.settled(std::slice::from_ref(&remote)), [remote]);
    }
}
