//! One clustering: rows of the bank in, centroids and labels out (paper, sections 3.3 and 4.2).
//!
//! [`fit`] whitens the rows ([`whiten`]), divides them ([`kmeans`], in two levels by [`hierarchy`], or [`pic`]; with equal shares
//! by [`sinkhorn`]), and compares the outcome with the labels that the same samples had before ([`agreement`], [`matching`]). Its
//! [`Clustering`] then labels the features of every new batch until the next cycle.
//!
//! Intermediate memory is the whitened rows, `N × d × 4` bytes, on a processor `N × (d + 272)` more, and blocks of 16 MiB (128 on a
//! GPU). What can go wrong: fewer rows than clusters, rows that are all the same, rows that are not finite. Each is an error that
//! names the key to change.

mod adjusted;
pub mod agreement;
pub mod assignments;
mod blocks;
pub mod covariance;
mod division;
pub mod hierarchy;
pub mod kmeans;
pub mod matching;
pub mod pic;
mod points;
#[cfg(test)]
mod ranks_tests;
pub mod sinkhorn;
pub mod whiten;

pub(crate) use blocks::{block, blocks};
pub use division::{Division, Told, divide, options};
pub use points::Points;

use crate::bank::Rows;
use crate::config::{ClusterPlan, Start};
use crate::error::{Error, Result};
use crate::shards::SampleId;
use crate::world::World;
use agreement::{Contingency, Normalizer};
use hierarchy::Coarse;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use whiten::Whitening;

/// What gives labels until the next cycle.
#[derive(Debug)]
pub struct Clustering {
    /// From features to the space of the centroids.
    pub whitening: Whitening,
    /// `[k, d]`, f32.
    pub centroids: Tensor,
    /// Rows in each cluster when it was fitted.
    pub sizes: Vec<u64>,
    /// The level above, if there is one: a row goes to the nearest cluster within the nearest coarse one.
    pub coarse: Option<Coarse>,
    /// What each cluster costs `[k]`, if shares are to be equal ([`sinkhorn`]).
    pub prices: Option<Tensor>,
}

/// The outcome of one clustering.
#[derive(Debug)]
pub struct Cycle {
    /// What gives labels from here on.
    pub clustering: Clustering,
    /// The sample of each row.
    pub ids: Vec<SampleId>,
    /// The cluster of each row.
    pub assignment: Vec<u32>,
    /// The squared distance of each row to its centroid.
    pub distances: Vec<f32>,
    /// For each cluster, the cluster before that it continues: one to one, largest overlap. None in the first cycle.
    pub origins: Option<Vec<Option<u32>>>,
    /// What to tell of it.
    pub stats: CycleStats,
}

/// The measurements of one clustering; the fields are those of the `cycle` record.
#[derive(Clone, Debug, PartialEq)]
pub struct CycleStats {
    /// Rows clustered.
    pub rows: usize,
    /// Sum of squared distances to the centroids, divided by rows.
    pub objective: f64,
    /// NMI (geometric) with the labels before, over the samples that had one.
    pub nmi_prev: Option<f64>,
    /// NMI with the classes of the stream, over the samples that have one.
    pub nmi_labels: Option<f64>,
    /// Share of samples whose cluster changed, after matching clusters one to one.
    pub reassigned: Option<f64>,
    /// Clusters without a sample.
    pub empty: usize,
    /// Share of samples in the largest cluster.
    pub largest_share: f64,
    /// Entropy of cluster sizes, in nats.
    pub entropy: f64,
    /// Samples by cluster, largest first.
    pub sizes: Vec<u64>,
    /// Iterations of k-means.
    pub iterations: usize,
}

