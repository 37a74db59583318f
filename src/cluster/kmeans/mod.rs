//! Lloyd's k-means (paper, section 3.3).
//!
//! In go points `[N, d]` of f32 and a seed; out come centroids `[k, d]`, and for every point its nearest centroid and the
//! squared distance to it. On a processor with AVX2, up to 640 dimensions, `lloyd.rs` does it; elsewhere, and where it finds the
//! points to be of no kind for it, matrix products of libtorch do (`products.rs`). Clusters that run empty are mended after each
//! update, and once more after the last assignment, by the rule of the plan (`empties.rs`).
//!
//! The same points and seed give the same result: by `lloyd` to the last bit, whatever the number of threads, and of ranks that hold
//! the points. What can go wrong:
//! fewer points than clusters, points that are not finite, a start of another shape.

mod empties;
mod engine;
mod lloyd;
mod panels;
mod products;
mod screen;
mod search;
mod seeding;
mod sums;

pub(super) use products::host_labels;
pub use products::{distances_to_own, means_by_label, means_over, nearest};
pub use seeding::Seeding;
pub(super) use seeding::random_points;

use super::Points;
use crate::config::Empties;
use crate::error::{Error, Result};
use crate::torch::floats;
use engine::Assigned;
use products::Products;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// Points per cluster below which centroids are known to be poor.
const FEW_POINTS: usize = 39;
/// Share of its distances to all centroids that [`lloyd`] may measure in floats for a point, before products are taken instead; a
/// few dozen are always allowed.
const MUCH_MEASURED: f64 = 0.25;
const FEW_MEASURED: f64 = 32.0;

/// How to cluster.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Clusters.
    pub k: usize,
    /// Most iterations; fewer where the assignment settles before.
    pub iterations: usize,
    /// Stops once an iteration lowers the objective by less than this share of it; 0 goes on while any point moves.
    pub tolerance: f64,
    /// Chooses the first centroids and the donors of empty clusters.
    pub seed: u64,
    /// Where it starts, if no start is given.
    pub seeding: Seeding,
    /// Scales centroids to length one after each update: spherical k-means, for points of length one (Dhillon and Modha, 2001).
    pub spherical: bool,
    /// What becomes of clusters without points.
    pub empties: Empties,
    /// Points below which a cluster is small, for [`Empties::Odc`].
    pub small: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            k: 2,
            iterations: 20,
            tolerance: 0.0,
            seed: 0,
            seeding: Seeding::Random,
            spherical: false,
            empties: Empties::Split,
            small: 20,
        }
    }
}

/// Points divided among centroids.
#[derive(Debug)]
pub struct Partition {
    /// `[k, d]`, f32.
    pub centroids: Tensor,
    /// Cluster of each point.
    pub assignment: Vec<u32>,
    /// Squared distance of each point to its centroid.
    pub distances: Vec<f32>,
    /// Points of each cluster.
    pub sizes: Vec<u64>,
    /// Sum of squared distances in each iteration, before its update of the centroids.
    pub objectives: Vec<f64>,
}

impl Partition {
    /// Sum of squared distances of the final assignment.
    pub fn objective(&self) -> f64 {
        self.distances.iter().map(|&distance| f64::from(distance)).sum()
    }

    /// Iterations done.
    pub fn iterations(&self) -> usize {
        self.objectives.len()
    }
}

/// Divides `points` `[N, d]` of any float kind into `k` clusters, from `start` `[k, d]` or as [`Options::seeding`] says.
pub fn cluster(points: &Tensor, start: Option<&Tensor>, options: Options) -> Result<Partition> {
    watched(points, start, options, &mut |_| {})
}

/// [`cluster`], telling the objective of each iteration.
pub fn watched(
    points: &Tensor,
    start: Option<&Tensor>,
    options: Options,
    tell: &mut dyn FnMut(f64),
) -> Result<Partition> {
    over(&Points::alone(points)?, start, options, tell)
}

