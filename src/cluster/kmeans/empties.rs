//! Empty and tiny clusters, by a named rule each (paper, section 3.3, "empty clusters").
//!
//! During k-means an empty cluster takes a copy of a donor's centroid; the two are pushed apart by a relative 1/1024, and the
//! next assignment divides the donor's points. Who donates, and what becomes of clusters that the last assignment leaves empty,
//! is the rule's:
//!
//! | rule | donor | after the last assignment |
//! |---|---|---|
//! | `split` | in proportion to size less one | a donor's own points are divided between two new means: no cluster stays empty while any has two different points |
//! | `faiss` | the same odds, by the very numbers that faiss draws: Mersenne twister of seed 1234, anew each time | nothing: the cluster stays empty |
//! | `paper` | any cluster of two points or more, the same odds for each | the same, and the donor's points go to the nearer of the two |
//! | `odc` | as `split` | clusters of fewer than `small` points are dissolved into the nearest others, and the largest divided by 2-means for each (Zhan et al., CVPR 2020, section 3.2) |
//!
//! A cluster of one point never gives it away.

use super::{Options, Partition, products};
use crate::cluster::Points;
use crate::cluster::blocks::gather;
use crate::config::Empties;
use crate::error::Result;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_mt::Mt;
use tch::{Device, Tensor};

/// Relative distance by which a donor's centroid and its copy are pushed apart.
const PUSH: f32 = 1.0 / 1024.0;
/// faiss starts from this whenever it repairs.
const FAISS_SEED: u32 = 1234;
/// Donors tried for a cluster that the last assignment leaves empty, by the rule `paper`.
const TRIES: usize = 16;
/// Iterations of the 2-means of the rule `odc`.
const ODC_ITERATIONS: usize = 20;

/// Gives a centroid to each cluster of `centroids` `[k, width]` without points; whether there were any with a donor to be found.
///
/// For the next draw a donor and its copy have half its points each.
pub(super) fn repair(centroids: &mut [f32], width: usize, sizes: &[u64], rule: Empties, rng: &mut ChaCha8Rng) -> bool {
    let mut twister = Mt::new(FAISS_SEED);
    let others = sizes.iter().sum::<u64>().saturating_sub(sizes.len() as u64) as f32; // N - k
    let mut halves: Vec<f32> = sizes.iter().map(|&size| size as f32).collect(); // as faiss counts
    let mut sizes = sizes.to_vec();
    let mut repaired = false;
    for empty in 0..sizes.len() {
        if sizes[empty] > 0 {
            continue;
        }
        let donor = match rule {
            Empties::Split | Empties::Odc => draw_donor(&sizes, rng),
            Empties::Faiss => faiss_donor(&halves, others, &mut twister),
            Empties::Paper => any_donor(&sizes, rng),
        };
        let Some(donor) = donor else { break };
        push_apart(centroids, width, donor, empty, rule, rng);
        sizes[empty] = sizes[donor] / 2;
        sizes[donor] -= sizes[empty];
        halves[empty] = halves[donor] / 2.0;
        halves[donor] -= halves[empty];
        repaired = true;
    }
    repaired
}

/// Copies the centroid of `donor` to `empty`, and moves both a little, or with the rule `paper` the copy alone, at random.
fn push_apart(centroids: &mut [f32], width: usize, donor: usize, empty: usize, rule: Empties, rng: &mut ChaCha8Rng) {
    for column in 0..width {
        let entry = centroids[donor * width + column];
        if rule == Empties::Paper {
            centroids[empty * width + column] = entry * (1.0 + PUSH * (2.0 * rng.random::<f32>() - 1.0));
            continue;
        }
        let push = if column % 2 == 0 { PUSH } else { -PUSH };
        centroids[empty * width + column] = entry * (1.0 + push);
        centroids[donor * width + column] = entry * (1.0 - push);
    }
}

/// The donor that faiss takes: the first of all clusters in turn, over and over, whose share of the points beats a number drawn
/// for it.
fn faiss_donor(sizes: &[f32], others: f32, twister: &mut Mt) -> Option<usize> {
    if sizes.iter().all(|&size| size <= 1.0) {
        return None;
    }
    (0..sizes.len()).cycle().find(|&cluster| {
        let odds = (f64::from(sizes[cluster]) - 1.0) / f64::from(others);
        (twister.next_u32() as f32 / u32::MAX as f32) < odds as f32
    })
}