/// Clusters the rows that all ranks of `world` hold together, on `device`, as `plan` says. The same rows and seed give the same
/// outcome on every rank, and for any number of ranks but for the rounding of the whitening: its sums are of doubles.
pub fn fit(rows: &Rows<'_>, plan: &ClusterPlan, seed: u64, device: Device, world: &World) -> Result<Cycle> {
    let _no_grad = tch::no_grad_guard();
    let whitening = Whitening::fit_over(world, &rows.features, plan.pca, device)?;
    let points = Points::shared(&whitening.apply_all(&rows.features)?, world, rows.ids.len() as i64)?;
    let start = match plan.start {
        Start::Random | Start::PlusPlus => None,
        Start::Warm => warm_start(&points, rows.labels, plan.k, seed)?,
    };
    let Division { partition, coarse, prices } = divide(&points, plan, start.as_ref(), seed, &mut |_| {})?;

    let before = overlap_with(&partition.assignment, rows.labels.iter().copied());
    let mut stats = CycleStats {
        rows: rows.ids.len(),
        objective: partition.objective() / rows.ids.len() as f64,
        nmi_prev: before.as_ref().map(|table| table.nmi(Normalizer::Geometric)),
        nmi_labels: nmi_with_classes(&partition.assignment, rows.classes),
        reassigned: None,
        empty: partition.sizes.iter().filter(|&&size| size == 0).count(),
        largest_share: partition.sizes.iter().max().copied().unwrap_or(0) as f64 / rows.ids.len() as f64,
        entropy: agreement::entropy(&partition.sizes),
        sizes: partition.sizes.clone(),
        iterations: partition.iterations(),
    };
    stats.sizes.sort_unstable_by(|left, right| right.cmp(left));
    let mut origins = None;
    if let Some(table) = before {
        let partners = matching::match_by_overlap(&table);
        stats.reassigned = Some(table.moved_share(&partners));
        origins = Some(continued_clusters(&partners, partition.sizes.len()));
    }
    Ok(Cycle {
        clustering: Clustering { whitening, centroids: partition.centroids, sizes: partition.sizes, coarse, prices },
        ids: rows.ids.to_vec(),
        assignment: partition.assignment,
        distances: partition.distances,
        origins,
        stats,
    })
}

impl Clustering {
    /// Clusters.
    pub fn k(&self) -> usize {
        self.sizes.len()
    }

    /// The cluster of each row of features `[B, D]`: labels `[B]` of i64, and squared distances `[B]` of f32.
    pub fn assign(&self, features: &Tensor) -> Result<(Tensor, Tensor)> {
        let _no_grad = tch::no_grad_guard();
        let points = self.whitening.apply(features)?;
        match (&self.coarse, &self.prices) {
            (_, Some(prices)) => sinkhorn::assign(&points, &self.centroids, prices),
            (Some(coarse), None) => coarse.nearest(&points, &self.centroids),
            (None, None) => kmeans::nearest(&points, &self.centroids),
        }
    }

    /// Its tensors by the names they have on disk, on the host.
    pub fn named_tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let sizes: Vec<i64> = self.sizes.iter().map(|&size| size as i64).collect();
        let on_host = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_to_device(Device::Cpu)?.f_contiguous()?) };
        let mut tensors = vec![
            ("whitening.mean".to_owned(), on_host(self.whitening.mean())?),
            ("whitening.projection".to_owned(), on_host(self.whitening.projection())?),
            ("centroids".to_owned(), on_host(&self.centroids)?),
            ("sizes".to_owned(), Tensor::f_from_slice(&sizes)?),
        ];
        if let Some(coarse) = &self.coarse {
            tensors.push(("coarse.centroids".to_owned(), on_host(&coarse.centroids)?));
            tensors.push(("coarse.firsts".to_owned(), Tensor::f_from_slice(&coarse.firsts)?));
        }
        if let Some(prices) = &self.prices {
            tensors.push(("prices".to_owned(), on_host(prices)?));
        }
        Ok(tensors)
    }

    /// From the tensors that [`Clustering::named_tensors`] gave, in any order, onto `device`.
    pub fn from_named_tensors(tensors: &[(String, Tensor)], device: Device) -> Result<Self> {
        let find_any = |name: &str| -> Result<Option<Tensor>> {
            let found = tensors.iter().find(|(key, _)| key == name);
            Ok(found.map(|(_, tensor)| tensor.f_to_device(device)).transpose()?)
        };
        let find = |name: &str| -> Result<Tensor> {
            find_any(name)?.ok_or_else(|| Error::data(format!("the clusters lack the tensor `{name}`")))
        };
        let whitening = Whitening::from_tensors(find("whitening.mean")?, find("whitening.projection")?)?;
        let centroids = find("centroids")?.f_to_kind(Kind::Float)?;
        let sizes = Vec::<i64>::try_from(find("sizes")?.f_to_device(Device::Cpu)?)?;
        if centroids.size() != [sizes.len() as i64, whitening.output_dim()] {
            return Err(Error::data(format!(
                "centroids of {:?} for {} clusters in {} dimensions",
                centroids.size(),
                sizes.len(),
                whitening.output_dim()
            )));
        }
        let coarse = match find_any("coarse.centroids")? {
            Some(centroids) => {
                let firsts = Vec::<i64>::try_from(find("coarse.firsts")?.f_to_device(Device::Cpu)?)?;
                Some(Coarse { centroids, firsts })
            }
            None => None,
        };
        let sizes = sizes.into_iter().map(|size| size as u64).collect();
        Ok(Self { whitening, centroids, sizes, coarse, prices: find_any("prices")? })
    }
}

