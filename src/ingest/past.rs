//! What a stream that goes on from a cursor never reads again.
//!
//! In: a [`Cursor`]. Out: for a shard of a pass, whether it lies behind: read to its end before the cursor's checkpoint, with
//! none of its samples waiting in the shuffle buffer. Nothing of such a shard can be lost again after a restart from there,
//! in reading or in decoding: its lines in the ledger are needed for their counts alone. Where the order of a pass is not part of
//! the cursor, all of that pass counts as ahead: it ends, and lies behind as a whole.

use super::cursor::{Cursor, Point};
use crate::shards::ledger::Entry;
use std::collections::HashSet;
use std::sync::Arc;

/// Everything that lies behind a cursor. The default is nothing.
#[derive(Debug, Default)]
pub struct Past {
    lists: Vec<PastOfList>,
}

#[derive(Debug)]
struct PastOfList {
    pass: u64,
    behind: HashSet<Arc<str>>,
    ahead: HashSet<Arc<str>>,
}

impl Past {
    /// What lies behind this cursor.
    pub fn of(cursor: &Cursor) -> Self {
        let lists = cursor.checkpoint.as_ref().map(|checkpoint| checkpoint.lists.iter().map(PastOfList::of).collect());
        Self { lists: lists.unwrap_or_default() }
    }

    /// Whether a line of the ledger is of a shard that lies behind. Encodings of the list are no part of the stream.
    pub fn holds(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Loss(loss) if loss.encoding.is_none() => self.holds_shard(loss.pass, &loss.shard),
            Entry::Shard(end) if end.encoding.is_none() => self.holds_shard(end.pass, &end.shard),
            Entry::Loss(_) | Entry::Shard(_) | Entry::Sum(_) => false,
        }
    }

    /// Of mixed lists, one must have it behind, and none ahead.
    fn holds_shard(&self, pass: u64, shard: &str) -> bool {
        let is_behind = |list: &PastOfList| pass < list.pass || (pass == list.pass && list.behind.contains(shard));
        let is_ahead = |list: &PastOfList| match pass.cmp(&list.pass) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => list.ahead.contains(shard),
            std::cmp::Ordering::Greater => list.ahead.contains(shard) || list.behind.contains(shard),
        };
        self.lists.iter().any(is_behind) && !self.lists.iter().any(is_ahead)
    }
}

impl PastOfList {
    fn of(point: &Point) -> Self {
        let name = |shard: usize| point.shards.get(shard).cloned();
        let Some(order) = &point.order else {
            return Self { pass: point.pass, behind: HashSet::new(), ahead: point.shards.iter().cloned().collect() };
        };
        let open = point.lanes.iter().filter_map(|spot| order.get(spot.number as usize));
        let unread = open.chain(order.iter().skip(point.taken)).map(|portion| portion.shard);
        let ahead: HashSet<Arc<str>> =
            unread.chain(point.waiting.iter().map(|place| place.shard)).filter_map(name).collect();
        let behind = order.iter().filter_map(|portion| name(portion.shard)).filter(|shard| !ahead.contains(shard));
        Self { pass: point.pass, behind: behind.collect(), ahead }
    }
}
