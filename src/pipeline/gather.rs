//! The first images of a stream, all at once: what statistics of a network are taken of.
//!
//! In: a plan, a list and a number. Out: center views of so many images in the order in which a run of the plan would meet them (a list sorted
//! by class is shuffled as far as its buffer reaches), or of one whole pass where the list is shorter. Memory is the views: 150 kB each at 224 pixels.
//!
//! What can go wrong: too many losses, [`Error::Interrupted`] after Ctrl-C, a list without an image that decodes.

use super::feed::{Feed, FeedPlan, Filters, Next};
use super::stop::Stop;
use crate::config::Plan;
use crate::decode::CenterCrops;
use crate::error::{Error, Result};
use crate::ingest::{Cursor, Passes, Share};
use crate::shards::{Ledger, ShardList};
use crate::torch::device::Placement;
use std::sync::Arc;
use tch::{Device, Tensor};
use tokio::runtime::Runtime;

/// Where images come from, and how many of them.
#[derive(Debug)]
pub struct Gathering<'a> {
    /// Gives `[stream]`, `[views]` and `[filter]`, less the rules on duplicates.
    pub plan: &'a Plan,
    /// How many threads decode.
    pub placement: &'a Placement,
    /// How many images, at most.
    pub count: usize,
    /// Images at once.
    pub batch_size: usize,
}

impl Gathering<'_> {
    /// Chunks of up to `batch_size` center views, uint8 `[B, S, S, 3]` on the host. `tell` hears how many images there are so far.
    ///
    /// # Errors
    /// See the head of the module.
    pub fn center_views(
        &self,
        list: ShardList,
        runtime: &Runtime,
        stop: &Stop,
        mut tell: impl FnMut(usize),
    ) -> Result<Vec<Tensor>> {
        let names = self.plan.stream.shards.join(" ");
        let ledger = Arc::new(Ledger::in_memory(&self.plan.stream));
        let feed_plan = FeedPlan {
            share: Share::whole(),
            passes: Passes::Endless,
            start: Cursor::default(),
            batch_size: self.batch_size,
            center_views: Some(CenterCrops::Middle),
            train_views: false,
            held: 1,
            filters: Filters::Alone,
        };
        // Batches stay on the host.
        let placement = Placement { device: Device::Cpu, ..self.placement.clone() };
        let mut feed = Feed::open(runtime.handle(), self.plan, &placement, list, &ledger, feed_plan)?;
        let (mut chunks, mut found) = (Vec::new(), 0);
        while found < self.count {
            let batch = match feed.next(stop)? {
                Next::Batch(batch) => batch,
                Next::End => break,
                Next::Stopped => return Err(Error::Interrupted { snapshot: None }),
            };
            let first_pass = batch.samples.iter().take_while(|sample| sample.pass == 0).count();
            let wanted = first_pass.min(self.count - found);
            if wanted > 0 {
                // the batch's own memory is written again
                let views = batch.center()?.f_narrow(0, 0, wanted as i64)?;
                let mut copy = views.f_empty_like()?;
                copy.f_copy_(&views)?;
                chunks.push(copy);
            }
            found += wanted;
            tell(found);
            if first_pass < batch.samples.len() {
                break; // the list is through
            }
        }
        if found == 0 {
            return Err(Error::data(format!("{names} hold no image that decodes"))
                .with_hint("`shoal shards check` reads all of it and accounts for every byte"));
        }
        Ok(chunks)
    }
}
