//! Empty clusters (paper, section 3.3, "empty clusters"; the rule of the reference implementation).
//!
//! During k-means, an empty cluster takes a copy of a donor's centroid. The donor is drawn in proportion to its size less
//! one, so that a cluster of one point never gives it away; the two centroids are pushed apart by a relative 1/1024 with
//! alternating signs, and the next assignment divides the donor's points. Such a cluster may run empty again, also in the last
//! assignment. [`split`] mends that for good: it divides the donor's own points between two new means, which leaves no
//! cluster empty while any has two distinct points.

use super::kmeans::Partition;
use crate::error::Result;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// Relative distance by which a donor's centroid and its copy are pushed apart.
const PUSH: f32 = 1.0 / 1024.0;

/// Centroids `[k, d]` with those of empty clusters replaced, or none if no cluster is empty.
///
/// `sizes` follow: a donor and its copy have half its points each.
pub(super) fn repair(centroids: &Tensor, sizes: &mut [u64], rng: &mut ChaCha8Rng) -> Result<Option<Tensor>> {
    if sizes.iter().all(|&size| size > 0) {
        return Ok(None);
    }
    let shape = centroids.size2()?;
    let width = shape.1 as usize;
    let mut entries = Vec::<f32>::try_from(centroids.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
    for empty in 0..sizes.len() {
        if sizes[empty] > 0 {
            continue;
        }
        let Some(donor) = draw_donor(sizes, rng) else { break };
        for column in 0..width {
            let push = if column % 2 == 0 { PUSH } else { -PUSH };
            let entry = entries[donor * width + column];
            entries[empty * width + column] = entry * (1.0 + push);
            entries[donor * width + column] = entry * (1.0 - push);
        }
        sizes[empty] = sizes[donor] / 2;
        sizes[donor] -= sizes[empty];
    }
    Ok(Some(Tensor::f_from_slice(&entries)?.f_view(shape)?.f_to_device(centroids.device())?))
}

/// Gives every empty cluster of the final partition a part of a donor's points.
///
/// Clusters stay empty only if all others hold a single point, or copies of one.
pub(super) fn split(points: &Tensor, partition: &mut Partition, rng: &mut ChaCha8Rng) -> Result<()> {
    let empties: Vec<usize> = (0..partition.sizes.len()).filter(|&cluster| partition.sizes[cluster] == 0).collect();
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
    fn gather(points: &Tensor, rows: Vec<i64>) -> Result<Self> {
        let width = points.size2()?.1 as usize;
        let chosen = points.f_index_select(0, &Tensor::f_from_slice(&rows)?.f_to_device(points.device())?)?;
        let entries = Vec::<f32>::try_from(chosen.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape([-1])?)?;
        Ok(Self { rows, entries, width })
    }

    fn points(&self) -> Vec<&[f32]> {
        self.entries.chunks_exact(self.width).collect()
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
    use rand::SeedableRng;

    #[test]
    fn donors_are_drawn_by_size_less_one_and_pushed_apart() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut drawn = [0; 4];
        for _ in 0..4_000 {
            drawn[draw_donor(&[1, 31, 0, 11], &mut rng).expect("two clusters have points to give")] += 1;
        }
        // 30 to 10: three quarters of 4,000, with a deviation of 27.
        assert!(drawn[0] == 0 && drawn[2] == 0 && (2_860..3_140).contains(&drawn[1]), "{drawn:?}");
        assert_eq!(draw_donor(&[1, 1, 0], &mut rng), None);

        let centroids = Tensor::from_slice(&[2.0_f32, -4.0, 8.0, 9.0, 9.0, 9.0]).view([2, 3]);
        let mut sizes = [7, 0];
        let repaired = repair(&centroids, &mut sizes, &mut rng)?.expect("the second cluster is empty");
        let (up, down) = (1.0 + 1.0 / 1024.0, 1.0 - 1.0 / 1024.0);
        let expected = [2.0 * down, -4.0 * up, 8.0 * down, 2.0 * up, -4.0 * down, 8.0 * up];
        assert_eq!(Vec::<f32>::try_from(repaired.view([-1]))?, expected);
        assert_eq!(sizes, [4, 3]);
        assert!(repair(&repaired, &mut sizes, &mut rng)?.is_none());
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
