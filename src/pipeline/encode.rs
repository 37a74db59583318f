//! Features of every sample of a list, once, in list order: what `embed` and the evaluations stand on.

use super::feed::{Feed, FeedPlan, Filters, Next};
use super::start_runtime;
use super::stop::Stop;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::ingest::{Cursor, Passes, SampleMeta};
use crate::model::{Backbone, Mode, Normalizer};
use crate::shards::{Ledger, ShardList};
use crate::torch::device::Placement;
use crate::train::upload::Uploader;
use std::sync::Arc;
use tch::Tensor;

/// Largest number of values of a layer's pooled map, as in the paper's probes (9,600 for conv1 of AlexNet, Table 1).
const MAX_LAYER_VALUES: i64 = 9_600;

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
        let _guard = tch::no_grad_guard();
        let runtime = start_runtime()?;
        let stop = Stop::default();
        stop.on_signals(runtime.handle())?;
        let feed_plan = FeedPlan {
            passes: Passes::Once,
            start: Cursor::default(),
            batch_size: self.batch_size,
            center_views: true,
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
            each(&batch.samples, &self.encode(&normalizer.prepare(batch.center_views()?)?)?)?;
        }
    }

    fn encode(&self, images: &Tensor) -> Result<Tensor> {
        match self.layer {
            None => self.backbone.forward(images, Mode::Eval),
            Some(layer) => pool(&self.backbone.forward_to(images, layer)?),
        }
    }
}

/// `[B, C, H, W]` maps averaged down to the largest square grid within [`MAX_LAYER_VALUES`], flattened to `[B, D]`; rows
/// as they are.
fn pool(activations: &Tensor) -> Result<Tensor> {
    let size = activations.size();
    let &[rows, channels, height, width] = size.as_slice() else { return Ok(activations.shallow_clone()) };
    let mut side = height.min(width);
    while side > 1 && channels * side * side > MAX_LAYER_VALUES {
        side -= 1;
    }
    Ok(activations.f_adaptive_avg_pool2d([side, side])?.f_reshape([rows, -1])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn layers_are_pooled_to_the_paper_s_size() -> Result<()> {
        let conv1 = Tensor::zeros([2, 96, 55, 55], (Kind::Float, Device::Cpu));
        assert_eq!(pool(&conv1)?.size(), [2, 9_600]);
        let conv5 = Tensor::zeros([2, 256, 13, 13], (Kind::Float, Device::Cpu));
        assert_eq!(pool(&conv5)?.size(), [2, 9_216]);
        let rows = Tensor::zeros([2, 4_096], (Kind::Float, Device::Cpu));
        assert_eq!(pool(&rows)?.size(), [2, 4_096]);
        Ok(())
    }
}
