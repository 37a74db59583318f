//! Segmentation by fully convolutional networks (paper, Table 2; Long, Shelhamer and Darrell, CVPR 2015).
//!
//! In: a pre-trained AlexNet or VGG-16, a kit with masks ([`super::devkit`], VOC2012), and [`Settings`]. Out: how many pixels of each of 21 classes,
//! background included, are told rightly ([`Confusion`]). fc6 and fc7 become convolutions with the weights that they have, a layer of scores starts at
//! zero, and transposed convolutions that start as bilinear interpolation bring the scores back to the size of the photograph: by 32 at once, or over
//! the maps of 16 or 8 pixels, whose scores are added (16s, 8s; VGG alone).
//!
//! The paper's own changes to this protocol were not published. Here: SGD over whole photographs, the cross-entropy of a photograph averaged over
//! the pixels that count, 20 photographs a step, learning rate 1e-4; batch normalisation keeps its statistics; biases are trained like other weights.

mod data;
mod fit;
mod geometry;
mod measure;
mod network;
mod protocol;

pub use data::{Mask, Photographs, VOID};
pub use fit::{Fit, loss};
pub use measure::{Confusion, LABELS};
pub use network::Segmenter;
pub use protocol::{Plan, Report, evaluate};

use crate::error::{Error, Result};
use crate::evaluate::voc::classify::Trained;
use serde::{Deserialize, Serialize};

/// Pixels between two scores before the last upsampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stride {
    /// Scores of the last maps alone.
    #[serde(rename = "32s")]
    ThirtyTwo,
    /// And of the fourth pool.
    #[serde(rename = "16s")]
    Sixteen,
    /// And of the third.
    #[serde(rename = "8s")]
    Eight,
}

/// How to train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which layers, beside those of the scores.
    pub train: Trained,
    /// Which network.
    pub stride: Stride,
    /// Learning rate.
    pub lr: f64,
    /// Steps.
    pub iterations: u64,
    /// Photographs a step.
    pub batch_size: usize,
    /// Momentum of SGD.
    pub momentum: f64,
    /// L2 penalty.
    pub weight_decay: f64,
    /// Of the order, dropout.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train: Trained::All,
            stride: Stride::ThirtyTwo,
            lr: 1e-4,
            iterations: 100_000,
            batch_size: 20,
            momentum: 0.9,
            weight_decay: 5e-4,
            seed: 31,
        }
    }
}

impl Settings {
    /// # Errors
    /// A setting that makes no sense, by name.
    pub fn check(&self) -> Result<()> {
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return Err(Error::usage("the learning rate must be positive"));
        }
        if !((0.0..1.0).contains(&self.momentum) && self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return Err(Error::usage("momentum must be in 0..1, weight decay at least 0"));
        }
        if self.batch_size == 0 || self.iterations == 0 {
            return Err(Error::usage("iterations and photographs a step must be at least 1"));
        }
        Ok(())
    }
}
