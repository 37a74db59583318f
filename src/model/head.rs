//! The linear classifier on top of a backbone, renewed at each clustering (paper, section 3.2).
//!
//! In: features `[B, D]` before their ReLU. Out: logits `[B, k]` in fp32. On disk as `top_layer.weight` and
//! `top_layer.bias`.

use crate::config::Precision;
use crate::error::Result;
use crate::model::init::{Builder, Named};
use crate::model::layers::{Linear, compute_kind};
use tch::{Device, Kind, Tensor};

/// ReLU, then a linear layer from D features to k clusters.
#[derive(Debug)]
pub struct Head {
    linear: Linear,
    precision: Precision,
}

impl Head {
    /// N(0, 0.01) weights that depend on `seed`, zero bias: give each cycle a seed of its own.
    pub fn new(dim: i64, k: i64, seed: u64, device: Device, precision: Precision) -> Result<Self> {
        let linear = Builder::new(Some(seed), device).linear("top_layer", dim, k)?;
        Ok(Self { linear, precision })
    }

    /// `[B, D]` features before their ReLU to `[B, k]` logits in fp32.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let active = features.f_relu()?;
        Ok(self.linear.forward(&active, compute_kind(self.precision))?.f_to_kind(Kind::Float)?)
    }

    /// Number of clusters.
    pub fn k(&self) -> i64 {
        self.linear.bias.numel() as i64
    }

    /// `top_layer.weight` `[k, D]` and `top_layer.bias` `[k]`, sharing storage with the head.
    pub fn parameters(&self) -> Named {
        vec![
            ("top_layer.weight".to_owned(), self.linear.weight.shallow_clone()),
            ("top_layer.bias".to_owned(), self.linear.bias.shallow_clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
