//! Lloyd's k-means over unit rows (paper, section 3.3).
//!
//! In go points `[N, d]` of f32 and a seed; out come centroids `[k, d]`, and for every point its nearest centroid and the
//! squared distance to it. On a processor with AVX2, up to 640 dimensions, `lloyd.rs` does it; elsewhere the search for the nearest
//! is a matrix product of libtorch by blocks of points, so that `N × k` never exists in full. Clusters that run empty are
//! repaired after each update, and once more after the last assignment where the plan says so.
//!
//! The same points and seed give the same result: by `lloyd.rs` to the last bit, whatever the number of threads. By products,
//! points in double tie between two centroids may fall to either when block size, threads or device change.

use super::blocks::{block, blocks};
use super::empties;
use super::lloyd::Lloyd;
use super::screen::Screen;
use super::whiten::mean_row;
use crate::config::Empties;
use crate::error::{Error, Result};
use crate::torch::floats;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// Points per cluster below which centroids are known to be poor.
const FEW_POINTS: usize = 39;

/// How to cluster.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Clusters.
    pub k: usize,
    /// Most iterations; fewer where the assignment settles before.
    pub iterations: usize,
    /// Chooses the first centroids and the donors of empty clusters.
    pub seed: u64,
    /// What becomes of clusters that the last assignment leaves empty.
    pub empties: Empties,
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

/// Divides `points` `[N, d]` into `k` clusters, from `start` `[k, d]` or from `k` random points.
pub fn cluster(points: &Tensor, start: Option<&Tensor>, options: Options) -> Result<Partition> {
    let _no_grad = tch::no_grad_guard();
    let (count, width) = points.size2()?;
    check(count as usize, options.k)?;
    if !bool::try_from(points.f_isfinite()?.f_all()?)? {
        return Err(Error::data("the points to cluster are not finite"));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let centroids = match start {
        Some(start) if start.size() == [options.k as i64, width] => start.f_to_device(points.device())?,
        Some(start) => {
            let expected = [options.k as i64, width];
            return Err(Error::data(format!("k-means starts from centroids {expected:?}, not {:?}", start.size())));
        }
        None => random_points(points, options.k, &mut rng)?,
    };

    let mut partition = match on_host(points, &centroids, options, &mut rng)? {
        Some(partition) => partition,
        None => by_products(points, centroids, options, &mut rng)?,
    };
    partition.sizes = count_labels(&partition.assignment, options.k);
    if options.empties == Empties::Split {
        empties::split(points, &mut partition, &mut rng)?;
    }
    Ok(partition)
}

/// Lloyd's iterations on the processor ([`Lloyd`]); none where matrix products do better.
fn on_host(points: &Tensor, start: &Tensor, options: Options, rng: &mut ChaCha8Rng) -> Result<Option<Partition>> {
    if points.device() != Device::Cpu || !Screen::pays(points.size2()?.1 as usize) {
        return Ok(None);
    }
    let (points, start) = (points.f_contiguous()?, start.f_contiguous()?);
    let (Some(entries), Some(first)) = (floats(&points), floats(&start)) else { return Ok(None) };
    let mean = Vec::<f32>::try_from(mean_row(&points, Device::Cpu)?.f_to_kind(Kind::Float)?)?;
    let shape = start.size2()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(tch::get_num_threads().max(1) as usize).build();
    let pool = pool.map_err(|error| Error::device(format!("cannot start threads for clustering: {error}")))?;
    let Some(mut lloyd) = pool.install(|| Lloyd::new(entries, mean, first.to_vec())) else { return Ok(None) };

    let mut objectives = Vec::new();
    let mut repaired = true;
    for _ in 0..options.iterations {
        let assigned = pool.install(|| lloyd.assign());
        objectives.push(assigned.objective);
        if assigned.changed == 0 && !repaired {
            break;
        }
        pool.install(|| lloyd.update(&assigned));
        repaired = lloyd.counts().contains(&0);
        if repaired {
            let (means, mut sizes) = (Tensor::f_from_slice(lloyd.centroids())?.f_view(shape)?, lloyd.counts().to_vec());
            if let Some(places) = empties::repair(&means, &mut sizes, rng)? {
                lloyd.displace(&Vec::<f32>::try_from(places.f_reshape([-1])?)?);
            }
        }
    }
    pool.install(|| lloyd.assign());
    let centroids = Tensor::f_from_slice(lloyd.centroids())?.f_view(shape)?;
    let (assignment, distances) = lloyd.into_parts();
    Ok(Some(Partition { centroids, assignment, distances, sizes: Vec::new(), objectives }))
}

/// Lloyd's iterations as matrix products of libtorch, on any device.
fn by_products(points: &Tensor, mut centroids: Tensor, options: Options, rng: &mut ChaCha8Rng) -> Result<Partition> {
    let mut objectives = Vec::new();
    let mut settled: Option<Tensor> = None;
    for _ in 0..options.iterations {
        let (labels, distances) = nearest(points, &centroids)?;
        objectives.push(f64::try_from(distances.f_sum(Kind::Double)?)?);
        let unchanged = settled.as_ref().map(|before| before.f_equal(&labels)).transpose()?.unwrap_or(false);
        if unchanged {
            break;
        }
        let (means, mut sizes) = means_by_label(points, &labels, options.k)?;
        let repaired = empties::repair(&means, &mut sizes, rng)?;
        // After a repair the same labels do not mean the same centroids.
        settled = repaired.is_none().then_some(labels);
        centroids = repaired.unwrap_or(means);
    }

    let (labels, distances) = nearest(points, &centroids)?;
    Ok(Partition {
        centroids,
        assignment: host_labels(&labels)?,
        distances: Vec::<f32>::try_from(distances.f_to_device(Device::Cpu)?)?,
        sizes: Vec::new(),
        objectives,
    })
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
        // Taken from the difference itself: the products above cancel where points are close to their centroid.
        let difference = block.f_sub(&centroids.f_index_select(0, &best)?)?;
        labels.f_narrow(0, start, len)?.f_copy_(&best)?;
        let squared = difference.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
        distances.f_narrow(0, start, len)?.f_copy_(&squared)?;
    }
    Ok((labels, distances))
}

