//! Lloyd's iterations as matrix products of libtorch, on any device.
//!
//! The search for the nearest centroid is a product by blocks of points, so that `N × k` never exists in full. Points in double
//! tie between two centroids may fall to either when block size, threads or device change.

use super::engine::{Assigned, Engine, Outcome};
use crate::cluster::Points;
use crate::cluster::blocks::{block, blocks};
use crate::error::Result;
use crate::torch::c10d::Reduction;
use crate::torch::unit_rows;
use crate::world::World;
use tch::{Device, Kind, Tensor};

/// Points, centroids, and who is whose.
pub(super) struct Products<'p> {
    points: &'p Points,
    centroids: Tensor,
    labels: Option<Tensor>,
    distances: Tensor,
    counts: Vec<u64>,
    /// Some centroid is not the mean of its points.
    displaced: bool,
}

impl<'p> Products<'p> {
    /// Points `[N, d]` and centroids `[k, d]`, of f32.
    pub(super) fn new(points: &'p Points, centroids: &Tensor) -> Self {
        Self {
            points,
            centroids: centroids.shallow_clone(),
            labels: None,
            distances: Tensor::new(),
            counts: Vec::new(),
            displaced: true,
        }
    }
}

impl Engine for Products<'_> {
    fn assign(&mut self) -> Result<Assigned> {
        let (labels, distances) = nearest(self.points.own(), &self.centroids)?;
        let unchanged = self.labels.as_ref().map(|before| before.f_equal(&labels)).transpose()?.unwrap_or(false);
        let objective = f64::try_from(distances.f_sum(Kind::Double)?)?;
        (self.labels, self.distances) = (Some(labels), distances);
        Ok(Assigned { objective, settled: unchanged && !self.displaced, measured: 0 })
    }

    fn update(&mut self, spherical: bool) -> Result<()> {
        let Some(labels) = &self.labels else { return Ok(()) };
        let k = self.centroids.size2()?.0;
        let (means, counts) = means_over(self.points.world(), self.points.own(), labels, k as usize)?;
        let means = if spherical { unit_rows(&means)? } else { means };
        let filled: Vec<bool> = counts.iter().map(|&count| count > 0).collect();
        let filled = Tensor::f_from_slice(&filled)?.f_to_device(means.device())?.f_unsqueeze(1)?;
        self.centroids = means.f_where_self(&filled, &self.centroids)?;
        (self.counts, self.displaced) = (counts, false);
        Ok(())
    }

    fn counts(&self) -> &[u64] {
        &self.counts
    }

    fn centroids(&self) -> Result<Vec<f32>> {
        Ok(Vec::try_from(self.centroids.f_to_device(Device::Cpu)?.f_reshape([-1])?)?)
    }

    fn displace(&mut self, places: &[f32]) -> Result<()> {
        let places = Tensor::f_from_slice(places)?.f_view_as(&self.centroids)?;
        self.centroids = places.f_to_device(self.centroids.device())?;
        self.displaced = true;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Outcome> {
        let labels = self.labels.as_ref().map(host_labels).transpose()?.unwrap_or_default();
        let distances = Vec::<f32>::try_from(self.distances.f_to_device(Device::Cpu)?)?;
        Ok(Outcome { centroids: self.centroids, labels, distances })
    }
}

/// The nearest of `centroids` `[k, d]` to each of `points` `[N, d]`: labels `[N]` of i64 and squared distances `[N]` of f32.
pub fn nearest(points: &Tensor, centroids: &Tensor) -> Result<(Tensor, Tensor)> {
    let (count, width) = points.size2()?;
    let k = centroids.size2()?.0;
    let device = points.device();
    // |x - c|² is smallest where x·c - |c|²/2 is largest.
    let offsets = centroids.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?.f_mul_scalar(-0.5)?;
    let transposed = centroids.f_tr()?;
    let labels = Tensor::f_empty([count], (Kind::Int64, device))?;
    let distances = Tensor::f_empty([count], (Kind::Float, device))?;
    for (start, len) in blocks(count, 4 * k.max(2 * width), device) {
        let block = block(points, (start, len), device, Kind::Float)?;
        let best = offsets.f_addmm(&block, &transposed)?.f_argmax(1, false)?;
        labels.f_narrow(0, start, len)?.f_copy_(&best)?;
        distances.f_narrow(0, start, len)?.f_copy_(&squared_distances(&block, centroids, &best)?)?;
    }
    Ok((labels, distances))
}