/// [`watched`] over points that several ranks hold together; every rank gets the whole outcome. By screening it is that of one rank
/// with all of them, to the last bit (objectives are sums of doubles: only where one decides over the last iteration can ranks differ); by products, on a GPU or where
/// screening is of no use to some rank, sums of doubles round by the order of the ranks.
pub fn over(points: &Points, start: Option<&Tensor>, options: Options, tell: &mut dyn FnMut(f64)) -> Result<Partition> {
    let _no_grad = tch::no_grad_guard();
    check(points, options.k)?;
    let is_finite = check_finite(points.own());
    if !points.world().all(is_finite.is_ok())? {
        return Err(is_finite
            .err()
            .unwrap_or_else(|| Error::data("the points to cluster on another rank are not finite")));
    }
    let width = points.width() as i64;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let start = match start {
        Some(start) if start.size() == [options.k as i64, width] => {
            start.f_to_device(points.device())?.f_to_kind(Kind::Float)?.f_contiguous()?
        }
        Some(start) => {
            let expected = [options.k as i64, width];
            return Err(Error::data(format!("k-means starts from centroids {expected:?}, not {:?}", start.size())));
        }
        None => match options.seeding {
            Seeding::Random => seeding::random_points(points, options.k, &mut rng)?,
            Seeding::PlusPlus => seeding::spread_points(points, options.k, &mut rng)?,
        },
    };
    let mut partition = iterate(points, start, &options, &mut rng, tell)?;
    empties::settle(points, &mut partition, &options, &mut rng)?;
    Ok(partition)
}

/// The nearest of `centroids` `[k, d]` to each of `points` `[N, d]`, both f32, and the squared distance to it.
pub fn assign(points: &Tensor, centroids: &Tensor) -> Result<(Vec<u32>, Vec<f32>)> {
    let _no_grad = tch::no_grad_guard();
    let points = Points::alone(points)?;
    let mut engine = engine::choose(&points, centroids)?;
    engine.assign()?;
    let found = engine.finish()?;
    Ok((found.labels, found.distances))
}

/// Lloyd's iterations from `start`, and the last assignment.
fn iterate(
    points: &Points,
    start: Tensor,
    options: &Options,
    rng: &mut ChaCha8Rng,
    tell: &mut dyn FnMut(f64),
) -> Result<Partition> {
    let (count, width) = (points.count() as i64, points.width());
    let mut engine = engine::choose(points, &start)?;
    drop(start);
    let mut objectives: Vec<f64> = Vec::new();
    let mut repaired = true;
    for _ in 0..options.iterations {
        let assigned = of_all(points, engine.assign()?)?;
        let before = objectives.last().copied().unwrap_or(f64::INFINITY);
        objectives.push(assigned.objective);
        tell(assigned.objective);
        // Also where products round so much that the objective rises.
        let little = !repaired && before - assigned.objective < options.tolerance * before;
        if assigned.settled || little {
            break;
        }
        // The first has no distances to start from, and measures more.
        let is_wasted = objectives.len() > 1 && assigned.measured as f64 > much_measured(count, options.k);
        engine.update(options.spherical)?;
        repaired = engine.counts().contains(&0);
        if repaired {
            let mut places = engine.centroids()?;
            let sizes = engine.counts();
            repaired = empties::repair(&mut places, width, sizes, options.empties, rng);
            engine.displace(&places)?;
        }
        if is_wasted {
            // A few tight groups that are far from each other: copies in 8 bits cannot tell their points apart.
            let centroids = Tensor::f_from_slice(&engine.centroids()?)?.f_view([-1, width as i64])?;
            engine = Box::new(Products::new(points, &centroids));
        }
    }
    engine.assign()?;
    let found = engine.finish()?;
    let assignment = points.of_all_labels(found.labels)?;
    let distances = points.of_all_distances(found.distances)?;
    let sizes = count_labels(&assignment, options.k);
    Ok(Partition { centroids: found.centroids, assignment, distances, sizes, objectives })
}

