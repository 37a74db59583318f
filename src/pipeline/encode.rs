//! Features of every sample of a list, once, in list order: what `embed` and the evaluations stand on.

use super::feed::{Feed, FeedPlan, Filters, Next};
use super::start_runtime;
use super::stop::Stop;
use crate::config::Plan;
use crate::decode::CenterCrops;
use crate::error::{Error, Result};
use crate::evaluate::pooling::Pooling;
use crate::ingest::{Cursor, Passes, SampleMeta, Share};
use crate::model::{Backbone, Mode, Normalizer};
use crate::shards::{Ledger, ShardList};
use crate::torch::device::Placement;
use crate::train::upload::{DeviceBatch, Uploader};
use std::ops::ControlFlow;
use std::sync::Arc;
use tch::Tensor;

/// A network that encodes lists.
#[derive(Debug)]
pub struct Encoding<'a> {
    /// Gives `[stream]`, `[views]` and the precision.
    pub plan: &'a Plan,
    /// Where it runs.
    pub placement: &'a Placement,
    /// The network.
    pub backbone: &'a Backbone,
    /// A layer after batch norm and ReLU; the clustered feature where there is none.
    pub layer: Option<&'a str>,
    /// Images at once.
    pub batch_size: usize,
}

impl Encoding<'_> {
    /// Hands `each` the samples and their `[B, D]` features, batch by batch.
    ///
    /// # Errors
    /// Too many losses (see [`Ledger`]), [`Error::Interrupted`] after Ctrl-C, or what `each` returns.
    pub fn run(
        &self,
        list: ShardList,
        ledger: &Arc<Ledger>,
        mut each: impl FnMut(&[SampleMeta], &Tensor) -> Result<()>,
    ) -> Result<()> {
        self.batches(list, ledger, |batch, images| {
            each(&batch.samples, &self.encode(images)?)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Hands `each` the batches with their center views as they are, uint8 `[B, S, S, 3]`, and the images that the network takes,
    /// `[B, 3, S, S]`, until it has enough.
    ///
    /// # Errors
    /// As [`Encoding::run`].
    pub fn batches(
        &self,
        list: ShardList,
        ledger: &Arc<Ledger>,
        mut each: impl FnMut(&DeviceBatch, &Tensor) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let runtime = start_runtime()?;
        let stop = Stop::default();
        stop.on_signals(runtime.handle())?;
        let feed_plan = FeedPlan {
            share: Share::whole(),
            passes: Passes::Once,
            start: Cursor::default(),
            batch_size: self.batch_size,
            center_views: Some(CenterCrops::Middle),
            train_views: false,
            held: 1,
            filters: Filters::None,
        };
        let mut feed = Feed::open(runtime.handle(), self.plan, self.placement, list, ledger, feed_plan)?;
        let mut uploader = Uploader::new(self.placement.device);
        let views = &self.plan.views;
        let normalizer = Normalizer::new(&views.mean, &views.std, self.placement.device)?;
        loop {
            let batch = match feed.next(&stop)? {
                Next::Batch(batch) => uploader.upload(*batch)?,
                Next::End => return Ok(()),
                Next::Stopped => return Err(Error::Interrupted { snapshot: None }),
            };
            if each(&batch, &normalizer.prepare(batch.center_views()?)?)?.is_break() {
                return Ok(());
            }
        }
    }

    fn encode(&self, images: &Tensor) -> Result<Tensor> {
        match self.layer {
            None => self.backbone.forward(images, Mode::Eval),
            Some(layer) => {
                let pooling = Pooling::of(self.backbone.plan().arch, self.backbone.size(), layer);
                pooling.apply(&self.backbone.forward_to(images, layer)?)
            }
        }
    }
}
