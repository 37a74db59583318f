//! The linear classifier on top of a backbone, renewed at each clustering (paper, section 3.2).
//!
//! In: features `[B, D]` before their ReLU. Out: logits `[B, k]` in fp32. A linear head is on disk as `top_layer.weight` and
//! `top_layer.bias`; prototypes are those of the clustering, and have nothing of their own to keep.

use crate::config::Precision;
use crate::error::Result;
use crate::model::init::{Builder, Named};
use crate::model::layers::{Linear, compute_kind};
use crate::torch::unit_rows;
use tch::{Device, Kind, Tensor};

/// A classifier of D features into k clusters.
#[derive(Debug)]
pub struct Head {
    classifier: Classifier,
}

#[derive(Debug)]
enum Classifier {
    /// ReLU, then a linear layer that is trained (paper, section 3.2).
    Linear { layer: Linear, precision: Precision },
    /// Cosines with the centroids, which are not trained (DeepCluster-v2: SwAV, appendix D).
    Prototypes(Prototypes),
}

/// Cosine of whitened features with each centroid, over a temperature.
#[derive(Debug)]
struct Prototypes {
    projection: Tensor,
    origin: Tensor,
    /// Rows of length one.
    centroids: Tensor,
    temperature: f64,
}

impl Head {
    /// N(0, 0.01) weights that depend on `seed`, zero bias: give each cycle a seed of its own.
    pub fn new(dim: i64, k: i64, seed: u64, device: Device, precision: Precision) -> Result<Self> {
        let layer = Builder::new(Some(seed), device).linear("top_layer", dim, k)?;
        Ok(Self { classifier: Classifier::Linear { layer, precision } })
    }

    /// From a projection `[d, D]` and what it takes the mean of features to, `[d]`, and centroids `[k, d]`.
    pub fn prototypes(projection: &Tensor, origin: &Tensor, centroids: &Tensor, temperature: f64) -> Result<Self> {
        let prototypes = Prototypes {
            projection: projection.shallow_clone(),
            origin: origin.shallow_clone(),
            centroids: unit_rows(centroids)?,
            temperature,
        };
        Ok(Self { classifier: Classifier::Prototypes(prototypes) })
    }

    /// `[B, D]` features before their ReLU to `[B, k]` logits in fp32.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        match &self.classifier {
            Classifier::Linear { layer, precision } => {
                let active = features.f_relu()?;
                Ok(layer.forward(&active, compute_kind(*precision))?.f_to_kind(Kind::Float)?)
            }
            Classifier::Prototypes(prototypes) => prototypes.logits(features),
        }
    }

    /// Number of clusters.
    pub fn k(&self) -> i64 {
        match &self.classifier {
            Classifier::Linear { layer, .. } => layer.bias.numel() as i64,
            Classifier::Prototypes(prototypes) => prototypes.centroids.size()[0],
        }
    }

    /// What is trained of it: `top_layer.weight` `[k, D]` and `top_layer.bias` `[k]`, sharing storage with the head, or nothing.
    pub fn parameters(&self) -> Named {
        match &self.classifier {
            Classifier::Linear { layer, .. } => vec![
                ("top_layer.weight".to_owned(), layer.weight.shallow_clone()),
                ("top_layer.bias".to_owned(), layer.bias.shallow_clone()),
            ],
            Classifier::Prototypes(_) => Vec::new(),
        }
    }
}

impl Prototypes {
    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let projected = features.f_to_kind(Kind::Float)?.f_matmul(&self.projection.f_tr()?)?;
        let points = unit_rows(&projected.f_sub(&self.origin)?)?;
        Ok(points.f_matmul(&self.centroids.f_tr()?)?.f_div_scalar(self.temperature)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prototypes_give_cosines_in_the_whitened_space_and_gradients_to_the_features_alone() -> Result<()> {
        let origin = Tensor::from_slice(&[1.0f32, 0.0]);
        let projection = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 0.0, 2.0, 0.0]).reshape([2, 3]);
        let centroids = Tensor::from_slice(&[0.0f32, 5.0, -0.5, 0.0]).reshape([2, 2]);
        let head = Head::prototypes(&projection, &origin, &centroids, 0.1)?;
        assert_eq!((head.k(), head.parameters().len()), (2, 0));
        let features = Tensor::from_slice(&[4.0f32, -2.0, 9.0]).reshape([1, 3]).set_requires_grad(true);
        // (4, 2 · -2) - (1, 0) = (3, -4), of length 5; against (0, 1) and (-1, 0).
        let logits = head.logits(&features)?;
        assert!(logits.allclose(&Tensor::from_slice2(&[[-8.0f32, -6.0]]), 1e-5, 1e-5, false), "{logits}");
        logits.sum(Kind::Float).backward();
        assert!(features.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
        Ok(())
    }

    #[test]
    fn logits_are_linear_in_the_positive_part() -> Result<()> {
        let head = Head::new(3, 4, 11, Device::Cpu, Precision::Fp32)?;
        let features = Tensor::from_slice(&[1.0f32, -2.0, 3.0]).reshape([1, 3]);
        let logits = head.logits(&features)?;
        assert_eq!(logits.size(), [1, 4]);
        assert_eq!(head.k(), 4);
        let weight = &head.parameters()[0].1;
        for cluster in 0..4 {
            let expected = weight.double_value(&[cluster, 0]) + 3.0 * weight.double_value(&[cluster, 2]);
            assert!((logits.double_value(&[0, cluster]) - expected).abs() < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn a_head_starts_small_and_by_its_seed() -> Result<()> {
        let weight = |seed| -> Result<Tensor> {
            Ok(Head::new(64, 500, seed, Device::Cpu, Precision::Fp32)?.parameters()[0].1.detach())
        };
        let first = weight(1)?;
        assert_eq!(first, weight(1)?);
        assert_ne!(first, weight(2)?);
        let deviation = first.std(false).double_value(&[]);
        assert!((deviation - 0.01).abs() < 0.0002, "{deviation}");
        Ok(())
    }
}