/// Squared distance `[N]` of each of `points` `[N, d]` to its own of `centroids` `[k, d]`, as numbers on the host.
pub fn distances_to_own(points: &Tensor, centroids: &Tensor, labels: &Tensor) -> Result<Vec<f32>> {
    let (count, width) = points.size2()?;
    let mut distances = Vec::with_capacity(count as usize);
    for (start, len) in blocks(count, 8 * width, points.device()) {
        let block = block(points, (start, len), points.device(), Kind::Float)?;
        let squared = squared_distances(&block, centroids, &labels.f_narrow(0, start, len)?)?;
        distances.extend(Vec::<f32>::try_from(squared.f_to_device(Device::Cpu)?)?);
    }
    Ok(distances)
}

/// Taken from the difference itself: products cancel where points are close to their centroid.
fn squared_distances(points: &Tensor, centroids: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let difference = points.f_sub(&centroids.f_index_select(0, labels)?)?;
    Ok(difference.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?)
}

/// Mean point `[k, d]` and number of points of each label; the mean of none is 0.
pub fn means_by_label(points: &Tensor, labels: &Tensor, k: usize) -> Result<(Tensor, Vec<u64>)> {
    means_over(&World::alone(), points, labels, k)
}

/// [`means_by_label`] over all ranks, of which each has some of the points.
pub fn means_over(world: &World, points: &Tensor, labels: &Tensor, k: usize) -> Result<(Tensor, Vec<u64>)> {
    let (count, width) = points.size2()?;
    let device = points.device();
    let mut sums = Tensor::f_zeros([k as i64, width], (Kind::Double, device))?;
    for range in blocks(count, 8 * width, device) {
        let block = block(points, range, device, Kind::Double)?;
        let _ = sums.f_index_add_(0, &labels.f_narrow(0, range.0, range.1)?, &block)?;
    }
    let counts = labels.f_bincount(None::<&Tensor>, k as i64)?;
    world.reduce(&sums, Reduction::Sum)?;
    world.reduce(&counts, Reduction::Sum)?;
    let divisors = counts.f_to_kind(Kind::Double)?.f_clamp_min(1.0)?.f_unsqueeze(1)?;
    let sizes = Vec::<i64>::try_from(counts.f_to_device(Device::Cpu)?)?;
    Ok((sums.f_div(&divisors)?.f_to_kind(Kind::Float)?, sizes.into_iter().map(|size| size as u64).collect()))
}

/// Labels as plain numbers.
pub(in crate::cluster) fn host_labels(labels: &Tensor) -> Result<Vec<u32>> {
    let labels = Vec::<i64>::try_from(labels.f_to_device(Device::Cpu)?)?;
    Ok(labels.into_iter().map(|label| label as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::unit;

    #[test]
    fn blocks_do_not_change_the_nearest_centroid() -> Result<()> {
        // 65,536 centroids make blocks of 64 points.
        let points = unit(5, 700, 4);
        let centroids = unit(6, 65_536, 4);
        let (labels, distances) = nearest(&points, &centroids)?;
        let (tail_labels, tail_distances) = nearest(&points.narrow(0, 650, 50), &centroids)?;
        assert_eq!(labels.narrow(0, 650, 50), tail_labels);
        assert_eq!(distances.narrow(0, 650, 50), tail_distances);
        let scores = points.matmul(&centroids.tr()) * 2.0 - centroids.square().sum_dim_intlist(1, false, Kind::Float);
        let agreeing = labels.eq_tensor(&scores.argmax(1, false)).to_kind(Kind::Double).mean(Kind::Double);
        assert!(f64::try_from(agreeing)? > 0.99);
        Ok(())
    }
}
