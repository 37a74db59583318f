//! Points in, clusters out, by the method of the plan: what a cycle and `shoal cluster` have in common.

use super::hierarchy::{self, Coarse};
use super::kmeans::{self, Partition, Seeding};
use super::{Points, pic, sinkhorn};
use crate::config::{ClusterPlan, Method, Start};
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

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
/// outcome, on every rank.
///
/// Of several ranks each works on its own points for plain k-means. The other methods run on rank 0, which then must have room for all of
/// them.
pub fn divide(
    points: &Points,
    plan: &ClusterPlan,
    start: Option<&Tensor>,
    seed: u64,
    tell: &mut dyn FnMut(Told),
) -> Result<Division> {
    let is_plain = plan.method == Method::KMeans && plan.coarse == 0 && !plan.balanced;
    if is_plain || points.world().is_alone() {
        return divide_here(points, plan, start, seed, tell);
    }
    let whole = points.whole_on_first()?;
    let work = || divide_here(&Points::alone(&whole)?, plan, start, seed, tell)?.into_tensors();
    Division::from_tensors(points.world().on_first(points.device(), work)?)
}

fn divide_here(
    points: &Points,
    plan: &ClusterPlan,
    start: Option<&Tensor>,
    seed: u64,
    tell: &mut dyn FnMut(Told),
) -> Result<Division> {
    let mut objective = |objective| tell(Told::Objective(objective));
    let (mut partition, coarse) = match plan.method {
        Method::Pic => {
            let options = pic::Options { neighbours: plan.neighbours, sigma: plan.sigma, ..pic::Options::default() };
            (pic::cluster(points.own(), options, &mut |share| tell(Told::Neighbours(share)))?, None)
        }
        Method::KMeans if plan.coarse > 0 => {
            let (partition, coarse) =
                hierarchy::divide(points.own(), plan.coarse, options(plan, seed), &mut objective)?;
            (partition, Some(coarse))
        }
        Method::KMeans => (kmeans::over(points, start, options(plan, seed), &mut objective)?, None),
    };
    let mut prices = None;
    if plan.balanced {
        let (found, labels, distances) = sinkhorn::balance(points.own(), &partition.centroids)?;
        partition.sizes = kmeans::count_labels(&labels, partition.sizes.len());
        (partition.assignment, partition.distances) = (labels, distances);
        prices = Some(found);
    }
    Ok(Division { partition, coarse, prices })
}

impl Division {
    /// To be sent; what is not there is empty.
    fn into_tensors(self) -> Result<Vec<Tensor>> {
        let Self { partition, coarse, prices } = self;
        let labels: Vec<i64> = partition.assignment.iter().map(|&label| i64::from(label)).collect();
        let empty = || Tensor::f_zeros([0], (Kind::Float, Device::Cpu));
        let (above, firsts) = match coarse {
            Some(coarse) => (coarse.centroids, coarse.firsts),
            None => (empty()?, Vec::new()),
        };
        Ok(vec![
            partition.centroids,
            Tensor::f_from_slice(&labels)?,
            Tensor::f_from_slice(&partition.distances)?,
            Tensor::f_from_slice(&partition.objectives)?,
            above,
            Tensor::f_from_slice(&firsts)?,
            prices.map_or_else(empty, Ok)?,
        ])
    }

    fn from_tensors(sent: Vec<Tensor>) -> Result<Self> {
        let [centroids, labels, distances, objectives, above, firsts, prices] =
            sent.try_into().map_err(|_| Error::device("rank 0 has sent no clusters"))?;
        let on_host = |tensor: Tensor| tensor.f_to_device(Device::Cpu);
        let assignment = kmeans::host_labels(&labels)?;
        let partition = Partition {
            sizes: kmeans::count_labels(&assignment, centroids.size2()?.0 as usize),
            centroids,
            assignment,
            distances: Vec::try_from(on_host(distances)?)?,
            objectives: Vec::try_from(on_host(objectives)?)?,
        };
        let firsts = Vec::<i64>::try_from(on_host(firsts)?)?;
        let coarse = (!firsts.is_empty()).then_some(Coarse { centroids: above, firsts });
        Ok(Self { partition, coarse, prices: (prices.numel() > 0).then_some(prices) })
    }
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