/// A cluster of two points or more, whatever its size; none if there is none.
fn any_donor(sizes: &[u64], rng: &mut ChaCha8Rng) -> Option<usize> {
    let donors: Vec<usize> = (0..sizes.len()).filter(|&cluster| sizes[cluster] > 1).collect();
    (!donors.is_empty()).then(|| donors[rng.random_range(0..donors.len())])
}

/// What the rule does after the last assignment.
pub(super) fn settle(
    points: &Points,
    partition: &mut Partition,
    options: &Options,
    rng: &mut ChaCha8Rng,
) -> Result<()> {
    match options.empties {
        Empties::Faiss => Ok(()),
        Empties::Split => split(points, partition, rng),
        Empties::Paper => divide(points, partition, rng),
        Empties::Odc => dissolve(points, partition, options, rng),
    }
}

/// By the rule `paper`: the points of a donor go to the nearer of its centroid and a copy a little off.
///
/// A copy may lie on the far side of all points: another is tried, and a cluster that has none after some tries stays empty.
fn divide(points: &Points, partition: &mut Partition, rng: &mut ChaCha8Rng) -> Result<()> {
    for empty in empty_clusters(&partition.sizes) {
        for _ in 0..TRIES {
            let Some(donor) = any_donor(&partition.sizes, rng) else { return Ok(()) };
            let rows = members(&partition.assignment, donor);
            let width = points.width();
            let own = partition.centroids.f_select(0, donor as i64)?.f_to_device(Device::Cpu)?;
            let mut pair = Vec::<f32>::try_from(own)?;
            pair.resize(2 * width, 0.0);
            push_apart(&mut pair, width, 0, 1, Empties::Paper, rng);
            let pair = Tensor::f_from_slice(&pair)?.f_view([2, -1])?.f_to_device(points.device())?;
            let (side, distances) = products::nearest(&points.gather(&rows)?, &pair)?;
            let (side, distances) =
                (products::host_labels(&side)?, Vec::<f32>::try_from(distances.to_device(Device::Cpu))?);
            let moved = side.iter().filter(|&&side| side == 1).count();
            if moved == 0 || moved == rows.len() {
                continue;
            }
            partition.centroids.f_select(0, empty as i64)?.f_copy_(&pair.f_select(0, 1)?)?;
            for ((&row, side), distance) in rows.iter().zip(side).zip(distances) {
                let cluster = if side == 1 { empty } else { donor };
                partition.assignment[row as usize] = cluster as u32;
                partition.distances[row as usize] = distance;
            }
            partition.sizes[empty] = moved as u64;
            partition.sizes[donor] -= moved as u64;
            break;
        }
    }
    Ok(())
}

/// By the rule `odc`: every cluster of fewer than `small` points gives them to the nearest that is not small, and takes a part of
/// the largest instead.
fn dissolve(points: &Points, partition: &mut Partition, options: &Options, rng: &mut ChaCha8Rng) -> Result<()> {
    let is_small: Vec<bool> = partition.sizes.iter().map(|&size| size < options.small as u64).collect();
    let kept: Vec<i64> =
        (0..is_small.len()).filter(|&cluster| !is_small[cluster]).map(|cluster| cluster as i64).collect();
    if kept.is_empty() || kept.len() == is_small.len() {
        return Ok(());
    }
    let rows: Vec<i64> = (0_i64..)
        .zip(&partition.assignment)
        .filter(|(_, label)| is_small[**label as usize])
        .map(|(row, _)| row)
        .collect();
    if !rows.is_empty() {
        let large = gather(&partition.centroids, &kept)?;
        let (labels, distances) = products::nearest(&points.gather(&rows)?, &large)?;
        let distances = Vec::<f32>::try_from(distances.f_to_device(Device::Cpu)?)?;
        for ((&row, label), distance) in rows.iter().zip(products::host_labels(&labels)?).zip(distances) {
            partition.assignment[row as usize] = kept[label as usize] as u32;
            partition.distances[row as usize] = distance;
        }
    }
    partition.sizes = super::count_labels(&partition.assignment, options.k);
    for freed in (0..is_small.len()).filter(|&cluster| is_small[cluster]) {
        let largest = (0..options.k).max_by_key(|&cluster| partition.sizes[cluster]).unwrap_or(0);
        let donated = Members::gather(points, members(&partition.assignment, largest))?;
        let Some(goes) = donated.two_means(points, rng)?.or_else(|| donated.halves(rng)) else { break };
        for (cluster, side) in [(freed, true), (largest, false)] {
            donated.settle(cluster, &goes, side, partition)?;
        }
    }
    Ok(())
}

