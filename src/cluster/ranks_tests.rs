//! Rows that several ranks hold together are clustered as by one that has them all.

use super::hierarchy::Coarse;
use super::kmeans::{self, Options, Partition, Seeding};
use super::samples::{normal, unit};
use super::whiten::Whitening;
use super::*;
use crate::bank::Rows;
use crate::config::{Empties, Method};
use crate::world::tests::of_ranks;

/// Those of this rank.
fn own(rows: &Tensor, world: &World) -> Tensor {
    let (rank, size) = (world.rank() as i64, world.size() as i64);
    rows.slice(0, rank, None::<i64>, size).contiguous()
}

fn plain(partition: Partition) -> (Vec<f32>, Vec<u32>, Vec<f32>, Vec<u64>) {
    let centroids = Vec::try_from(partition.centroids.reshape([-1])).expect("floats");
    (centroids, partition.assignment, partition.distances, partition.sizes)
}

#[test]
fn k_means_over_shards_is_that_over_the_whole_to_the_last_bit() -> Result<()> {
    // Groups so tight that some clusters start empty, and points of no kind.
    let tight = || normal(1, 12, 8).repeat([90, 1]) * 10.0 + normal(2, 1_080, 8) * 0.01;
    type Case = (&'static str, fn() -> Tensor, usize);
    let cases: [Case; 2] = [("tight", tight, 40), ("spread", || unit(3, 901, 16), 30)];
    for (kind, points, k) in cases {
        for empties in [Empties::Split, Empties::Faiss, Empties::Paper, Empties::Odc] {
            for seeding in [Seeding::Random, Seeding::PlusPlus] {
                let options = Options { k, iterations: 6, seed: 3, empties, seeding, ..Options::default() };
                let options = Options { spherical: kind == "spread", small: 5, ..options };
                let whole = plain(kmeans::cluster(&points(), None, options)?);
                for size in [2, 3] {
                    let found = of_ranks(size, |world| {
                        let points = points();
                        let shared = Points::shared(&own(&points, world), world, points.size()[0])?;
                        Ok(plain(kmeans::over(&shared, None, options, &mut |_| {})?))
                    });
                    for (rank, found) in found.into_iter().enumerate() {
                        assert_eq!(found, whole, "{kind}, {empties:?}, {seeding:?}, rank {rank} of {size}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn products_over_shards_round_as_little_as_sums_of_floats_do() -> Result<()> {
    let points = || unit(5, 700, 800); // too wide for screening
    let options = Options { k: 20, iterations: 5, ..Options::default() };
    let whole = kmeans::cluster(&points(), None, options)?;
    let found = of_ranks(3, |world| {
        let shared = Points::shared(&own(&points(), world), world, 700)?;
        Ok(plain(kmeans::over(&shared, None, options, &mut |_| {})?))
    });
    for (centroids, assignment, ..) in found {
        let centroids = Tensor::from_slice(&centroids).view_as(&whole.centroids);
        assert!(centroids.allclose(&whole.centroids, 1e-5, 1e-5, false));
        assert_eq!(assignment, whole.assignment);
    }
    Ok(())
}

#[test]
fn the_parallel_form_of_k_means_plus_plus_draws_the_same_on_shards() -> Result<()> {
    // 70,000 points and 1,000 clusters are too many for k-means++ itself.
    let points = || unit(6, 70_001, 4);
    let options = Options { k: 1_000, iterations: 1, seeding: Seeding::PlusPlus, ..Options::default() };
    let whole = plain(kmeans::cluster(&points(), None, options)?);
    let found = of_ranks(2, |world| {
        let shared = Points::shared(&own(&points(), world), world, 70_001)?;
        Ok(plain(kmeans::over(&shared, None, options, &mut |_| {})?))
    });
    assert!(found.into_iter().all(|found| found == whole));
    Ok(())
}

#[test]
fn a_whitening_over_shards_is_that_of_the_whole_but_for_rounding() -> Result<()> {
    let rows = || (normal(7, 501, 20).matmul(&normal(8, 20, 20)) + 100.0).to_kind(Kind::Half);
    let whole = Whitening::fit(&rows(), 12, Device::Cpu)?;
    let found = of_ranks(4, |world| {
        let found = Whitening::fit_over(world, &own(&rows(), world), 12, Device::Cpu)?;
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.reshape([-1]));
        Ok((values(found.mean())?, values(found.projection())?))
    });
    for (mean, projection) in &found {
        assert_eq!((mean, projection), (&found[0].0, &found[0].1), "all ranks have the same");
        let projection = Tensor::from_slice(projection).view_as(whole.projection());
        assert!(Tensor::from_slice(mean).allclose(whole.mean(), 1e-6, 1e-6, false));
        assert!(projection.abs().allclose(&whole.projection().abs(), 1e-3, 1e-4, false));
    }
    Ok(())
}

/// 360 rows in 9 groups.
fn grouped_rows() -> Tensor {
    let groups: Vec<i64> = (0..360).map(|row| row % 9).collect();
    (normal(11, 9, 24) * 4.0).index_select(0, &Tensor::from_slice(&groups)) + normal(12, 360, 24) * 0.2
}

/// Their ids, classes, and labels so far.
fn grouped() -> (Vec<SampleId>, Vec<Option<i64>>, Vec<Option<u32>>) {
    let groups: Vec<i64> = (0..360).map(|row| row % 9).collect();
    let ids = (0..360).map(SampleId).collect();
    let classes = groups.iter().map(|&group| Some(group)).collect();
    let labels = groups.iter().map(|&group| (group != 4).then_some(group as u32)).collect();
    (ids, classes, labels)
}

#[test]
fn a_cycle_of_every_method_over_shards_is_that_over_the_whole() -> Result<()> {
    let (ids, classes, labels) = grouped();
    let base = ClusterPlan { k: 18, pca: 8, ..ClusterPlan::default() };
    let plans = [
        base.clone(),
        ClusterPlan { start: Start::Warm, ..base.clone() },
        ClusterPlan { coarse: 3, ..base.clone() },
        ClusterPlan { balanced: true, ..base.clone() },
        ClusterPlan { method: Method::Pic, ..base },
    ];
    for plan in plans {
        let whole = Rows { features: grouped_rows(), ids: &ids, classes: &classes, labels: &labels };
        let whole = fit(&whole, &plan, 5, Device::Cpu, &World::alone())?;
        let found = of_ranks(3, |world| {
            let shard = Rows { features: own(&grouped_rows(), world), ids: &ids, classes: &classes, labels: &labels };
            let cycle = fit(&shard, &plan, 5, Device::Cpu, world)?;
            let (labels, _) = cycle.clustering.assign(&grouped_rows())?;
            Ok((cycle.assignment, cycle.stats, cycle.origins, kmeans::host_labels(&labels)?))
        });
        for (assignment, stats, origins, labels) in found {
            let agreeing = assignment.iter().zip(&whole.assignment).filter(|(left, right)| left == right).count();
            assert!(agreeing >= 356, "{agreeing} of 360 with {plan:?}");
            assert!((stats.objective / whole.stats.objective - 1.0).abs() < 1e-3, "{stats:?} {:?}", whole.stats);
            let close = |left: Option<f64>, right: Option<f64>| (left.expect("NMI") - right.expect("NMI")).abs() < 0.01;
            assert!(close(stats.nmi_labels, whole.stats.nmi_labels) && close(stats.nmi_prev, whole.stats.nmi_prev));
            assert_eq!(origins.map(|origins| origins.len()), whole.origins.as_ref().map(Vec::len));
            assert_eq!(labels.len(), 360);
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_clustered_is_an_error_on_every_rank() {
    let (ids, classes, labels) = grouped();
    let plan = ClusterPlan { k: 9, pca: 8, ..ClusterPlan::default() };
    let found = of_ranks(2, |world| {
        let rows = grouped_rows();
        let _ = rows.narrow(0, 7, 1).fill_(f64::NAN);
        let shard = Rows { features: own(&rows, world), ids: &ids, classes: &classes, labels: &labels };
        Ok(fit(&shard, &plan, 5, Device::Cpu, world).expect_err("a NaN").to_string())
    });
    assert!(found.iter().all(|error| error.contains("not finite")), "{found:?}");
}

#[test]
fn coarse_clusters_come_back_whole() -> Result<()> {
    let (ids, classes, labels) = grouped();
    let plan = ClusterPlan { k: 18, pca: 8, coarse: 3, ..ClusterPlan::default() };
    let levels = |world: &World| {
        let shard = Rows { features: own(&grouped_rows(), world), ids: &ids, classes: &classes, labels: &labels };
        let clustering = fit(&shard, &plan, 5, Device::Cpu, world)?.clustering;
        let Coarse { firsts, centroids } = clustering.coarse.expect("two levels");
        Ok((firsts, centroids.size()))
    };
    let whole = levels(&World::alone())?;
    assert!(of_ranks(2, levels).iter().all(|found| *found == whole));
    Ok(())
}
