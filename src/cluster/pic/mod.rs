//! Power Iteration Clustering (Lin and Cohen, ICML 2010) as the paper uses it: the alternative to k-means that needs no `k`.
//!
//! In go points `[N, d]`; out come labels, as many as there turn out to be. Each point is joined to its nearest neighbours
//! (`graph.rs`), `W = A + Aᵀ` with `a = exp(-|x - y|² / σ²)`. From `v = 1/N` the step `v <- α W v + (1 - α) / N`, scaled to sum 1, is
//! repeated; it gathers mass where the graph is dense. Then each point looks up to the neighbour with the largest
//! `w (v' - v)`, if that is above 0: these paths climb to a root, and the points below one root are a cluster. Points that are
//! a cluster alone go to that of their nearest neighbour that is not.
//!
//! Memory is `N × neighbours × 24` bytes beside the points, and blocks. The time is that of all pairs of points. What can go
//! wrong: fewer points than neighbours.

mod graph;

use super::kmeans;
use crate::error::{Error, Result};
use graph::{Graph, Neighbours};
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// How to cluster; the defaults are the paper's code's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Neighbours of each point.
    pub neighbours: usize,
    /// Width of the kernel, in units of distance.
    pub sigma: f64,
    /// Share of a step that the graph has; the rest is uniform.
    pub alpha: f64,
    /// Steps.
    pub iterations: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { neighbours: 5, sigma: 0.2, alpha: 0.001, iterations: 200 }
    }
}

/// Divides `points` `[N, d]` of any float kind. Centroids are the means of the clusters; `objectives` is empty.
///
/// `tell` hears of each part of the search for neighbours: the share done.
pub fn cluster(points: &Tensor, options: Options, tell: &mut dyn FnMut(f64)) -> Result<kmeans::Partition> {
    let _no_grad = tch::no_grad_guard();
    let count = points.size2()?.0 as usize;
    if options.neighbours == 0 || options.sigma <= 0.0 {
        return Err(Error::usage("a graph needs one neighbour or more, and a sigma above 0")
            .with_hint("the paper's are cluster.neighbours = 5 and cluster.sigma = 0.2"));
    }
    if count <= options.neighbours {
        return Err(Error::usage(format!(
            "{count} points do not have cluster.neighbours = {} each",
            options.neighbours
        ))
        .with_hint("lower cluster.neighbours, or let the bank fill longer with cluster.every_steps"));
    }
    let points = points.f_to_kind(Kind::Float)?.f_contiguous()?;
    kmeans::check_finite(&points)?;
    let neighbours = Neighbours::find(&points, options.neighbours, tell)?;
    let graph = Graph::new(&neighbours, options.sigma);
    let mass = graph.spread(options.alpha, options.iterations);
    let assignment = adopt_singletons(roots(&graph.look_up(&mass)), &neighbours);

    let labels: Vec<i64> = assignment.iter().map(|&label| i64::from(label)).collect();
    let labels = Tensor::f_from_slice(&labels)?.f_to_device(points.device())?;
    let k = assignment.iter().max().map_or(0, |last| *last as usize + 1);
    let (centroids, sizes) = kmeans::means_by_label(&points, &labels, k)?;
    let distances = kmeans::distances_to_own(&points, &centroids, &labels)?;
    Ok(kmeans::Partition { centroids, assignment, distances, sizes, objectives: Vec::new() })
}

/// The cluster of each point from the point that it looks up to (itself, for a root): numbered in the order of the roots.
fn roots(above: &[u32]) -> Vec<u32> {
    let mut root: Vec<u32> = above.to_vec();
    let mut path = Vec::new();
    for point in 0..root.len() {
        let mut at = point as u32;
        while root[at as usize] != at {
            path.push(at);
            at = root[at as usize];
        }
        path.drain(..).for_each(|passed| root[passed as usize] = at);
    }
    let mut numbers = vec![0; root.len()];
    let mut next = 0;
    for (point, &above) in above.iter().enumerate() {
        if above as usize == point {
            numbers[point] = next;
            next += 1;
        }
    }
    root.iter().map(|&root| numbers[root as usize]).collect()
}

