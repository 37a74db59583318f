//! PCA, whitening and L2 normalisation of features (paper, section 4.2).
//!
//! In go rows `[N, D]` of any float kind; out comes a projection to `[N, d]` whose directions have equal variance, scaled
//! so that every row has length one. Mean and covariance are accumulated over blocks of rows that go by once
//! ([`super::covariance`]): memory is `D × D` and a block, never a second copy of the rows.
//!
//! Directions without variance are dropped, so `d` is at most the rank of the centred rows: fewer than `N`, and fewer than
//! `D` where columns are constant or depend on each other. Eigenvalues below 1e-5 of the largest are raised to that, which
//! keeps rounding noise from being blown up to unit variance. Rows that are all the same are an error.

use super::blocks::blocks;
use super::covariance::Covariance;
use crate::error::{Error, Result};
use crate::torch::unit_rows;
use crate::world::World;
use tch::{Device, Kind, Tensor};

/// Smallest eigenvalue that is whitened as it is, as a share of the largest.
const EIGENVALUE_FLOOR: f64 = 1e-5;
/// Largest variance that counts as rounding, as a share of the squared length of the mean row.
const ROUNDING_VARIANCE: f64 = 1e-18;

/// A fitted projection: `y = P (x - mean)`, then `y / |y|`.
#[derive(Debug)]
pub struct Whitening {
    /// `[D]`, f32.
    mean: Tensor,
    /// `[d, D]`, f32: eigenvectors over the square root of their eigenvalues, largest first.
    projection: Tensor,
}

impl Whitening {
    /// Fits to rows `[N, D]`, keeping at most `dims` directions; the result lies on `device`.
    pub fn fit(rows: &Tensor, dims: usize, device: Device) -> Result<Self> {
        Self::fit_over(&World::alone(), rows, dims, device)
    }

