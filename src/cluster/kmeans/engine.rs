//! What goes through Lloyd's iterations, and which kind of arithmetic does it.
//!
//! An [`Engine`] holds points, centroids and who is whose, and does one thing at a time. [`choose`] takes [`Lloyd`] on a
//! processor and [`Products`] elsewhere; [`iterate`] in the module above tells either what to do. Where several ranks hold the
//! points, an engine assigns those of its own, and moves centroids to the means over all.

use super::lloyd::Lloyd;
use super::products::Products;
use crate::cluster::Points;
use crate::error::Result;
use tch::{Device, Tensor};

/// Points among centroids.
pub(super) trait Engine {
    /// Gives every point of this rank its nearest centroid.
    fn assign(&mut self) -> Result<Assigned>;

    /// Moves centroids to the means of their points, scaled to length one if `spherical`; those without points stay.
    fn update(&mut self, spherical: bool) -> Result<()>;

    /// Points of each cluster, of all ranks, as of the last update.
    fn counts(&self) -> &[u64];

    /// All centroids, `[k, d]`, on the host.
    fn centroids(&self) -> Result<Vec<f32>>;

    /// Puts the centroids that differ in `places` `[k, d]` there, until the next update.
    fn displace(&mut self, places: &[f32]) -> Result<()>;

    /// The outcome of the last assignment, for the points of this rank.
    fn finish(self: Box<Self>) -> Result<Outcome>;
}

/// One assignment.
pub(super) struct Assigned {
    /// Sum of squared distances.
    pub(super) objective: f64,
    /// No point has changed its centroid, and no centroid was displaced.
    pub(super) settled: bool,
    /// Distances that were measured in floats, beside what the engine does for every pair.
    pub(super) measured: u64,
}

/// Centroids and who is whose.
pub(super) struct Outcome {
    /// `[k, d]`.
    pub(super) centroids: Tensor,
    pub(super) labels: Vec<u32>,
    /// Squared.
    pub(super) distances: Vec<f32>,
}

/// The engine for points `[N, d]` that start from centroids `[k, d]`, both f32 and on one device: the same on all ranks.
pub(super) fn choose<'p>(points: &'p Points, start: &Tensor) -> Result<Box<dyn Engine + 'p>> {
    if points.device() == Device::Cpu
        && let Some(lloyd) = Lloyd::new(points, start)?
    {
        return Ok(Box::new(lloyd));
    }
    Ok(Box::new(Products::new(points, start)))
}
