//! Where k-means starts: random points, as the paper, or points that lie apart.
//!
//! k-means++ (Arthur and Vassilvitskii, SODA 2007) draws each further centroid among the points in proportion to the squared
//! distance to the nearest one drawn so far. That is a pass over the points for every centroid; where it would be too many, its
//! parallel form is taken (k-means||, Bahmani et al., VLDB 2012): a few rounds each draw `k / 2` points at once by the same rule,
//! and k-means++ chooses among those, each counting for as many points as it is the nearest to.

use super::engine;
use crate::cluster::Points;
use crate::error::Result;
use crate::torch::rows::squared_distance;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{Device, Tensor};

/// How the first centroids are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seeding {
    /// Among all points alike.
    Random,
    /// By k-means++, or its parallel form where that is too slow.
    PlusPlus,
}

/// Distances up to which k-means++ itself is run.
const MOST_DISTANCES: usize = 1 << 26;
/// Rounds of its parallel form: the paper finds five to be enough.
const ROUNDS: usize = 5;

/// `k` points `[k, d]`, none drawn twice.
pub(in crate::cluster) fn random_points(points: &Points, k: usize, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    pick(points, &rand::seq::index::sample(rng, points.count(), k).into_vec())
}

/// `k` points `[k, d]` that lie apart, of `points` `[N, d]` of f32.
pub(super) fn spread_points(points: &Points, k: usize, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let count = points.count();
    if count.saturating_mul(k) <= MOST_DISTANCES {
        let chosen = plus_plus(&points.whole()?, &vec![1.0; count], k, rng)?;
        return pick(points, &chosen);
    }
    let (candidates, weights) = candidates(points, k, rng)?;
    let chosen = plus_plus(&pick(points, &candidates)?, &weights, k, rng)?;
    let chosen: Vec<usize> = chosen.into_iter().map(|at| candidates[at]).collect();
    pick(points, &chosen)
}

/// Rows of at least `k` different points, and of how many points each is the nearest.
fn candidates(points: &Points, k: usize, rng: &mut ChaCha8Rng) -> Result<(Vec<usize>, Vec<f64>)> {
    let count = points.count();
    let mut rows = vec![rng.random_range(0..count)];
    let mut nearest = vec![0_u32; count];
    let mut distances = vec![f32::INFINITY; count];
    let mut new = 0..1;
    for round in 0.. {
        let start = pick(points, &rows[new.clone()])?;
        let mut engine = engine::choose(points, &start)?;
        engine.assign()?;
        let found = engine.finish()?;
        let (labels, measured) = (points.of_all_labels(found.labels)?, points.of_all_distances(found.distances)?);
        for (at, (&label, &distance)) in labels.iter().zip(&measured).enumerate() {
            if distance < distances[at] {
                (nearest[at], distances[at]) = (new.start as u32 + label, distance);
            }
        }
        for &row in &rows[new.clone()] {
            distances[row] = 0.0; // products round; what is drawn must not be drawn again
        }
        let total: f64 = distances.iter().map(|&distance| f64::from(distance)).sum();
        if (round >= ROUNDS && rows.len() >= k) || total == 0.0 {
            break;
        }
        new = rows.len()..rows.len();
        let share = k.div_ceil(2) as f64 / total;
        for (row, &distance) in distances.iter().enumerate() {
            if rng.random::<f64>() < share * f64::from(distance) {
                rows.push(row);
            }
        }
        new.end = rows.len();
        if new.is_empty() {
            // By bad luck: the farthest is as good as any.
            let farthest = (0..count).max_by(|&left, &right| distances[left].total_cmp(&distances[right]));
            rows.extend(farthest);
            new.end = rows.len();
        }
    }
    let mut weights = vec![0.0; rows.len()];
    for &candidate in &nearest {
        weights[candidate as usize] += 1.0;
    }
    // Fewer different points than clusters: copies have to do.
    let drawn: std::collections::HashSet<usize> = rows.iter().copied().collect();
    let missing = k.saturating_sub(rows.len());
    rows.extend((0..count).filter(|row| !drawn.contains(row)).take(missing));
    weights.resize(rows.len(), 0.0);
    Ok((rows, weights))
}