    /// Fits to the rows of all ranks, of which `rows` are this one's. Rank 0 does the algebra, so that all get the same.
    pub fn fit_over(world: &World, rows: &Tensor, dims: usize, device: Device) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let (count, width) = rows.size2()?;
        let mut covariance = Covariance::new(width, device)?;
        for (start, len) in blocks(count, width * 8, device) {
            covariance.add(&rows.f_narrow(0, start, len)?)?;
        }
        if world.is_alone() {
            return Self::of(covariance, dims);
        }
        covariance.add_ranks(world)?;
        let found = world.on_first(device, || {
            let Self { mean, projection } = Self::of(covariance, dims)?;
            Ok(vec![mean, projection])
        })?;
        let [mean, projection] = found.try_into().map_err(|_| Error::device("rank 0 has sent no whitening"))?;
        Ok(Self { mean, projection })
    }

    /// From what has gone by, keeping at most `dims` directions.
    pub fn of(covariance: Covariance, dims: usize) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let count = covariance.count();
        if count < 2 || dims == 0 {
            return Err(Error::usage(format!("{count} rows cannot be reduced to {dims} dimensions"))
                .with_hint("set cluster.pca above 0, and let the bank fill before the first clustering"));
        }
        let (mean, covariance) = covariance.finish()?;
        let width = mean.numel() as i64;
        if !bool::try_from(covariance.f_isfinite()?.f_all()?)? {
            return Err(Error::data("the features to cluster are not finite")
                .with_hint("training has diverged: go back to the last snapshot with a lower train.lr"));
        }
        let (eigenvalues, eigenvectors) = covariance.f_linalg_eigh("L")?;
        let ascending = Vec::<f64>::try_from(eigenvalues.f_to_device(Device::Cpu)?)?;
        let largest = ascending.last().copied().unwrap_or(0.0);
        let mean_square = f64::try_from(mean.f_square()?.f_sum(Kind::Double)?)?;
        if largest <= ROUNDING_VARIANCE * mean_square || largest <= 0.0 {
            return Err(Error::data(format!("all {count} rows to cluster are the same")).with_hint(
                "the network gives one answer for every photograph: lower train.lr, or look at the photographs",
            ));
        }
        let smallest_kept = largest * f64::EPSILON * count.max(width) as f64;
        let rank = ascending.iter().filter(|&&eigenvalue| eigenvalue > smallest_kept).count();
        let kept = dims.min(rank) as i64;

        let scales = eigenvalues.f_narrow(0, width - kept, kept)?.f_clamp_min(largest * EIGENVALUE_FLOOR)?.f_rsqrt()?;
        let directions = eigenvectors.f_narrow(1, width - kept, kept)?.f_mul(&scales)?.f_flip([1])?;
        Ok(Self {
            mean: mean.f_to_kind(Kind::Float)?,
            projection: directions.f_tr()?.f_contiguous()?.f_to_kind(Kind::Float)?,
        })
    }

    /// From the tensors that [`Whitening::mean`] and [`Whitening::projection`] gave.
    pub fn from_tensors(mean: Tensor, projection: Tensor) -> Result<Self> {
        let (mean_shape, shape) = (mean.size(), projection.size());
        if shape.len() != 2 || mean_shape != shape[1..] {
            return Err(Error::data(format!(
                "a whitening with a mean of {mean_shape:?} and a projection of {shape:?}"
            )));
        }
        Ok(Self { mean: mean.f_to_kind(Kind::Float)?, projection: projection.f_to_kind(Kind::Float)? })
    }

    /// The mean row, `[D]`.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The projection, `[d, D]`.
    pub fn projection(&self) -> &Tensor {
        &self.projection
    }

    /// Dimensions in: `D`.
    pub fn input_dim(&self) -> i64 {
        self.projection.size()[1]
    }

    /// Dimensions out: `d`.
    pub fn output_dim(&self) -> i64 {
        self.projection.size()[0]
    }

    /// Projects features `[B, D]` of any float kind to unit rows `[B, d]` of f32, on the device of the projection.
    pub fn apply(&self, features: &Tensor) -> Result<Tensor> {
        let features = features.f_to_device(self.mean.device())?.f_to_kind(Kind::Float)?;
        let projected = features.f_sub(&self.mean)?.f_matmul(&self.projection.f_tr()?)?;
        unit_rows(&projected)
    }

    /// [`Whitening::apply`] to many rows `[N, D]`, block by block.
    pub fn apply_all(&self, rows: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let (count, width) = rows.size2()?;
        let projected = Tensor::f_empty([count, self.output_dim()], (Kind::Float, self.mean.device()))?;
        for range in blocks(count, width * 4, self.mean.device()) {
            let block = self.apply(&rows.f_narrow(0, range.0, range.1)?)?;
            projected.f_narrow(0, range.0, range.1)?.f_copy_(&block)?;
        }
        Ok(projected)
    }

    /// The same on another device.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        Ok(Self { mean: self.mean.f_to_device(device)?, projection: self.projection.f_to_device(device)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;

    /// `N × D` rows with correlated columns of very different scale, rounded to f16.
    fn correlated(count: i64, width: i64) -> Tensor {
        let mixing = normal(11, width, width);
        let scales = Tensor::logspace(0.0, 1.5, width, 10.0, (Kind::Float, Device::Cpu));
        let rows = normal(12, count, width).matmul(&mixing) * scales + 3.0;
        rows.to_kind(Kind::Half)
    }

    fn to_loops(rows: &Tensor) -> Vec<Vec<f64>> {
        Vec::<Vec<f64>>::try_from(rows.to_kind(Kind::Double)).expect("a matrix")
    }

    /// Eigenvalues, largest first, and their vectors, by Jacobi's rotations: no part of it is shared with the code under test.
    fn jacobi(mut matrix: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
        let size = matrix.len();
        let mut vectors: Vec<Vec<f64>> =
            (0..size).map(|row| (0..size).map(|column| f64::from(row == column)).collect()).collect();
        for _ in 0..60 {
            for p in 0..size {
                for q in p + 1..size {
                    let angle = 0.5 * (2.0 * matrix[p][q]).atan2(matrix[q][q] - matrix[p][p]);
                    let (sine, cosine) = angle.sin_cos();
                    for row in &mut matrix {
                        (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
                    }
                    let (upper, lower) = (matrix[p].clone(), matrix[q].clone());
                    matrix[p] = upper.iter().zip(&lower).map(|(upper, lower)| cosine * upper - sine * lower).collect();
                    matrix[q] = upper.iter().zip(&lower).map(|(upper, lower)| sine * upper + cosine * lower).collect();
                    for row in &mut vectors {
                        (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
                    }
                }
            }
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&left, &right| matrix[right][right].total_cmp(&matrix[left][left]));
        let values = order.iter().map(|&column| matrix[column][column]).collect();
        let vectors = order.iter().map(|&column| vectors.iter().map(|row| row[column]).collect()).collect();
        (values, vectors)
    }

    #[test]
    fn the_projection_is_that_of_plain_loops_in_double_precision() -> Result<()> {
        let rows = correlated(200, 6);
        let plain = to_loops(&rows);
        let mean: Vec<f64> = (0..6).map(|column| plain.iter().map(|row| row[column]).sum::<f64>() / 200.0).collect();
        let covariance = (0..6).map(|left| {
            let product = |right: usize| {
                plain.iter().map(|row| (row[left] - mean[left]) * (row[right] - mean[right])).sum::<f64>()
            };
            (0..6).map(|right| product(right) / 200.0).collect()
        });
        let (eigenvalues, eigenvectors) = jacobi(covariance.collect());

        let whitening = Whitening::fit(&rows, 4, Device::Cpu)?;
        let found = to_loops(&whitening.apply(&rows)?);
        for (row, found) in plain.iter().zip(&found) {
            let projected: Vec<f64> = (0..4)
                .map(|direction| {
                    let along: f64 =
                        (0..6).map(|column| eigenvectors[direction][column] * (row[column] - mean[column])).sum();
                    along / eigenvalues[direction].sqrt()
                })
                .collect();
            let length = projected.iter().map(|entry| entry * entry).sum::<f64>().sqrt();
            for (direction, projected) in projected.iter().enumerate() {
                // The sign of an eigenvector is free.
                assert!((projected.abs() / length - found[direction].abs()).abs() < 1e-4, "{projected} {found:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn before_normalisation_the_directions_have_unit_variance_and_no_correlation() -> Result<()> {
        let rows = correlated(500, 12).to_kind(Kind::Double);
        let whitening = Whitening::fit(&rows, 10, Device::Cpu)?;
        let projected = (&rows - whitening.mean()).matmul(&whitening.projection().tr().to_kind(Kind::Double));
        let covariance = projected.tr().matmul(&projected) / 500.0;
        assert!(covariance.allclose(&Tensor::eye(10, (Kind::Double, Device::Cpu)), 1e-4, 1e-4, false), "{covariance}");
        Ok(())
    }

    #[test]
    fn few_rows_constant_columns_and_copies_lower_the_dimension_and_stay_finite() -> Result<()> {
        let few = correlated(5, 40);
        let constant = correlated(60, 8).to_kind(Kind::Float);
        let _ = constant.narrow(1, 2, 3).fill_(7.25);
        let copies = Tensor::cat(&[correlated(60, 3), correlated(60, 3)], 1);
        for (rows, rank) in [(few, 4), (constant, 5), (copies, 3)] {
            let whitening = Whitening::fit(&rows, 256, Device::Cpu)?;
            assert_eq!(whitening.output_dim(), rank);
            let lengths = whitening.apply_all(&rows)?.square().sum_dim_intlist(1, false, Kind::Float);
            assert!(lengths.allclose(&lengths.ones_like(), 1e-5, 1e-5, false), "{lengths}");
        }
        Ok(())
    }

    #[test]
    fn the_mean_itself_stays_at_the_origin_and_tiny_variance_is_not_blown_up() -> Result<()> {
        let rows = Tensor::from_slice(&[-1.0, 1e-4, 1.0, -1e-4, -1.0, -1e-4, 1.0, 1e-4, 0.0, 0.0]).view([5, 2]);
        let whitening = Whitening::fit(&rows, 2, Device::Cpu)?;
        let found = to_loops(&whitening.apply(&rows)?);
        assert_eq!(found[4], [0.0, 0.0]);
        // The second eigenvalue is 1e-8 of the first and counts as 1e-5 of it: 1e-4 / sqrt(1e-5) of the first direction.
        let ratio = (found[0][1] / found[0][0]).abs();
        assert!((ratio - 1e-4 / 1e-5_f64.sqrt()).abs() < 1e-4, "{ratio}");
        Ok(())
    }

    #[test]
    fn rows_that_are_all_the_same_or_not_finite_are_refused() {
        let same = Tensor::full([300, 4], 0.1, (Kind::Float, Device::Cpu));
        let error = Whitening::fit(&same, 4, Device::Cpu).expect_err("nothing to whiten");
        assert!(error.to_string().contains("300 rows") && error.hint().is_some(), "{error}");
        let zeros = Whitening::fit(&same.zeros_like(), 4, Device::Cpu);
        assert!(zeros.is_err());
        let _ = same.narrow(0, 3, 1).fill_(f64::NAN);
        assert!(Whitening::fit(&same, 4, Device::Cpu).expect_err("a NaN").to_string().contains("not finite"));
        assert!(Whitening::fit(&same.narrow(0, 0, 1), 4, Device::Cpu).is_err());
    }
}
