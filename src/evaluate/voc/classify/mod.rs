//! VOC07 classification by fine-tuning (paper, section 4.4 and Tables 2 and 3).
//!
//! In: a pre-trained [`Backbone`](crate::model::Backbone), a kit ([`super::devkit`]), and [`Settings`]. Out: the average precision of each of the 20
//! classes and their mean. The protocol is that of Krähenbühl et al. (ICLR 2016) as the paper's authors carry it out in PyTorch:
//! sigmoids trained on random crops of an area of 0.1 to 0.5 and an aspect ratio of 1, the learning rate halved every 5,000 of 80,000
//! iterations, gradients clipped to a norm of 10, and a photograph scored by the sum of the raw logits of 10 random crops. The linear layers
//! start anew; batch normalisation keeps its statistics.
//!
//! Two things differ from that code. It takes 1e-5 off the scores of what counts, so that equal scores rank as misses; here
//! equal scores count as one step of the curve, which favours neither. And a batch that reaches the end of the list goes on at
//! its beginning, where that code makes a smaller one. A ResNet has no linear layers of its own: a linear layer on its feature is what is trained.
//!
//! Errors: a class that no photograph of a split shows, files that cannot be read, a loss that is no number.

mod crops;
mod data;
mod fit;
mod network;
mod protocol;
mod score;

pub use crops::Cropper;
pub use data::Split;
pub(super) use fit::order;
pub use fit::{Fit, Flow, Step, clip_gradients, loss};
pub use network::Classifier;
pub(super) use network::identity;
pub(super) use protocol::SAVE_EVERY;
pub use protocol::{ClassResult, Plan, Report, Trial, Watch, evaluate};
pub use score::{average_precisions, logits};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trained {
    /// The linear layers; convolutions stay as they are.
    #[serde(rename = "fc6-8")]
    LinearLayers,
    /// Everything.
    #[serde(rename = "all")]
    All,
}

/// How to train and to score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which layers.
    pub train: Trained,
    /// Whether scale and shift of batch normalisation are trained where its convolutions are not: so came the paper's 72.0, and
    /// 70.4 without.
    pub norm_affine: bool,
    /// Learning rate at the start.
    pub lr: f64,
    /// Iterations after which it is halved, again and again.
    pub halve_every: u64,
    /// Iterations.
    pub iterations: u64,
    /// Photographs at once.
    pub batch_size: usize,
    /// Momentum of SGD.
    pub momentum: f64,
    /// L2 penalty.
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    pub clip: f64,
    /// Share of the photograph that a crop covers, smallest and largest.
    pub area: [f64; 2],
    /// Crops whose logits are summed.
    pub crops: usize,
    /// Of the new weights, the order, the crops and dropout.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train: Trained::LinearLayers,
            norm_affine: false,
            lr: 0.003,
            halve_every: 5_000,
            iterations: 80_000,
            batch_size: 16,
            momentum: 0.9,
            weight_decay: 1e-6,
            clip: 10.0,
            area: [0.1, 0.5],
            crops: 10,
            seed: 31,
        }
    }
}

impl Settings {
    /// # Errors
    /// A setting that makes no sense, by name.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::usage(what.to_owned()));
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(self.lr) || !positive(self.clip) {
            return refuse("the learning rate and the norm to clip to must be positive");
        }
        if !((0.0..1.0).contains(&self.momentum) && self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return refuse("momentum must be in 0..1, weight decay at least 0");
        }
        if self.batch_size == 0 || self.crops == 0 || self.halve_every == 0 || self.iterations == 0 {
            return refuse("batch size, crops, iterations and the iterations between two halvings must be at least 1");
        }
        let [smallest, largest] = self.area;
        if !(smallest > 0.0 && smallest <= largest && largest <= 1.0) {
            return refuse("the area of crops must be two shares of the photograph, the smaller one first");
        }
        Ok(())
    }

    /// The learning rate of the `iteration`-th step, from 0.
    pub fn lr_at(&self, iteration: u64) -> f64 {
        let halvings = i32::try_from(iteration / self.halve_every).unwrap_or(i32::MAX);
        self.lr * 0.5f64.powi(halvings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_is_halved_in_steps() {
        let settings = Settings { lr: 0.4, halve_every: 10, ..Settings::default() };
        assert_eq!([0, 9, 10, 29, 30].map(|at| settings.lr_at(at)), [0.4, 0.4, 0.2, 0.1, 0.05]);
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let good = Settings::default();
        assert!(good.check().is_ok());
        for bad in [
            Settings { lr: f64::NAN, ..good },
            Settings { momentum: 1.0, ..good },
            Settings { crops: 0, ..good },
            Settings { halve_every: 0, ..good },
            Settings { area: [0.5, 0.1], ..good },
        ] {
            assert_eq!(bad.check().expect_err("no sense").exit_code(), 2, "{bad:?}");
        }
    }
}