/// Mean point `[k, d]` and number of points of each label; the mean of none is 0.
pub fn means_by_label(points: &Tensor, labels: &Tensor, k: usize) -> Result<(Tensor, Vec<u64>)> {
    let (count, width) = points.size2()?;
    let device = points.device();
    let mut sums = Tensor::f_zeros([k as i64, width], (Kind::Double, device))?;
    for range in blocks(count, 8 * width, device) {
        let block = block(points, range, device, Kind::Double)?;
        let _ = sums.f_index_add_(0, &labels.f_narrow(0, range.0, range.1)?, &block)?;
    }
    let counts = labels.f_bincount(None::<&Tensor>, k as i64)?;
    let divisors = counts.f_to_kind(Kind::Double)?.f_clamp_min(1.0)?.f_unsqueeze(1)?;
    let sizes = Vec::<i64>::try_from(counts.f_to_device(Device::Cpu)?)?;
    Ok((sums.f_div(&divisors)?.f_to_kind(Kind::Float)?, sizes.into_iter().map(|size| size as u64).collect()))
}

/// `k` points `[k, d]`, none drawn twice.
pub(super) fn random_points(points: &Tensor, k: usize, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let drawn = rand::seq::index::sample(rng, points.size2()?.0 as usize, k);
    let drawn: Vec<i64> = drawn.into_iter().map(|row| row as i64).collect();
    Ok(points.f_index_select(0, &Tensor::f_from_slice(&drawn)?.f_to_device(points.device())?)?)
}

/// Labels as plain numbers.
pub(super) fn host_labels(labels: &Tensor) -> Result<Vec<u32>> {
    let labels = Vec::<i64>::try_from(labels.f_to_device(Device::Cpu)?)?;
    Ok(labels.into_iter().map(|label| label as u32).collect())
}

/// How often each label below `k` occurs.
pub(super) fn count_labels(labels: &[u32], k: usize) -> Vec<u64> {
    let mut sizes = vec![0; k];
    for &label in labels {
        sizes[label as usize] += 1;
    }
    sizes
}

