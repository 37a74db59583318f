//! Lloyd's iterations on a CPU: the nearest centroid of every point, exactly, by looking at few of them.
//!
//! Three things spare work, and none changes the outcome. Centroids that lie together share a panel, and a point skips a panel
//! while a bound on its distance to all of them proves that none has come nearer than its own (Yinyang k-means, Ding et al., ICML
//! 2015). It also skips a panel that has not moved if its own centroid has not moved either. And what is left is screened in 8 bits
//! first ([`super::screen`]); only centroids within the margin of the screen are measured in floats. Equally near ones fall to the
//! lowest number. Distances are sums in a fixed order, means sums of whole numbers ([`super::sums`]): the result does not depend on
//! the number of threads, nor of ranks, to the last bit.
//!
//! Memory, beside points `[N, d]` and centroids: a byte for each entry (of rows up to a multiple of 64 with AMX), and at most 256 + 16
//! for each point.

use super::engine::{Assigned, Engine, Outcome};
use super::panels;
use super::screen::Screen;
use super::search::{Chunk, Searched, Task, round_up};
use super::sums::{Change, Sums};
use crate::cluster::Points;
use crate::error::{Error, Result};
use crate::torch::floats;
use crate::torch::rows::{add, largest, squared_distance};
use crate::torch::scores::{COLUMNS, Kernel, ROWS};
use crate::world::World;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;
use tch::Tensor;

/// Points that a thread takes at once: their bytes stay in the second cache while panels of centroids go by.
pub(super) const CHUNK: usize = 6 * ROWS;
/// What a distance may be off by, relatively.
pub(super) const ROUNDING: f64 = 4e-6;
/// Bounds for each point, at most: beyond it several panels share one.
const MOST_BOUNDS: usize = 128;
/// Assignments before which centroids are put together anew: they have gone far by then, and bounds are of little use.
const REORDERED: [usize; 3] = [0, 1, 3];
/// Share of the work that bounds must spare for them to be worth their upkeep.
const WORTH: f64 = 0.1;
/// Assignments that do without bounds once they have proved worthless, and how this grows each time.
const PAUSE: usize = 2;

/// Points, centroids, and who is whose.
pub(super) struct Lloyd<'a> {
    pool: Arc<ThreadPool>,
    screen: Screen<'a>,
    points: &'a [f32],
    width: usize,
    centroids: Vec<f32>,
    sums: Sums,
    world: World,
    /// Sums over all ranks; none in a world of one.
    sums_of_all: Option<Sums>,
    labels: Vec<u32>,
    /// Squared distance to the own centroid.
    distances: Vec<f32>,
    /// The centroid of each column of the panels.
    order: Vec<u32>,
    /// Panels that share a bound.
    together: usize,
    /// Of each chunk, for each such group of panels, of each point: no centroid in the group is nearer.
    bounds: Vec<u16>,
    /// What bounds count in: so many to one unit of distance.
    scale: f64,
    /// How far each centroid has gone since the last assignment.
    moved: Vec<f64>,
    /// Assignments so far.
    rounds: usize,
    /// Points that the last assignment gave another centroid.
    changes: Vec<Change>,
    /// Clusters whose centroid is not their mean.
    displaced: Vec<u32>,
    /// Assignments left that do without bounds, and how many it will be the next time.
    without_bounds: usize,
    pause: usize,
    /// Bounds are of no assignment yet: the next makes them, and cannot tell what they are worth.
    fresh_bounds: bool,
}

impl<'a> Lloyd<'a> {
    /// Points `[N, d]` and centroids `[k, d]` of f32, on the host; none where [`Screen::new`] declines on any rank.
    pub(super) fn new(points: &'a Points, centroids: &Tensor) -> Result<Option<Self>> {
        let centroids = Vec::<f32>::try_from(centroids.f_reshape([-1])?)?;
        Self::with(Kernel::best(), points, centroids, tch::get_num_threads().max(1) as usize)
    }