fn empty_clusters(sizes: &[u64]) -> Vec<usize> {
    (0..sizes.len()).filter(|&cluster| sizes[cluster] == 0).collect()
}

/// The rows of a cluster.
fn members(assignment: &[u32], cluster: usize) -> Vec<i64> {
    (0_i64..).zip(assignment).filter(|(_, label)| **label as usize == cluster).map(|(row, _)| row).collect()
}

/// Gives every empty cluster of the final partition a part of a donor's points.
///
/// Clusters stay empty only if all others hold a single point, or copies of one.
fn split(points: &Points, partition: &mut Partition, rng: &mut ChaCha8Rng) -> Result<()> {
    let empties = empty_clusters(&partition.sizes);
    if empties.is_empty() {
        return Ok(());
    }
    let mut members = vec![Vec::new(); partition.sizes.len()];
    for (row, &cluster) in partition.assignment.iter().enumerate() {
        members[cluster as usize].push(row as i64);
    }
    // Sizes as far as drawing is concerned: 0 for a donor that has proved to hold copies of one point.
    let mut drawable = partition.sizes.clone();
    for empty in empties {
        while let Some(donor) = draw_donor(&drawable, rng) {
            let donated = Members::gather(points, std::mem::take(&mut members[donor]))?;
            let Some(goes) = bisect(&donated.points()) else {
                members[donor] = donated.rows;
                drawable[donor] = 0;
                continue;
            };
            for (cluster, side) in [(empty, true), (donor, false)] {
                members[cluster] = donated.settle(cluster, &goes, side, partition)?;
                drawable[cluster] = members[cluster].len() as u64;
            }
            break;
        }
    }
    Ok(())
}

/// The points of one cluster, on the host.
struct Members {
    rows: Vec<i64>,
    entries: Vec<f32>,
    width: usize,
}