/// Gives points that are a cluster alone to the cluster of their nearest neighbour that is not, and numbers the clusters anew.
fn adopt_singletons(labels: Vec<u32>, neighbours: &Neighbours) -> Vec<u32> {
    let k = labels.iter().max().map_or(0, |last| *last as usize + 1);
    let sizes = kmeans::count_labels(&labels, k);
    let is_alone = |point: usize| sizes[labels[point] as usize] == 1;
    let adopted: Vec<u32> = (0..labels.len())
        .map(|point| {
            let family = neighbours.of(point).iter().find(|&&other| is_alone(point) && !is_alone(other as usize));
            family.map_or(labels[point], |&other| labels[other as usize])
        })
        .collect();
    let mut numbers = vec![u32::MAX; k];
    let mut kept = kmeans::count_labels(&adopted, k).into_iter().enumerate().filter(|(_, size)| *size > 0);
    (0..).zip(&mut kept).for_each(|(number, (label, _))| numbers[label] = number);
    adopted.par_iter().map(|&label| numbers[label as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::agreement::{Contingency, Normalizer};
    use crate::cluster::samples::{normal, unit};

    /// The same in plain loops over a full matrix of floats in double precision, from the steps of the paper's code.
    fn plain(points: &[Vec<f64>], options: Options) -> Vec<u32> {
        let count = points.len();
        let square =
            |a: usize, b: usize| -> f64 { points[a].iter().zip(&points[b]).map(|(a, b)| (a - b).powi(2)).sum() };
        let neighbours: Vec<Vec<usize>> = (0..count)
            .map(|point| {
                let mut others: Vec<usize> = (0..count).filter(|&other| other != point).collect();
                others.sort_by(|&left, &right| square(point, left).total_cmp(&square(point, right)));
                others.truncate(options.neighbours);
                others
            })
            .collect();
        let mut weights = vec![vec![0.0; count]; count];
        for (point, others) in neighbours.iter().enumerate() {
            for &other in others {
                let weight = (-square(point, other) / options.sigma.powi(2)).exp();
                weights[point][other] += weight;
                weights[other][point] += weight;
            }
        }
        let mut mass = vec![1.0 / count as f64; count];
        for _ in 0..options.iterations {
            let spread: Vec<f64> = (0..count)
                .map(|to| {
                    let gathered: f64 = (0..count).map(|from| weights[from][to] * mass[from]).sum();
                    options.alpha * gathered + (1.0 - options.alpha) / count as f64
                })
                .collect();
            let sum: f64 = spread.iter().sum();
            mass = spread.into_iter().map(|entry| entry / sum).collect();
        }
        let above: Vec<usize> = (0..count)
            .map(|point| {
                let mut best = (0.0, point);
                for other in 0..count {
                    let pull = weights[point][other] * (mass[other] - mass[point]);
                    if pull > best.0 {
                        best = (pull, other);
                    }
                }
                best.1
            })
            .collect();
        let climb = |mut point: usize| {
            while above[point] != point {
                point = above[point];
            }
            point
        };
        let top: Vec<usize> = (0..count).map(climb).collect();
        let size = |root: usize| top.iter().filter(|&&other| other == root).count();
        let sizes: Vec<usize> = (0..count).map(|point| size(top[point])).collect();
        let adopted: Vec<usize> = (0..count)
            .map(|point| match neighbours[point].iter().find(|&&other| sizes[point] == 1 && sizes[other] > 1) {
                Some(&other) => top[other],
                None => top[point],
            })
            .collect();
        let mut kept = adopted.clone();
        kept.sort_unstable();
        kept.dedup();
        adopted.iter().map(|root| kept.iter().position(|other| other == root).expect("a cluster") as u32).collect()
    }

    #[test]
    fn labels_are_those_of_plain_loops_in_double_precision() -> Result<()> {
        for (seed, options) in [
            (1, Options::default()),
            (2, Options { neighbours: 3, sigma: 1.0, alpha: 0.2, iterations: 30 }),
            (3, Options { neighbours: 1, sigma: 0.5, alpha: 0.001, iterations: 50 }),
        ] {
            let points = normal(seed, 300, 4) + (normal(seed + 10, 6, 4) * 3.0).repeat([50, 1]);
            let loops = Vec::<Vec<f64>>::try_from(points.to_kind(Kind::Double)).expect("a matrix");
            let found = cluster(&points, options, &mut |_| {})?;
            assert_eq!(found.assignment, plain(&loops, options), "{options:?}");
            assert!(found.sizes.iter().all(|&size| size > 0), "{:?}", found.sizes);
            assert_eq!(found.sizes.len(), found.centroids.size()[0] as usize);
        }
        Ok(())
    }

    /// Two rings, one in the other: no two centroids divide them.
    #[test]
    fn rings_that_k_means_cuts_across_are_kept_whole() -> Result<()> {
        let turn = Tensor::linspace(0.0, std::f64::consts::TAU, 401, (Kind::Float, tch::Device::Cpu)).narrow(0, 0, 400);
        let ring = Tensor::stack(&[turn.cos(), turn.sin()], 1);
        let points = Tensor::cat(&[&ring, &(&ring * 4.0)], 0) + normal(4, 800, 2) * 0.02;
        let truth = |row: usize| u32::from(row >= 400);
        let purity = |labels: &[u32]| {
            Contingency::new(labels.iter().enumerate().map(|(row, &label)| (label, truth(row)))).purity()
        };
        let found = cluster(&points, Options::default(), &mut |_| {})?;
        assert_eq!(purity(&found.assignment), 1.0, "no cluster has points of both rings");
        let k = kmeans::Options { k: 2, ..kmeans::Options::default() };
        let by_means = kmeans::cluster(&points, None, k)?;
        assert!(purity(&by_means.assignment) < 0.9);
        Ok(())
    }

    #[test]
    fn groups_are_found_and_what_cannot_be_clustered_is_refused() -> Result<()> {
        let points = unit(5, 20, 16).repeat([40, 1]) + normal(6, 800, 16) * 0.02;
        let found = cluster(&points, Options::default(), &mut |_| {})?;
        let pairs = found.assignment.iter().enumerate().map(|(row, &label)| (row as u32 % 20, label));
        let table = Contingency::new(pairs);
        let purity = Contingency::new(
            table.cells.iter().flat_map(|&(row, column, samples)| std::iter::repeat_n((column, row), samples as usize)),
        )
        .purity();
        assert_eq!(purity, 1.0, "every cluster is of one group");
        assert!(table.nmi(Normalizer::Geometric) > 0.6);
        assert!(cluster(&points.narrow(0, 0, 5), Options::default(), &mut |_| {}).is_err());
        assert!(cluster(&points, Options { sigma: 0.0, ..Options::default() }, &mut |_| {}).is_err());
        Ok(())
    }

    #[test]
    fn paths_end_in_roots_however_long() {
        let above = [1, 2, 3, 3, 4, 4];
        assert_eq!(roots(&above), [0, 0, 0, 0, 1, 1]);
    }
}