    fn with(kernel: Kernel, all: &'a Points, centroids: Vec<f32>, threads: usize) -> Result<Option<Self>> {
        let (width, world) = (all.width(), all.world());
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| Error::device(format!("cannot start threads for clustering: {error}")))?;
        // Other ranks may have other processors, or no points.
        let points = floats(all.own()).filter(|points| Screen::pays(width) && !points.is_empty());
        let screened = points.and_then(|points| {
            let (mean, largest) = pool.install(|| mean_and_largest(points, width));
            pool.install(|| Screen::new(kernel, points, mean)).map(|screen| (points, screen, largest))
        });
        let is_for_all = world.all(screened.is_some())?;
        let Some((points, screen, largest)) = screened.filter(|_| is_for_all) else { return Ok(None) };
        // Whole numbers add up to the same whatever their order, if they count the same on every rank.
        let largest = world.largest(&[largest])?[0];
        let (count, k) = (screen.len(), centroids.len() / width);
        let panels = k.div_ceil(COLUMNS);
        let together = panels.div_ceil(MOST_BOUNDS);
        let scale = f64::from(u16::MAX - 1) / screen.diameter();
        let sums = Sums::new(k, width, largest);
        Ok(Some(Self {
            world: world.clone(),
            sums_of_all: (!world.is_alone()).then(|| Sums::new(k, width, largest)),
            pool: Arc::new(pool),
            screen,
            points,
            width,
            centroids,
            sums,
            labels: vec![0; count],
            distances: vec![0.0; count],
            order: Vec::new(),
            together,
            bounds: vec![0; count * panels.div_ceil(together)],
            scale,
            moved: vec![0.0; k],
            rounds: 0,
            changes: Vec::new(),
            displaced: Vec::new(),
            without_bounds: 0,
            pause: PAUSE,
            fresh_bounds: false,
        }))
    }

    fn search(&mut self) -> Assigned {
        if REORDERED.contains(&self.rounds) {
            self.order = panels::put_together(&self.centroids, self.width);
            self.bounds.fill(0);
        }
        // What the first would learn is forgotten: centroids are put together anew before the next.
        let bounded = self.without_bounds == 0 && self.rounds > 0;
        let columns = self.screen.columns(&self.centroids, self.order.clone());
        let group_columns = self.together * COLUMNS;
        let groups = self.order.len().div_ceil(group_columns);
        let farthest = self
            .order
            .chunks(group_columns)
            .map(|ids| ids.iter().map(|&id| self.moved[id as usize]).fold(0.0, f64::max));
        let mut group_of = vec![0; self.order.len()];
        for (column, &id) in self.order.iter().enumerate() {
            group_of[id as usize] = (column / group_columns) as u32;
        }
        let task = Task {
            screen: &self.screen,
            centroids: &self.centroids,
            width: self.width,
            columns: &columns,
            together: self.together,
            moved: &self.moved,
            drift: farthest.map(|far| if far > 0.0 { round_up(far * self.scale) } else { 0 }).collect(),
            scale: self.scale,
            is_first: self.rounds == 0,
            bounded,
            // Later on the own centroid is near enough.
            own_first: self.rounds == 1,
            group_of: &group_of,
        };
        let chunks = (
            self.labels.par_chunks_mut(CHUNK),
            self.distances.par_chunks_mut(CHUNK),
            self.bounds.par_chunks_mut(CHUNK * groups),
        );
        let outcomes: Vec<Searched> = chunks
            .into_par_iter()
            .enumerate()
            .map(|(index, (labels, distances, bounds))| {
                task.run(Chunk { first: index * CHUNK, labels, distances, bounds })
            })
            .collect();
        let objective = outcomes.iter().map(|searched| searched.objective).sum();
        let measured = outcomes.iter().map(|searched| searched.measured).sum();
        let searched: u64 = outcomes.iter().map(|searched| searched.searched).sum();
        self.changes = outcomes.into_iter().flat_map(|searched| searched.changes).collect();
        self.weigh_bounds(bounded, searched as f64 / (self.labels.len() * groups) as f64);
        self.moved.fill(0.0);
        self.rounds += 1;
        Assigned { objective, settled: self.changes.is_empty() && self.displaced.is_empty(), measured }
    }

    /// Decides whether the next assignments keep bounds, from the share of the work that this one has done.
    fn weigh_bounds(&mut self, bounded: bool, share: f64) {
        if self.without_bounds > 0 {
            self.without_bounds -= 1;
            self.fresh_bounds = self.without_bounds == 0;
            return;
        }
        let can_tell = bounded && !std::mem::take(&mut self.fresh_bounds) && !REORDERED.contains(&self.rounds);
        if can_tell && share > 1.0 - WORTH {
            self.without_bounds = self.pause;
            self.pause *= 2;
            self.bounds.fill(0);
        }
    }

    /// Puts a centroid elsewhere; whether it was not there.
    fn move_to(&mut self, cluster: usize, place: &[f32]) -> bool {
        if self.centroid(cluster) == place {
            return false;
        }
        let far = f64::from(squared_distance(self.centroid(cluster), place)).sqrt();
        // Two moves in a row go no farther than both.
        self.moved[cluster] += far * (1.0 + ROUNDING) + f64::from(f32::MIN_POSITIVE);
        self.centroids[cluster * self.width..][..self.width].copy_from_slice(place);
        true
    }

    /// One centroid.
    fn centroid(&self, cluster: usize) -> &[f32] {
        &self.centroids[cluster * self.width..][..self.width]
    }
}

