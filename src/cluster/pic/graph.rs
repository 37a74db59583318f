//! The graph of nearest neighbours: found by blocked matrix products, walked as sparse rows.

use crate::cluster::blocks::{block, gather};
use crate::cluster::kmeans::host_labels;
use crate::error::Result;
use crate::torch::floats;
use crate::torch::rows::squared_distance;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// Points that are compared with others at once, and how many others: 16 MiB of products on a host.
const HOST_BLOCKS: (i64, i64) = (1_024, 4_096);
/// The same on a GPU.
const DEVICE_BLOCKS: (i64, i64) = (4_096, 16_384);

/// The nearest others of each point, nearest first, and the squared distances to them.
pub(super) struct Neighbours {
    each: usize,
    others: Vec<u32>,
    squares: Vec<f32>,
}

impl Neighbours {
    /// The `each` nearest others of each of `points` `[N, d]`, f32; of equally near ones the lower numbers.
    pub(super) fn find(points: &Tensor, each: usize, tell: &mut dyn FnMut(f64)) -> Result<Self> {
        let count = points.size2()?.0;
        let device = points.device();
        let (rows, columns) = if device == Device::Cpu { HOST_BLOCKS } else { DEVICE_BLOCKS };
        // The nearest of x has the largest x·y - |y|²/2.
        let offsets = points.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?.f_mul_scalar(-0.5)?;
        let mut nearest = Nearest::default();
        for start in (0..count).step_by(rows as usize) {
            let queries = block(points, (start, rows.min(count - start)), device, Kind::Float)?;
            let mut found = vec![Vec::with_capacity(each + 1); queries.size2()?.0 as usize];
            for first in (0..count).step_by(columns as usize) {
                let len = columns.min(count - first);
                let others = points.f_narrow(0, first, len)?;
                let scores = offsets.f_narrow(0, first, len)?.f_addmm(&queries, &others.f_tr()?)?;
                keep_best(&mut found, &scores, first, start, each)?;
            }
            nearest.measure(points, start, &found)?;
            tell((start + rows).min(count) as f64 / count as f64);
        }
        Ok(Self { each, others: nearest.others, squares: nearest.squares })
    }

    /// The nearest others of a point.
    pub(super) fn of(&self, point: usize) -> &[u32] {
        &self.others[point * self.each..][..self.each]
    }

    fn squares(&self, point: usize) -> &[f32] {
        &self.squares[point * self.each..][..self.each]
    }
}