impl Members {
    fn gather(points: &Points, rows: Vec<i64>) -> Result<Self> {
        let entries = Vec::try_from(points.gather(&rows)?.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
        Ok(Self { rows, entries, width: points.width() })
    }

    fn points(&self) -> Vec<&[f32]> {
        self.entries.chunks_exact(self.width).collect()
    }

    /// Which of them go to a new cluster by 2-means; none if all would.
    fn two_means(&self, points: &Points, rng: &mut ChaCha8Rng) -> Result<Option<Vec<bool>>> {
        if self.rows.len() < 2 {
            return Ok(None);
        }
        let seed = rng.random();
        let options = Options { k: 2, iterations: ODC_ITERATIONS, seed, empties: Empties::Faiss, ..Options::default() };
        let mut start_rng = ChaCha8Rng::seed_from_u64(seed);
        let chosen = Points::alone(&points.gather(&self.rows)?)?;
        let start = super::seeding::random_points(&chosen, 2, &mut start_rng)?;
        let found = super::iterate(&chosen, start, &options, &mut start_rng, &mut |_| {})?;
        let goes: Vec<bool> = found.assignment.iter().map(|&label| label == 1).collect();
        Ok((goes.contains(&true) && goes.contains(&false)).then_some(goes))
    }

    /// Half of them, drawn at random; none of a single one.
    fn halves(&self, rng: &mut ChaCha8Rng) -> Option<Vec<bool>> {
        let mut goes = vec![false; self.rows.len()];
        for row in rand::seq::index::sample(rng, goes.len(), goes.len() / 2) {
            goes[row] = true;
        }
        goes.contains(&true).then_some(goes)
    }

    /// Makes the points with `goes[i] == side` the cluster `cluster` of the partition; gives their rows.
    fn settle(&self, cluster: usize, goes: &[bool], side: bool, partition: &mut Partition) -> Result<Vec<i64>> {
        let mut rows = Vec::new();
        let mut points = Vec::new();
        for (index, point) in self.points().into_iter().enumerate() {
            if goes[index] == side {
                rows.push(self.rows[index]);
                points.push(point);
            }
        }
        let mean = mean(&points);
        for (&row, point) in rows.iter().zip(&points) {
            partition.assignment[row as usize] = cluster as u32;
            partition.distances[row as usize] = squared_distance(point, &mean) as f32;
        }
        partition.sizes[cluster] = rows.len() as u64;
        let centroid = Tensor::f_from_slice(&mean)?;
        partition.centroids.f_select(0, cluster as i64)?.f_copy_(&centroid)?;
        Ok(rows)
    }
}

/// A cluster drawn in proportion to its size less one; none if none has two points.
fn draw_donor(sizes: &[u64], rng: &mut ChaCha8Rng) -> Option<usize> {
    let total: u64 = sizes.iter().map(|size| size.saturating_sub(1)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = rng.random_range(0..total);
    for (cluster, size) in sizes.iter().enumerate() {
        let share = size.saturating_sub(1);
        if ticket < share {
            return Some(cluster);
        }
        ticket -= share;
    }
    None
}

/// Which of the points go to a new cluster: those nearer to the point that is farthest from the mean than to the mean.
///
/// That point goes and at least one stays, since not all points can lie on one side of their mean. None if all are the same.
fn bisect(points: &[&[f32]]) -> Option<Vec<bool>> {
    if points.iter().all(|point| point == &points[0]) {
        return None;
    }
    let mean = mean(points);
    let from_mean: Vec<f64> = points.iter().map(|point| squared_distance(point, &mean)).collect();
    let (mut farthest, mut closest) = (0, 0);
    for (index, &distance) in from_mean.iter().enumerate() {
        if distance > from_mean[farthest] {
            farthest = index;
        }
        if distance < from_mean[closest] {
            closest = index;
        }
    }
    if farthest == closest {
        // All are equally far from their mean, as two points always are.
        farthest = points.iter().position(|point| point != &points[0])?;
    }
    let pole: Vec<f64> = points[farthest].iter().map(|&entry| f64::from(entry)).collect();
    let nearer_to_pole = |index: usize| squared_distance(points[index], &pole) < from_mean[index];
    Some((0..points.len()).map(|index| index == farthest || (index != closest && nearer_to_pole(index))).collect())
}

fn mean(points: &[&[f32]]) -> Vec<f64> {
    let mut sum = vec![0.0; points.first().map_or(0, |point| point.len())];
    for point in points {
        for (sum, &entry) in sum.iter_mut().zip(*point) {
            *sum += f64::from(entry);
        }
    }
    sum.iter_mut().for_each(|sum| *sum /= points.len() as f64);
    sum
}

fn squared_distance(point: &[f32], to: &[f64]) -> f64 {
    point.iter().zip(to).map(|(&entry, to)| (f64::from(entry) - to).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn donors_are_drawn_by_size_less_one_and_pushed_apart() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut drawn = [0; 4];
        for _ in 0..4_000 {
            drawn[draw_donor(&[1, 31, 0, 11], &mut rng).expect("two clusters have points to give")] += 1;
        }
        // 30 to 10: three quarters of 4,000, with a deviation of 27.
        assert!(drawn[0] == 0 && drawn[2] == 0 && (2_860..3_140).contains(&drawn[1]), "{drawn:?}");
        assert_eq!(draw_donor(&[1, 1, 0], &mut rng), None);

        let mut centroids = [2.0_f32, -4.0, 8.0, 9.0, 9.0, 9.0];
        assert!(repair(&mut centroids, 3, &[7, 0], Empties::Split, &mut rng), "the second cluster is empty");
        let (up, down) = (1.0 + 1.0 / 1024.0, 1.0 - 1.0 / 1024.0);
        assert_eq!(centroids, [2.0 * down, -4.0 * up, 8.0 * down, 2.0 * up, -4.0 * down, 8.0 * up]);
        assert!(!repair(&mut centroids, 3, &[4, 3], Empties::Split, &mut rng));
    }

    #[test]
    fn the_rule_of_faiss_takes_the_donors_that_its_numbers_give() {
        // std::mt19937(1234), over 2^32 - 1, gives 0.19152, 0.49766, 0.62211. Of ten points in four clusters the odds are 3/6, 5/6,
        // 0, 0: the first number takes cluster 0, of which two points are left. Then 0.49766 is more than its 1/6, and 0.62211
        // takes cluster 1.
        let mut centroids = [1.0, 2.0, 0.0, 0.0];
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        assert!(repair(&mut centroids, 1, &[4, 6, 0, 0], Empties::Faiss, &mut rng));
        let (up, down) = (1.0 + PUSH, 1.0 - PUSH);
        assert_eq!(centroids, [down, 2.0 * down, up, 2.0 * up]);
        assert_eq!(faiss_donor(&[1.0, 1.0, 0.0], -1.0, &mut Mt::new(FAISS_SEED)), None);
    }

    #[test]
    fn any_cluster_of_two_donates_by_the_rule_of_the_paper_and_its_points_go_to_the_nearer() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut drawn = [0; 4];
        for _ in 0..3_000 {
            drawn[any_donor(&[1, 1_000, 0, 2], &mut rng).expect("two donors")] += 1;
        }
        assert!(drawn[0] == 0 && drawn[2] == 0 && (1_380..1_620).contains(&drawn[1]), "{drawn:?}");

        let points = crate::cluster::samples::normal(3, 200, 4);
        let means = products::means_by_label(&points, &Tensor::zeros([200], (Kind::Int64, Device::Cpu)), 3)?.0;
        let mut partition = partition(&points, vec![0; 200], &means)?;
        let options = Options { k: 3, empties: Empties::Paper, ..Options::default() };
        settle(&Points::alone(&points)?, &mut partition, &options, &mut rng)?;
        assert!(partition.sizes.iter().all(|&size| size > 0), "{:?}", partition.sizes);
        check(&points, &partition)?;
        Ok(())
    }

    #[test]
    fn the_rule_odc_leaves_no_small_cluster_where_there_are_points_enough() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let points = crate::cluster::samples::normal(4, 300, 4);
        // Three small clusters, one of them empty, beside two large ones.
        let labels: Vec<u32> = (0..300).map(|row| if row < 7 { row % 2 } else { 3 + row % 2 }).collect();
        let tensor = Tensor::from_slice(&labels.iter().map(|&label| i64::from(label)).collect::<Vec<_>>());
        let means = products::means_by_label(&points, &tensor, 5)?.0;
        let mut partition = partition(&points, labels, &means)?;
        let options = Options { k: 5, empties: Empties::Odc, small: 20, ..Options::default() };
        settle(&Points::alone(&points)?, &mut partition, &options, &mut rng)?;
        assert!(partition.sizes.iter().all(|&size| size >= 20), "{:?}", partition.sizes);
        check(&points, &partition)?;
        Ok(())
    }

