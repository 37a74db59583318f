//! Sums of the points of each cluster, in whole numbers: the same whatever the order, and exact when points come and go.
//!
//! An entry counts in 2^-30 of the largest (a float of that size is no finer than 2^-24), a sum has 64 bits: room for 2^33
//! points.

use crate::error::Result;
use crate::torch::c10d::Reduction;
use crate::torch::rows::accumulate;
use crate::world::World;
use rayon::prelude::*;
use tch::Tensor;

/// A point that changed its cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) point: u32,
    /// None at first.
    pub(super) from: Option<u32>,
    pub(super) to: u32,
}

/// Sums and counts of `k` clusters.
pub(super) struct Sums {
    width: usize,
    /// A power of two.
    scale: f32,
    sums: Vec<i64>,
    counts: Vec<u64>,
}

impl Sums {
    /// No points yet, of which no entry is larger than `largest`, either way.
    pub(super) fn new(k: usize, width: usize, largest: f32) -> Self {
        let exponent = if largest > 0.0 { 30 - largest.log2().ceil() as i32 } else { 0 };
        let scale = 2.0_f32.powi(exponent.clamp(-120, 120));
        Self { width, scale, sums: vec![0; k * width], counts: vec![0; k] }
    }

    /// Points of each cluster.
    pub(super) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Moves `points` `[N, width]` between clusters; gives the clusters that are other ones now, ascending.
    pub(super) fn apply(&mut self, points: &[f32], changes: &[Change]) -> Vec<u32> {
        let mut moves: Vec<(u32, u32, bool)> = Vec::with_capacity(changes.len() * 2);
        for change in changes {
            moves.push((change.to, change.point, true));
            if let Some(from) = change.from {
                moves.push((from, change.point, false));
            }
        }
        moves.par_sort_unstable();
        let mut rest = (self.sums.as_mut_slice(), self.counts.as_mut_slice(), 0);
        let mut tasks = Vec::new();
        for run in moves.chunk_by(|left, right| left.0 == right.0) {
            let cluster = run[0].0 as usize;
            let skipped = cluster - rest.2;
            let (sum, sums) = rest.0[skipped * self.width..].split_at_mut(self.width);
            let (count, counts) = rest.1[skipped..].split_at_mut(1);
            tasks.push((run, sum, &mut count[0]));
            rest = (sums, counts, cluster + 1);
        }
        let (width, scale) = (self.width, self.scale);
        tasks
            .into_par_iter()
            .map(|(run, sum, count)| {
                for &(_, point, comes) in run {
                    let scale = if comes { scale } else { -scale };
                    accumulate(sum, &points[point as usize * width..][..width], scale);
                    *count = if comes { *count + 1 } else { *count - 1 };
                }
                run[0].0
            })
            .collect()
    }

    /// Becomes the sums of all ranks, of which `own` are this one's, of the same scale.
    pub(super) fn total(&mut self, own: &Self, world: &World) -> Result<()> {
        let counts: Vec<i64> = own.counts.iter().map(|&count| count as i64).collect();
        let all = Tensor::f_cat(&[Tensor::f_from_slice(&own.sums)?, Tensor::f_from_slice(&counts)?], 0)?;
        world.reduce(&all, Reduction::Sum)?;
        let (sums, counts) =
            (all.f_narrow(0, 0, own.sums.len() as i64)?, all.f_narrow(0, own.sums.len() as i64, counts.len() as i64)?);
        self.sums = Vec::try_from(sums)?;
        self.counts = Vec::<i64>::try_from(counts)?.into_iter().map(|count| count as u64).collect();
        Ok(())
    }

    /// The mean of a cluster; `into` stays as it is where it has no points.
    pub(super) fn mean(&self, cluster: usize, into: &mut [f32]) {
        let count = self.counts[cluster];
        if count == 0 {
            return;
        }
        let divisor = count as f64 * f64::from(self.scale);
        for (entry, &sum) in into.iter_mut().zip(&self.sums[cluster * self.width..]) {
            *entry = (sum as f64 / divisor) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_that_come_and_go_leave_the_very_sums_of_those_that_stay() {
        let points: Vec<f32> = (0..60).map(|at| (at as f32 * 0.37).sin() * 3.0).collect();
        let all = |to: fn(u32) -> u32| (0..20).map(move |point| Change { point, from: None, to: to(point) });
        let mut moved = Sums::new(4, 3, 3.0);
        moved.apply(&points, &all(|point| point % 3).collect::<Vec<_>>());
        let changes =
            [(2, 2, 3), (5, 2, 0), (17, 2, 3)].map(|(point, from, to)| Change { point, from: Some(from), to });
        assert_eq!(moved.apply(&points, &changes), [0, 2, 3]);

        let mut direct = Sums::new(4, 3, 3.0);
        let mut later: Vec<Change> = all(|point| match point {
            2 | 17 => 3,
            5 => 0,
            _ => point % 3,
        })
        .collect();
        later.reverse();
        direct.apply(&points, &later);
        assert_eq!((&moved.sums, moved.counts()), (&direct.sums, direct.counts()));
        assert_eq!(moved.counts(), [8, 7, 3, 2]);

        let mut mean = [9.0; 3];
        moved.mean(3, &mut mean);
        for (column, &found) in mean.iter().enumerate() {
            let exact = (f64::from(points[6 + column]) + f64::from(points[51 + column])) / 2.0;
            assert!((f64::from(found) - exact).abs() < 1e-6, "{found} {exact}");
        }
        Sums::new(1, 3, 0.0).mean(0, &mut mean);
        assert!(mean[0] != 9.0, "no points, no mean");
    }
}