/// Keeps for each row of `scores` `[B, C]` the `each` best so far, of points `first ..`, leaving out the row's own point.
fn keep_best(found: &mut [Vec<(f32, u32)>], scores: &Tensor, first: i64, start: i64, each: usize) -> Result<()> {
    let width = scores.size2()?.1;
    if let Some(scores) = floats(scores) {
        found.par_iter_mut().zip(scores.par_chunks_exact(width as usize)).enumerate().for_each(
            |(row, (best, scores))| {
                let own = start + row as i64;
                for (at, &score) in scores.iter().enumerate() {
                    if best.len() < each || score > best[each - 1].0 {
                        insert(best, (score, (first + at as i64) as u32), own, each);
                    }
                }
            },
        );
        return Ok(());
    }
    // Elsewhere only the best leave the device; one more than needed, for the point itself.
    let (best, places) = scores.f_topk((each as i64 + 1).min(width), 1, true, true)?;
    let taken = best.size2()?.1 as usize;
    let best = Vec::<f32>::try_from(best.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
    let places = host_labels(&places.f_reshape([-1])?)?;
    let rows = best.chunks_exact(taken).zip(places.chunks_exact(taken));
    for (row, (found, (scores, places))) in found.iter_mut().zip(rows).enumerate() {
        for (&score, &place) in scores.iter().zip(places) {
            insert(found, (score, first as u32 + place), start + row as i64, each);
        }
    }
    Ok(())
}

/// Puts a candidate into its place among the `each` best.
fn insert(best: &mut Vec<(f32, u32)>, candidate: (f32, u32), own: i64, each: usize) {
    if i64::from(candidate.1) == own {
        return;
    }
    let place = best.partition_point(|other| other.0 >= candidate.0);
    if place < each {
        best.insert(place, candidate);
        best.truncate(each);
    }
}

/// What [`Neighbours::find`] has found so far.
#[derive(Default)]
struct Nearest {
    others: Vec<u32>,
    squares: Vec<f32>,
}

impl Nearest {
    /// Measures the distances anew, from differences: the products cancel where points are close.
    fn measure(&mut self, points: &Tensor, start: i64, found: &[Vec<(f32, u32)>]) -> Result<()> {
        let each = found.first().map_or(0, Vec::len);
        let places: Vec<i64> = found.iter().flatten().map(|&(_, other)| i64::from(other)).collect();
        let others = gather(points, &places)?.f_to_device(Device::Cpu)?;
        let own = points.f_narrow(0, start, found.len() as i64)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let (Some(others), Some(own)) = (floats(&others), floats(&own)) else { return Ok(()) };
        let width = own.len() / found.len();
        let rows = found.iter().zip(own.chunks_exact(width)).zip(others.chunks_exact(width * each));
        for ((found, own), others) in rows {
            let squares = others.chunks_exact(width).map(|other| squared_distance(own, other));
            let mut row: Vec<(f32, u32)> = squares.zip(found).map(|(square, &(_, other))| (square, other)).collect();
            row.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
            self.squares.extend(row.iter().map(|&(square, _)| square));
            self.others.extend(row.iter().map(|&(_, other)| other));
        }
        Ok(())
    }
}

/// `W = A + Aᵀ` by rows, with what stands in each in ascending order of the column.
pub(super) struct Graph {
    starts: Vec<usize>,
    columns: Vec<u32>,
    weights: Vec<f64>,
}

impl Graph {
    /// `a = exp(-|x - y|² / σ²)` for each neighbour.
    pub(super) fn new(neighbours: &Neighbours, sigma: f64) -> Self {
        let count = neighbours.others.len() / neighbours.each;
        let mut edges: Vec<(u32, u32, f64)> = Vec::with_capacity(2 * neighbours.others.len());
        for point in 0..count {
            for (&other, &square) in neighbours.of(point).iter().zip(neighbours.squares(point)) {
                let weight = (-f64::from(square) / (sigma * sigma)).exp();
                edges.push((point as u32, other, weight));
                edges.push((other, point as u32, weight));
            }
        }
        edges.par_sort_by_key(|&(row, column, _)| (row, column));
        let mut graph = Self { starts: vec![0], columns: Vec::new(), weights: Vec::new() };
        for edges in edges.chunk_by(|left, right| left.0 == right.0) {
            for same in edges.chunk_by(|left, right| left.1 == right.1) {
                graph.columns.push(same[0].1);
                graph.weights.push(same.iter().map(|edge| edge.2).sum());
            }
            graph.starts.push(graph.columns.len());
        }
        graph
    }

    /// The neighbours of a point on either side, and the weights to them.
    fn edges(&self, point: usize) -> impl Iterator<Item = (usize, f64)> {
        let range = self.starts[point]..self.starts[point + 1];
        let columns = self.columns[range.clone()].iter().map(|&column| column as usize);
        columns.zip(self.weights[range].iter().copied())
    }

    /// `v`, after so many steps `v <- α W v + (1 - α) / N`, each scaled to sum 1.
    pub(super) fn spread(&self, alpha: f64, iterations: usize) -> Vec<f64> {
        let count = self.starts.len() - 1;
        let uniform = 1.0 / count as f64;
        let mut mass = vec![uniform; count];
        for _ in 0..iterations {
            let mut next: Vec<f64> = (0..count)
                .into_par_iter()
                .map(|point| {
                    let gathered: f64 = self.edges(point).map(|(other, weight)| weight * mass[other]).sum();
                    alpha * gathered + (1.0 - alpha) * uniform
                })
                .collect();
            let sum: f64 = next.iter().sum();
            next.iter_mut().for_each(|entry| *entry /= sum);
            mass = next;
        }
        mass
    }

    /// For each point the neighbour with the largest `w (v' - v)` above 0, or the point itself.
    pub(super) fn look_up(&self, mass: &[f64]) -> Vec<u32> {
        let above = |point: usize| {
            let mut best = (0.0, point);
            for (other, weight) in self.edges(point) {
                let pull = weight * (mass[other] - mass[point]);
                if pull > best.0 {
                    best = (pull, other);
                }
            }
            best.1 as u32
        };
        (0..mass.len()).into_par_iter().map(above).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;

    #[test]
    fn neighbours_over_several_blocks_are_those_of_a_full_sort() -> Result<()> {
        let points = normal(1, 5_000, 3);
        let mut shares = Vec::new();
        let found = Neighbours::find(&points, 4, &mut |share| shares.push(share))?;
        assert!(shares.len() == 5 && shares.is_sorted() && shares[4] == 1.0, "{shares:?}");
        let entries = floats(&points).expect("floats");
        for point in (0..5_000).step_by(97) {
            let own = &entries[point * 3..][..3];
            let mut all: Vec<(f32, u32)> = (0_u32..)
                .zip(entries.chunks_exact(3))
                .filter(|(other, _)| *other as usize != point)
                .map(|(other, place)| (squared_distance(own, place), other))
                .collect();
            all.sort_by(|left, right| left.0.total_cmp(&right.0));
            let expected: Vec<u32> = all[..4].iter().map(|&(_, other)| other).collect();
            assert_eq!(found.of(point), expected);
        }
        Ok(())
    }

    #[test]
    fn copies_of_one_point_are_neighbours_and_no_point_is_its_own() -> Result<()> {
        let points = Tensor::ones([9, 2], (Kind::Float, Device::Cpu));
        let found = Neighbours::find(&points, 3, &mut |_| {})?;
        for point in 0..9 {
            assert!(found.of(point).iter().all(|&other| other as usize != point));
            assert_eq!(found.squares(point), [0.0; 3]);
        }
        Ok(())
    }

    #[test]
    fn weights_are_symmetric_and_mutual_edges_count_twice() -> Result<()> {
        // On a line at 0, 1, 3: 0 and 1 are each other's, 3 is joined to 1.
        let points = Tensor::from_slice(&[0.0_f32, 1.0, 3.0]).view([3, 1]);
        let graph = Graph::new(&Neighbours::find(&points, 1, &mut |_| {})?, 2.0);
        let row = |point| graph.edges(point).collect::<Vec<_>>();
        let (near, far) = ((-0.25_f64).exp(), (-1.0_f64).exp());
        assert_eq!(row(0), [(1, 2.0 * near)]);
        assert_eq!(row(1), [(0, 2.0 * near), (2, far)]);
        assert_eq!(row(2), [(1, far)]);
        Ok(())
    }
}
