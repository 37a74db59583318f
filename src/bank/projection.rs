//! A fixed random projection of features to fewer dimensions, for a bank that takes less memory.
//!
//! In go features `[B, D]` of any float kind; out come `[B, p]` of f32. Entries of the matrix are normal with variance `1/p`, so that
//! distances are kept on average, each within about `√(2/p)` of itself (Johnson and Lindenstrauss; Dasgupta and Gupta, 2003). The
//! matrix depends on a seed alone: nothing of it is kept on disk.

use crate::error::Result;
use crate::model::init::normal_values;
use tch::{Device, Kind, Tensor};

/// A projection from D to p dimensions.
#[derive(Debug)]
pub struct Projection {
    /// `[D, p]`.
    matrix: Tensor,
}

impl Projection {
    /// From `dim` entries to `dims`.
    pub fn new(dim: usize, dims: usize, seed: u64, device: Device) -> Result<Self> {
        let entries = normal_values(seed, "projection", dim * dims, (1.0 / dims as f64).sqrt());
        let matrix = Tensor::f_from_slice(&entries)?.f_view([dim as i64, dims as i64])?;
        Ok(Self { matrix: matrix.f_to_device(device)? })
    }

    /// `[D, p]`, f32.
    pub fn matrix(&self) -> &Tensor {
        &self.matrix
    }

    /// Features `[B, D]` in fewer dimensions; gradients go through.
    pub fn apply(&self, features: &Tensor) -> Result<Tensor> {
        Ok(features.f_to_kind(Kind::Float)?.f_matmul(&self.matrix)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;

    #[test]
    fn distances_are_kept_within_the_bound_and_a_seed_fixes_the_matrix() -> Result<()> {
        let points = normal(1, 60, 1_000);
        let projection = Projection::new(1_000, 400, 7, Device::Cpu)?;
        let projected = projection.apply(&points.to_kind(Kind::Half))?;
        assert_eq!(projected.size(), [60, 400]);
        let squares = |rows: &Tensor| {
            (rows.narrow(0, 1, 59) - rows.narrow(0, 0, 59)).square().sum_dim_intlist(1, false, Kind::Float)
        };
        let ratios = squares(&projected) / squares(&points);
        // Of 59 nearly independent ratios around 1 with a deviation of √(2/400) = 0.07.
        assert!((ratios.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.04);
        assert!(ratios.max().double_value(&[]) < 1.35 && ratios.min().double_value(&[]) > 0.7, "{ratios}");
        assert_eq!(Projection::new(1_000, 400, 7, Device::Cpu)?.matrix, projection.matrix);
        assert_ne!(Projection::new(1_000, 400, 8, Device::Cpu)?.matrix, projection.matrix);
        Ok(())
    }
}