fn check(count: usize, k: usize) -> Result<()> {
    if k == 0 {
        return Err(Error::usage("cluster.k = 0 makes no clusters").with_hint("set cluster.k to 2 or more"));
    }
    if count < k {
        return Err(Error::usage(format!("cluster.k = {k} clusters need as many rows, and there are {count}"))
            .with_hint("lower cluster.k, raise bank.capacity, or let the bank fill longer with cluster.every_steps"));
    }
    if count < FEW_POINTS * k {
        tracing::warn!(
            "{count} rows for cluster.k = {k}: fewer than {FEW_POINTS} a cluster make unsteady clusters; {} would be better",
            FEW_POINTS * k
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;
    use crate::torch::scores;
    use proptest::prelude::*;

    fn options(k: usize) -> Options {
        Options { k, iterations: 20, seed: 3, empties: Empties::Keep }
    }

    fn unit_points(count: i64, width: i64, seed: u64) -> Tensor {
        let points = normal(seed, count, width);
        let lengths = points.square().sum_dim_intlist(1, true, Kind::Float).sqrt();
        points / lengths
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
        let points = unit_points(600, 8, 1);
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
        let points = unit_points(500, 6, 2);
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
    fn blocks_do_not_change_the_nearest_centroid() -> Result<()> {
        // 65,536 centroids make blocks of 64 points.
        let points = unit_points(700, 4, 5);
        let centroids = unit_points(65_536, 4, 6);
        let (labels, distances) = nearest(&points, &centroids)?;
        let (tail_labels, tail_distances) = nearest(&points.narrow(0, 650, 50), &centroids)?;
        assert_eq!(labels.narrow(0, 650, 50), tail_labels);
        assert_eq!(distances.narrow(0, 650, 50), tail_distances);
        let scores = points.matmul(&centroids.tr()) * 2.0 - centroids.square().sum_dim_intlist(1, false, Kind::Float);
        let agreeing = labels.eq_tensor(&scores.argmax(1, false)).to_kind(Kind::Double).mean(Kind::Double);
        assert!(f64::try_from(agreeing)? > 0.99);
        Ok(())
    }

    /// Points of every kind that screening has to cope with.
    fn hard_cases() -> Vec<(&'static str, Tensor)> {
        let spread = normal(21, 900, 24) * Tensor::logspace(-2.0, 1.0, 24, 10.0, (Kind::Float, Device::Cpu));
        let lengths = Tensor::logspace(-4.0, 2.0, 900, 10.0, (Kind::Float, Device::Cpu)).view([900, 1]);
        vec![
            ("isotropic", unit_points(1_500, 256, 22)),
            ("of very different lengths", normal(23, 900, 33) * lengths),
            ("of columns of very different scale", spread),
            ("far from the origin", unit_points(900, 16, 24) + 1_000.0),
            ("on few places", normal(25, 40, 5).repeat([25, 1])),
            ("on a line", normal(26, 700, 1)),
        ]
    }

    #[test]
    fn screening_misses_no_nearer_centroid_and_threads_change_nothing() -> Result<()> {
        for (kind, points) in hard_cases() {
            let start = points.narrow(0, 0, 37).contiguous();
            let mean = Vec::<f32>::try_from(mean_row(&points, Device::Cpu)?.to_kind(Kind::Float))?;
            let entries = floats(&points).expect("floats");
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                let first = floats(&start).expect("floats").to_vec();
                pool.install(|| {
                    let mut lloyd = Lloyd::new(entries, mean.clone(), first).expect("worth screening");
                    let mut objectives = Vec::new();
                    for _ in 0..12 {
                        let assigned = lloyd.assign();
                        check_nearest(kind, entries, &lloyd);
                        objectives.push(assigned.objective.to_bits());
                        lloyd.update(&assigned);
                    }
                    (objectives, lloyd.centroids().to_vec(), lloyd.into_parts())
                })
            };
            assert_eq!(run(1), run(3), "{kind}");
        }
        Ok(())
    }

    /// Every label is that of the nearest centroid, the first of those equally near.
    fn check_nearest(kind: &str, points: &[f32], lloyd: &Lloyd<'_>) {
        let width = lloyd.centroid(0).len();
        for (point, (&label, &distance)) in points.chunks_exact(width).zip(lloyd.labels().iter().zip(lloyd.distances()))
        {
            let all = lloyd.centroids().chunks_exact(width).map(|centroid| scores::squared_distance(point, centroid));
            let nearest = all.enumerate().min_by(|left, right| left.1.total_cmp(&right.1)).expect("a centroid");
            assert_eq!((nearest.0 as u32, nearest.1), (label, distance), "points {kind}");
        }
    }

    #[test]
    fn a_cluster_that_starts_far_from_every_point_is_given_some() -> Result<()> {
        let points = unit_points(300, 4, 7);
        let start = Tensor::cat(&[points.narrow(0, 0, 5), Tensor::full([3, 4], 50.0, (Kind::Float, Device::Cpu))], 0);
        let found = cluster(&points, Some(&start), options(8))?;
        assert!(found.sizes.iter().all(|&size| size > 0), "{:?}", found.sizes);
        Ok(())
    }

    #[test]
    fn fewer_points_than_clusters_and_points_that_are_not_finite_are_refused() {
        let points = unit_points(5, 3, 1);
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
            let options = Options { k, iterations, seed, empties: Empties::Split };
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
