//! Points in, clusters out, by the method of the plan: what a cycle and `shoal cluster` have in common.

use super::hierarchy::{self, Coarse};
use super::kmeans::{self, Partition, Seeding};
use super::{pic, sinkhorn};
use crate::config::{ClusterPlan, Method, Start};
use crate::error::Result;
use tch::Tensor;

/// Points divided by one of the methods.
#[derive(Debug)]
pub struct Division {
    /// Who is whose.
    pub partition: Partition,
    /// See [`super::Clustering::coarse`].
    pub coarse: Option<Coarse>,
    /// See [`super::Clustering::prices`].
    pub prices: Option<Tensor>,
}

/// What a division tells while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told {
    /// An iteration of k-means: the sum of squared distances before its update.
    Objective(f64),
    /// The share of the search for neighbours that is done.
    Neighbours(f64),
}

/// Divides points `[N, d]` as `plan` says, k-means from `start` `[k, d]` if there is one. The same points and seed give the same
/// outcome.
pub fn divide(
    points: &Tensor,
    plan: &ClusterPlan,
    start: Option<&Tensor>,
    seed: u64,
    tell: &mut dyn FnMut(Told),
) -> Result<Division> {
    let mut objective = |objective| tell(Told::Objective(objective));
    let (mut partition, coarse) = match plan.method {
        Method::Pic => {
            let options = pic::Options { neighbours: plan.neighbours, sigma: plan.sigma, ..pic::Options::default() };
            (pic::cluster(points, options, &mut |share| tell(Told::Neighbours(share)))?, None)
        }
        Method::KMeans if plan.coarse > 0 => {
            let (partition, coarse) = hierarchy::divide(points, plan.coarse, options(plan, seed), &mut objective)?;
            (partition, Some(coarse))
        }
        Method::KMeans => (kmeans::watched(points, start, options(plan, seed), &mut objective)?, None),
    };
    let mut prices = None;
    if plan.balanced {
        let (found, labels, distances) = sinkhorn::balance(points, &partition.centroids)?;
        partition.sizes = kmeans::count_labels(&labels, partition.sizes.len());
        (partition.assignment, partition.distances) = (labels, distances);
        prices = Some(found);
    }
    Ok(Division { partition, coarse, prices })
}

/// How k-means is to go, by the plan.
pub fn options(plan: &ClusterPlan, seed: u64) -> kmeans::Options {
    kmeans::Options {
        k: plan.k,
        iterations: plan.iterations,
        tolerance: plan.tolerance,
        seed,
        seeding: if plan.start == Start::PlusPlus { Seeding::PlusPlus } else { Seeding::Random },
        spherical: plan.spherical,
        empties: plan.empties,
        small: plan.small,
    }
}