impl Engine for Lloyd<'_> {
    fn assign(&mut self) -> Result<Assigned> {
        let pool = Arc::clone(&self.pool);
        Ok(pool.install(|| self.search()))
    }

    fn update(&mut self, spherical: bool) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        let mut clusters = self.pool.install(|| self.sums.apply(self.points, &changes));
        if let Some(all) = &mut self.sums_of_all {
            all.total(&self.sums, &self.world)?;
            clusters = (0..self.centroids.len() / self.width).map(|cluster| cluster as u32).collect();
        }
        clusters.append(&mut self.displaced);
        let mut mean = vec![0.0; self.width];
        for cluster in clusters {
            let cluster = cluster as usize;
            mean.copy_from_slice(self.centroid(cluster));
            self.sums_of_all.as_ref().unwrap_or(&self.sums).mean(cluster, &mut mean);
            if spherical {
                to_unit_length(&mut mean);
            }
            self.move_to(cluster, &mean);
        }
        Ok(())
    }

    fn counts(&self) -> &[u64] {
        self.sums_of_all.as_ref().unwrap_or(&self.sums).counts()
    }

    fn centroids(&self) -> Result<Vec<f32>> {
        Ok(self.centroids.clone())
    }

    fn displace(&mut self, places: &[f32]) -> Result<()> {
        for (cluster, place) in places.chunks_exact(self.width).enumerate() {
            if self.move_to(cluster, place) {
                self.displaced.push(cluster as u32);
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Outcome> {
        let centroids = matrix(&self.centroids, self.width)?;
        Ok(Outcome { centroids, labels: self.labels, distances: self.distances })
    }
}

/// The mean of points, whatever the number of threads, and their largest entry, either way.
fn mean_and_largest(points: &[f32], width: usize) -> (Vec<f32>, f32) {
    let origin = vec![0.0; width];
    let (parts, most): (Vec<Vec<f64>>, Vec<f32>) = points
        .par_chunks(CHUNK * width)
        .map(|part| {
            let (mut sums, mut most) = (vec![0.0; width], 0.0_f32);
            for point in part.chunks_exact(width) {
                add(&mut sums, point);
                most = most.max(largest(point, &origin));
            }
            (sums, most)
        })
        .unzip();
    let count = (points.len() / width) as f64;
    let mean = (0..width).map(|column| (parts.iter().map(|sums| sums[column]).sum::<f64>() / count) as f32);
    (mean.collect(), most.into_iter().fold(0.0, f32::max))
}

fn matrix(entries: &[f32], width: usize) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(entries)?.f_view([-1, width as i64])?)
}

/// Scales a row to length one; one of length 0 stays.
fn to_unit_length(row: &mut [f32]) {
    let square: f64 = row.iter().map(|&entry| f64::from(entry).powi(2)).sum();
    if square > 0.0 {
        row.iter_mut().for_each(|entry| *entry = (f64::from(*entry) / square.sqrt()) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::{normal, unit};
    use tch::{Device, Kind};

    /// Points of every kind that screening has to cope with.
    fn hard_cases() -> Vec<(&'static str, Tensor)> {
        let spread = normal(21, 900, 24) * Tensor::logspace(-2.0, 1.0, 24, 10.0, (Kind::Float, Device::Cpu));
        let lengths = Tensor::logspace(-4.0, 2.0, 900, 10.0, (Kind::Float, Device::Cpu)).view([900, 1]);
        vec![
            ("isotropic", unit(22, 1_500, 256)),
            ("of very different lengths", normal(23, 900, 33) * lengths),
            ("of columns of very different scale", spread),
            ("far from the origin", unit(24, 900, 16) + 1_000.0),
            ("on few places", normal(25, 40, 5).repeat([25, 1])),
            ("on a line", normal(26, 700, 1)),
        ]
    }

    #[test]
    fn screening_misses_no_nearer_centroid_and_threads_and_kernels_change_nothing() -> Result<()> {
        for (kind, points) in hard_cases() {
            let start = points.narrow(0, 0, 37).contiguous();
            let points = Points::alone(&points)?;
            let entries = floats(points.own()).expect("floats");
            let run = |kernel: Kernel, threads: usize| -> Result<_> {
                let first = floats(&start).expect("floats").to_vec();
                let lloyd = Lloyd::with(kernel, &points, first, threads)?;
                let mut lloyd = Box::new(lloyd.expect("worth screening"));
                let mut objectives = Vec::new();
                for round in 0..12 {
                    objectives.push(lloyd.assign()?.objective.to_bits());
                    check_nearest(kind, entries, &lloyd);
                    lloyd.update(round % 2 == 1)?;
                }
                let found = lloyd.finish()?;
                Ok((objectives, found.centroids, found.labels, found.distances))
            };
            let one = run(Kernel::best(), 1)?;
            for kernel in [Kernel::Plain, Kernel::Avx2, Kernel::Vnni, Kernel::Amx] {
                if kernel.is_here() {
                    assert_eq!(run(kernel, 3)?, one, "{kind}, {kernel:?}");
                }
            }
        }
        Ok(())
    }

    /// Every label is that of the nearest centroid, the first of those equally near.
    fn check_nearest(kind: &str, points: &[f32], lloyd: &Lloyd<'_>) {
        let width = lloyd.width;
        for (point, (&label, &distance)) in points.chunks_exact(width).zip(lloyd.labels.iter().zip(&lloyd.distances)) {
            let all = lloyd.centroids.chunks_exact(width).map(|centroid| squared_distance(point, centroid));
            let nearest = all.enumerate().min_by(|left, right| left.1.total_cmp(&right.1)).expect("a centroid");
            assert_eq!((nearest.0 as u32, nearest.1), (label, distance), "points {kind}");
        }
    }
}