/// Centroids `[k, d]` in the new space of the clusters before: means of the rows with their labels.
///
/// The old centroids themselves mean nothing after a new whitening. A cluster of which no row is left starts from a random
/// row. None where no row has a label.
fn warm_start(points: &Points, labels: &[Option<u32>], k: usize, seed: u64) -> Result<Option<Tensor>> {
    let known = |label: &Option<u32>| label.filter(|&label| (label as usize) < k);
    if labels.iter().all(|label| known(label).is_none()) || points.count() < k {
        return Ok(None);
    }
    let own = labels.iter().skip(points.world().rank()).step_by(points.world().size()).enumerate();
    let (rows, labels): (Vec<i64>, Vec<i64>) =
        own.filter_map(|(row, label)| known(label).map(|label| (row as i64, i64::from(label)))).unzip();
    let device = points.device();
    let labelled = blocks::gather(points.own(), &rows)?;
    let labels = Tensor::f_from_slice(&labels)?.f_to_device(device)?;
    let (means, sizes) = kmeans::means_over(points.world(), &labelled, &labels, k)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let random = kmeans::random_points(points, k, &mut rng)?;
    let known: Vec<bool> = sizes.iter().map(|&size| size > 0).collect();
    let known = Tensor::f_from_slice(&known)?.f_to_device(device)?.f_unsqueeze(1)?;
    Ok(Some(means.f_where_self(&known, &random)?))
}

/// The overlaps of earlier labels (first) with the assignment (second); none where no sample has one.
fn overlap_with(assignment: &[u32], earlier: impl Iterator<Item = Option<u32>>) -> Option<Contingency> {
    let pairs = earlier.zip(assignment).filter_map(|(label, &cluster)| label.map(|label| (label, cluster)));
    let table = Contingency::new(pairs);
    (table.total > 0).then_some(table)
}

/// NMI (geometric) of an assignment with the classes of its samples; none where no sample has one.
pub fn nmi_with_classes(assignment: &[u32], classes: &[Option<i64>]) -> Option<f64> {
    let known: Vec<i64> = classes.iter().copied().flatten().collect();
    let mut numbers = agreement::compact(&known).into_iter();
    let earlier = classes.iter().map(|class| class.and_then(|_| numbers.next()));
    overlap_with(assignment, earlier).map(|table| table.nmi(Normalizer::Geometric))
}

/// For each of `k` clusters the row of the matching that continues in it.
fn continued_clusters(partners: &[Option<u32>], k: usize) -> Vec<Option<u32>> {
    let mut origins = vec![None; k];
    for (old, new) in partners.iter().enumerate() {
        if let Some(new) = new {
            origins[*new as usize] = Some(old as u32);
        }
    }
    origins
}

#[cfg(test)]
pub(crate) mod samples {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use tch::{Kind, Tensor};

    /// Points of length one in all directions alike.
    pub(crate) fn unit(seed: u64, rows: i64, width: i64) -> Tensor {
        let points = normal(seed, rows, width);
        let lengths = points.square().sum_dim_intlist(1, true, Kind::Float).sqrt();
        points / lengths
    }