/// An assignment over all ranks.
fn of_all(points: &Points, own: Assigned) -> Result<Assigned> {
    let unsettled = f64::from(u8::from(!own.settled));
    let sums = points.world().sum(&[own.objective, own.measured as f64, unsettled])?;
    Ok(Assigned { objective: sums[0], measured: sums[1] as u64, settled: sums[2] == 0.0 })
}

/// Distances measured in one assignment that show screening to be of no use.
fn much_measured(count: i64, k: usize) -> f64 {
    count as f64 * (MUCH_MEASURED * k as f64).max(FEW_MEASURED)
}

/// How often each label below `k` occurs.
pub(super) fn count_labels(labels: &[u32], k: usize) -> Vec<u64> {
    let mut sizes = vec![0; k];
    for &label in labels {
        sizes[label as usize] += 1;
    }
    sizes
}

/// Refuses points `[N, d]` of f32 that are not finite.
pub(super) fn check_finite(points: &Tensor) -> Result<()> {
    let all = match floats(points) {
        // A number times 0 is 0; anything else is no number.
        Some(entries) => entries.par_chunks(1 << 16).all(|part| part.iter().fold(0.0, |sum, x| sum + x * 0.0) == 0.0),
        None => bool::try_from(points.f_isfinite()?.f_all()?)?,
    };
    if all { Ok(()) } else { Err(Error::data("the points to cluster are not finite")) }
}