/// Rows of `k` of `points` `[N, d]`, by k-means++, each point counting `weights[i]` times.
fn plus_plus(points: &Tensor, weights: &[f64], k: usize, rng: &mut ChaCha8Rng) -> Result<Vec<usize>> {
    let width = points.size2()?.1 as usize;
    let entries = Vec::<f32>::try_from(points.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
    let mut chosen = Vec::with_capacity(k);
    let mut drawn = vec![false; weights.len()];
    let mut distances = vec![f32::INFINITY; weights.len()];
    // The first is drawn by weight alone.
    let mut mass = weights.to_vec();
    while chosen.len() < k {
        let row = draw(&mass, rng).or_else(|| drawn.iter().position(|drawn| !drawn)).unwrap_or(0);
        drawn[row] = true;
        chosen.push(row);
        let new = &entries[row * width..][..width];
        (entries.par_chunks_exact(width), &mut distances, &mut mass, weights, &drawn).into_par_iter().for_each(
            |(point, nearest, mass, weight, drawn)| {
                *nearest = nearest.min(squared_distance(point, new));
                *mass = if *drawn { 0.0 } else { weight * f64::from(*nearest) };
            },
        );
    }
    Ok(chosen)
}

/// An index drawn in proportion to `mass`; none if there is no mass.
fn draw(mass: &[f64], rng: &mut ChaCha8Rng) -> Option<usize> {
    let total: f64 = mass.iter().sum();
    if total <= 0.0 {
        return None;
    }
    let mut ticket = rng.random::<f64>() * total;
    for (at, &share) in mass.iter().enumerate() {
        if share > 0.0 && ticket < share {
            return Some(at);
        }
        ticket -= share;
    }
    mass.iter().rposition(|&share| share > 0.0) // rounding has eaten the rest
}

fn pick(points: &Points, rows: &[usize]) -> Result<Tensor> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    points.gather(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;
    use rand::SeedableRng;

    /// Twelve tight groups far apart, 200 points each.
    fn groups() -> Tensor {
        let centers = normal(1, 12, 6) * 100.0;
        centers.repeat([200, 1]) + normal(2, 2_400, 6) * 0.01
    }

    fn groups_hit(rows: impl Iterator<Item = usize>) -> usize {
        rows.map(|row| row % 12).collect::<std::collections::HashSet<_>>().len()
    }

    #[test]
    fn a_start_that_lies_apart_has_a_point_in_every_group_where_a_random_one_has_not() -> Result<()> {
        let points = groups();
        let mut random = 0;
        for seed in 0..20 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            assert_eq!(groups_hit(plus_plus(&points, &[1.0; 2_400], 12, &mut rng)?.into_iter()), 12);
            let (rows, weights) = candidates(&Points::alone(&points)?, 12, &mut rng)?;
            assert!(rows.len() >= 12 && weights.iter().sum::<f64>() == 2_400.0, "{rows:?} {weights:?}");
            assert_eq!(groups_hit(rows.iter().copied()), 12);
            random += groups_hit(rand::seq::index::sample(&mut rng, 2_400, 12).into_iter());
        }
        assert!(random < 200, "random starts of 12 find {} groups", random as f64 / 20.0);
        Ok(())
    }

    #[test]
    fn the_second_centroid_is_drawn_by_squared_distance() -> Result<()> {
        // From 0: the points 1 and 3 have squared distances 1 and 9; from 1: 1 and 4; from 3: 9 and 4.
        let points = Tensor::from_slice(&[0.0_f32, 1.0, 3.0]).view([3, 1]);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut pairs = [[0; 3]; 3];
        for _ in 0..6_000 {
            let chosen = plus_plus(&points, &[1.0; 3], 2, &mut rng)?;
            pairs[chosen[0]][chosen[1]] += 1;
        }
        for (first, second, expected) in [(0, 2, 1_800), (1, 2, 1_600), (2, 0, 1_385), (0, 1, 200)] {
            let found: i32 = pairs[first][second];
            assert!((found - expected).abs() < 150, "{pairs:?}");
        }
        Ok(())
    }

    #[test]
    fn copies_of_one_point_still_give_k_rows() -> Result<()> {
        let points = Tensor::ones([9, 2], (tch::Kind::Float, Device::Cpu));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut chosen = plus_plus(&points, &[1.0; 9], 4, &mut rng)?;
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen.len(), 4);
        let (rows, weights) = candidates(&Points::alone(&points)?, 4, &mut rng)?;
        assert!(rows.len() >= 4 && rows.len() == weights.len());
        Ok(())
    }
}