    /// Normal deviates `[rows, width]` of f32 that, unlike libtorch's, do not depend on the tests that run beside.
    pub(crate) fn normal(seed: u64, rows: i64, width: i64) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut deviate = || {
            let (radius, angle): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
            (-2.0 * radius.ln()).sqrt() * (angle * std::f32::consts::TAU).cos()
        };
        let entries: Vec<f32> = (0..rows * width).map(|_| deviate()).collect();
        Tensor::from_slice(&entries).view([rows, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::Bank;

    const GROUPS: i64 = 6;

    /// A bank of 240 rows in six well separated groups, and the group of each row.
    fn bank() -> Result<Bank> {
        let groups: Vec<i64> = (0..240).map(|row| row % GROUPS).collect();
        let centers = samples::normal(1, GROUPS, 20) * 5.0;
        let noise = samples::normal(2, 240, 20) * 0.05;
        let features = centers.index_select(0, &Tensor::from_slice(&groups)) + noise;
        let mut entries = crate::bank::tests::entries_of(&(0..240).collect::<Vec<_>>(), None);
        // Half of the samples have a class, with numbers of no order.
        entries.classes =
            groups.iter().enumerate().map(|(row, group)| (row % 4 < 2).then_some(100 - 7 * group)).collect();
        let mut bank = Bank::new(400, 20)?;
        bank.push(&entries, &features, 3)?;
        Ok(bank)
    }

    fn plan(k: usize, start: Start) -> ClusterPlan {
        ClusterPlan { k, pca: 5, start, ..ClusterPlan::default() }
    }

    #[test]
    fn groups_are_found_and_told_of() -> Result<()> {
        let mut bank = bank()?;
        let k = GROUPS as usize;
        // Some seed starts with a row of every group.
        let cycles =
            (0..20).map(|seed| fit(&bank.view()?, &plan(k, Start::Random), seed, Device::Cpu, &World::alone()));
        let cycles = cycles.collect::<Result<Vec<_>>>()?;
        let best = cycles.into_iter().min_by(|left, right| left.stats.objective.total_cmp(&right.stats.objective));
        let cycle = best.expect("twenty cycles");
        assert!(cycle.stats.nmi_labels.is_some_and(|nmi| nmi > 1.0 - 1e-9), "{:?}", cycle.stats);
        assert_eq!((cycle.stats.nmi_prev, cycle.stats.reassigned, cycle.stats.rows), (None, None, 240));
        assert_eq!(cycle.stats.sizes.iter().sum::<u64>(), 240);
        assert!(cycle.stats.sizes.is_sorted_by(|left, right| left >= right));
        assert_eq!(cycle.stats.largest_share, cycle.stats.sizes[0] as f64 / 240.0);
        assert_eq!(cycle.ids, bank.ids());

        let (labels, distances) = cycle.clustering.assign(&bank.rows()?)?;
        assert_eq!(kmeans::host_labels(&labels)?, cycle.assignment);
        assert!(
            Vec::<f32>::try_from(distances)?
                .iter()
                .zip(&cycle.distances)
                .all(|(left, right)| (left - right).abs() < 1e-5)
        );

        bank.relabel(&cycle.assignment)?;
        let again = fit(&bank.view()?, &plan(k, Start::Warm), 77, Device::Cpu, &World::alone())?;
        assert_eq!(again.assignment, cycle.assignment);
        assert_eq!(again.stats.reassigned, Some(0.0));
        assert!(again.stats.nmi_prev.is_some_and(|nmi| nmi > 1.0 - 1e-9));
        let same: Vec<Option<u32>> = (0..k as u32).map(Some).collect();
        assert_eq!(again.origins, Some(same));
        Ok(())
    }

    #[test]
    fn renamed_clusters_know_where_they_come_from() -> Result<()> {
        let mut bank = bank()?;
        let k = GROUPS as usize;
        let cycle = fit(&bank.view()?, &plan(k, Start::Random), 1, Device::Cpu, &World::alone())?;
        let renamed: Vec<u32> = cycle.assignment.iter().map(|&label| (label + 1) % k as u32).collect();
        bank.relabel(&renamed)?;
        let again = fit(&bank.view()?, &plan(k, Start::Random), 1, Device::Cpu, &World::alone())?;
        assert_eq!(again.assignment, cycle.assignment);
        let expected: Vec<Option<u32>> = (0..k as u32).map(|label| Some((label + 1) % k as u32)).collect();
        assert_eq!(again.origins, Some(expected));
        assert_eq!(again.stats.reassigned, Some(0.0));
        Ok(())
    }

    #[test]
    fn a_clustering_survives_the_disk() -> Result<()> {
        let bank = bank()?;
        let clustering = fit(&bank.view()?, &plan(4, Start::Random), 1, Device::Cpu, &World::alone())?.clustering;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("clusters.safetensors");
        Tensor::write_safetensors(&clustering.named_tensors()?, &path)?;
        let read = Clustering::from_named_tensors(&Tensor::read_safetensors(&path)?, Device::Cpu)?;
        assert_eq!((read.k(), &read.sizes), (4, &clustering.sizes));
        let rows = bank.rows()?;
        assert_eq!(read.assign(&rows)?, clustering.assign(&rows)?);
        let error = Clustering::from_named_tensors(&[], Device::Cpu).expect_err("no tensors");
        assert!(error.to_string().contains("whitening.mean"), "{error}");
        Ok(())
    }

    #[test]
    fn a_bank_too_small_for_k_is_an_error_that_names_the_key() -> Result<()> {
        let error =
            fit(&bank()?.view()?, &plan(241, Start::Warm), 1, Device::Cpu, &World::alone()).expect_err("240 rows");
        assert!(error.to_string().contains("cluster.k = 241"), "{error}");
        assert_eq!(error.exit_code(), 2);
        Ok(())
    }
}