fn check(points: &Points, k: usize) -> Result<()> {
    let count = points.count();
    if k == 0 {
        return Err(Error::usage("cluster.k = 0 makes no clusters").with_hint("set cluster.k to 2 or more"));
    }
    if count < k {
        return Err(Error::usage(format!("cluster.k = {k} clusters need as many rows, and there are {count}"))
            .with_hint("lower cluster.k, raise bank.capacity, or let the bank fill longer with cluster.every_steps"));
    }
    if count < FEW_POINTS * k && points.world().is_first() {
        tracing::warn!(
            "{count} rows for cluster.k = {k}: fewer than {FEW_POINTS} a cluster make unsteady clusters; {} would be better",
            FEW_POINTS * k
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::engine::Engine;
    use super::*;
    use crate::cluster::samples::{normal, unit};
    use crate::torch::unit_rows;
    use proptest::prelude::*;
    use tch::Device;

    fn options(k: usize) -> Options {
        Options { k, seed: 3, empties: Empties::Faiss, ..Options::default() }
    }

    fn squared_distance(left: &[f64], right: &[f64]) -> f64 {
        left.iter().zip(right).map(|(left, right)| (left - right).powi(2)).sum()
    }

    /// Lloyd's algorithm in plain loops and double precision: assignment and objective after `iterations` updates.
    fn lloyd(points: &[Vec<f64>], mut centroids: Vec<Vec<f64>>, iterations: usize) -> (Vec<u32>, f64) {
        for iteration in 0.. {
            let mut objective = 0.0;
            let mut assignment = Vec::new();
            for point in points {
                let distances: Vec<f64> = centroids.iter().map(|centroid| squared_distance(point, centroid)).collect();
                let nearest =
                    (0..distances.len()).min_by(|&a, &b| distances[a].total_cmp(&distances[b])).expect("a centroid");
                objective += distances[nearest];
                assignment.push(nearest as u32);
            }
            if iteration == iterations {
                return (assignment, objective);
            }
            for (cluster, centroid) in centroids.iter_mut().enumerate() {
                let members: Vec<&Vec<f64>> = points
                    .iter()
                    .zip(&assignment)
                    .filter(|(_, label)| **label == cluster as u32)
                    .map(|(point, _)| point)
                    .collect();
                assert!(!members.is_empty(), "the reference knows no empty clusters");
                for (column, entry) in centroid.iter_mut().enumerate() {
                    *entry = members.iter().map(|member| member[column]).sum::<f64>() / members.len() as f64;
                }
            }
        }
        unreachable!("the loop returns")
    }

    #[test]
    fn the_outcome_is_that_of_plain_loops_in_double_precision() -> Result<()> {
        let points = unit(1, 600, 8);
        let start = points.narrow(0, 40, 12);
        let plain = |tensor: &Tensor| Vec::<Vec<f64>>::try_from(tensor.to_kind(Kind::Double)).expect("a matrix");
        for iterations in [0, 1, 7] {
            let found = cluster(&points, Some(&start), Options { iterations, ..options(12) })?;
            let (assignment, objective) = lloyd(&plain(&points), plain(&start), iterations);
            assert_eq!(found.assignment, assignment);
            assert!((found.objective() / objective - 1.0).abs() < 1e-5);
            assert_eq!(found.iterations(), iterations);
        }
        Ok(())
    }

    #[test]
    fn a_seed_fixes_everything_and_the_objective_falls_until_nothing_moves() -> Result<()> {
        let points = unit(2, 500, 6);
        let first = cluster(&points, None, Options { iterations: 300, ..options(10) })?;
        let second = cluster(&points, None, Options { iterations: 300, ..options(10) })?;
        assert_eq!(first.assignment, second.assignment);
        assert_eq!(first.centroids, second.centroids);
        assert!(first.iterations() < 300, "it settles");
        assert!(first.objectives.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-6)), "{:?}", first.objectives);
        assert_eq!(first.sizes, count_labels(&first.assignment, 10));
        let other = cluster(&points, None, Options { seed: 4, ..options(10) })?;
        assert_ne!(first.assignment, other.assignment);
        Ok(())
    }

    #[test]
    fn a_cluster_that_starts_far_from_every_point_is_given_some() -> Result<()> {
        let points = unit(7, 300, 4);
        let start = Tensor::cat(&[points.narrow(0, 0, 5), Tensor::full([3, 4], 50.0, (Kind::Float, Device::Cpu))], 0);
        let found = cluster(&points, Some(&start), options(8))?;
        assert!(found.sizes.iter().all(|&size| size > 0), "{:?}", found.sizes);
        Ok(())
    }

    #[test]
    fn points_that_copies_cannot_tell_apart_are_clustered_by_products() -> Result<()> {
        // Two groups of a diameter of 1e-3 at a distance of 2,000.
        let sides = Tensor::from_slice(&[-1_000.0_f32, 1_000.0]).view([2, 1]).repeat([300, 1]);
        let points = normal(31, 600, 8) * 1e-3;
        points.narrow(1, 0, 1).copy_(&sides);
        let start = points.narrow(0, 0, 100).contiguous();
        let shared = Points::alone(&points)?;
        let mut engine = engine::choose(&shared, &start)?;
        engine.assign()?;
        engine.update(false)?;
        let measured = engine.assign()?.measured;
        assert!(measured as f64 > much_measured(600, 100), "{measured} of 60,000");
        let found = cluster(&points, Some(&start), Options { iterations: 4, ..options(100) })?;
        let mut by_products: Box<dyn Engine + '_> = Box::new(Products::new(&shared, &start));
        for _ in 0..4 {
            by_products.assign()?;
            by_products.update(false)?;
        }
        by_products.assign()?;
        let same = by_products.finish()?;
        let agreeing = same.labels.iter().zip(&found.assignment).filter(|(left, right)| left == right).count();
        // Products round: points at the border may fall to either side.
        assert!(agreeing > 500, "{agreeing} of 600");
        Ok(())
    }

    #[test]
    fn spherical_centroids_have_length_one_by_either_engine_and_the_cosine_grows() -> Result<()> {
        for width in [16, 700] {
            let points = unit(8, 500, width);
            let spherical = Options { spherical: true, iterations: 8, ..options(9) };
            let found = cluster(&points, None, spherical)?;
            let lengths = found.centroids.square().sum_dim_intlist(1, false, Kind::Float);
            assert!(lengths.allclose(&lengths.ones_like(), 1e-5, 1e-5, false), "{lengths}");
            assert!(
                found.objectives.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-6)),
                "{:?}",
                found.objectives
            );
            // By hand: each centroid is the scaled mean of its points, but for what the last assignment has moved.
            let settled = cluster(&points, None, Options { iterations: 200, ..spherical })?;
            let labels: Vec<i64> = settled.assignment.iter().map(|&label| i64::from(label)).collect();
            let (means, _) = means_by_label(&points, &Tensor::from_slice(&labels), 9)?;
            assert!(settled.centroids.allclose(&unit_rows(&means)?, 1e-4, 1e-4, false));
        }
        Ok(())
    }

    #[test]
    fn a_tolerance_stops_early_and_its_start_is_chosen_by_the_plan() -> Result<()> {
        let points = unit(9, 2_000, 16);
        let long = cluster(&points, None, Options { iterations: 100, ..options(40) })?;
        let short = cluster(&points, None, Options { iterations: 100, tolerance: 0.01, ..options(40) })?;
        assert!(short.iterations() < long.iterations());
        let gains: Vec<f64> = short.objectives.windows(2).map(|pair| 1.0 - pair[1] / pair[0]).collect();
        let (last, rest) = gains.split_last().expect("some iterations");
        assert!(*last < 0.01 && rest.iter().all(|gain| *gain >= 0.01), "{gains:?}");

        let groups = normal(1, 30, 8).repeat([50, 1]) * 100.0 + normal(2, 1_500, 8) * 0.01;
        let few = Options { iterations: 5, ..options(30) };
        let spread = cluster(&groups, None, Options { seeding: Seeding::PlusPlus, ..few })?;
        let random = cluster(&groups, None, few)?;
        assert!(spread.objective() < random.objective() / 100.0, "{} {}", spread.objective(), random.objective());
        Ok(())
    }

    #[test]
    fn fewer_points_than_clusters_and_points_that_are_not_finite_are_refused() {
        let points = unit(1, 5, 3);
        let error = cluster(&points, None, options(6)).expect_err("five points for six clusters");
        assert!(error.to_string().contains("cluster.k = 6") && error.hint().is_some(), "{error}");
        assert!(cluster(&points, None, options(0)).is_err());
        assert!(cluster(&points, Some(&points.narrow(0, 0, 2)), options(3)).is_err());
        let _ = points.narrow(0, 2, 1).fill_(f64::INFINITY);
        assert!(cluster(&points, None, options(2)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// Distinct points on a coarse grid, with copies: as many clusters as there are distinct points can all be filled.
        #[test]
        fn splitting_leaves_no_cluster_empty_while_points_differ(
            cells in prop::collection::vec((0_i8..5, 0_i8..5), 2..40),
            share in 0.1_f64..=1.0,
            iterations in 0_usize..4,
            seed in 0_u64..1000,
        ) {
            let distinct = cells.iter().collect::<std::collections::BTreeSet<_>>().len();
            let k = ((distinct as f64 * share) as usize).max(1);
            let entries: Vec<f32> = cells.iter().flat_map(|&(x, y)| [f32::from(x), f32::from(y)]).collect();
            let points = Tensor::from_slice(&entries).view([-1, 2]);
            let options = Options { k, iterations, seed, ..Options::default() };
            let found = cluster(&points, None, options).expect("a partition");
            prop_assert!(found.sizes.iter().all(|&size| size > 0), "{:?}", found.sizes);
            prop_assert_eq!(&found.sizes, &count_labels(&found.assignment, k));
            let own = found.centroids.index_select(0, &Tensor::from_slice(&found.assignment.iter().map(|&label| i64::from(label)).collect::<Vec<_>>()));
            let distances = Vec::<f32>::try_from((points - own).square().sum_dim_intlist(1, false, Kind::Float)).expect("distances");
            for (left, right) in distances.iter().zip(&found.distances) {
                prop_assert!((left - right).abs() < 1e-4);
            }
        }
    }
}