    fn partition(points: &Tensor, assignment: Vec<u32>, centroids: &Tensor) -> Result<Partition> {
        let own = gather(centroids, &assignment.iter().map(|&label| i64::from(label)).collect::<Vec<_>>())?;
        let distances = (points - own).square().sum_dim_intlist(1, false, Kind::Float);
        let sizes = super::super::count_labels(&assignment, centroids.size()[0] as usize);
        let distances = Vec::<f32>::try_from(distances)?;
        Ok(Partition { centroids: centroids.copy(), assignment, distances, sizes, objectives: Vec::new() })
    }

    /// Sizes and distances are those of the assignment.
    fn check(points: &Tensor, found: &Partition) -> Result<()> {
        let same = partition(points, found.assignment.clone(), &found.centroids)?;
        assert_eq!(same.sizes, found.sizes);
        assert!(same.distances.iter().zip(&found.distances).all(|(left, right)| (left - right).abs() < 1e-5));
        Ok(())
    }

    #[test]
    fn bisecting_leaves_both_sides_a_point() {
        let cases: [&[&[f32]]; 4] = [
            &[&[0.0], &[1.0]],
            &[&[5.0, 5.0], &[5.0, 5.0], &[5.0, 5.000_000_5]],
            &[&[1.0, 0.0], &[-1.0, 0.0], &[0.0, 1.0], &[0.0, -1.0]],
            &[&[0.0], &[0.0], &[0.0], &[100.0], &[99.0]],
        ];
        for points in cases {
            let goes = bisect(points).expect("distinct points");
            assert!(goes.contains(&true) && goes.contains(&false), "{points:?}: {goes:?}");
        }
        assert_eq!(bisect(cases[3]), Some(vec![false, false, false, true, true]));
        assert_eq!(bisect(&[&[3.0], &[3.0]]), None);
    }
}
