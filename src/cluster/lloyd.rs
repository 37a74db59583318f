//! Lloyd's iterations on a CPU: the nearest centroid of every point, exactly, by looking at few of them.
//!
//! Three things spare work, and none changes the outcome. A point keeps its centroid unseen while bounds on distances prove
//! that no other has come nearer (Hamerly, SDM 2010). Where they do not, and its own centroid has not moved, only those that have
//! moved are considered. And what is considered is screened in 8 bits first ([`super::screen`]); only centroids within the margin
//! of the screen are measured in floats. Equally near ones fall to the lowest number. Distances are sums in a fixed order, means
//! sums of whole numbers ([`super::sums`]): the result does not depend on the number of threads, to the last bit.
//!
//! Memory, beside points `[N, d]` and centroids: a byte for each entry and 40 for each point.

use super::screen::{Columns, Screen};
use super::sums::{Change, Sums};
use crate::torch::scores::{self, ROWS, Scores, Seen, squared_distance};
use rayon::prelude::*;

/// Points that a thread takes at once: their bytes stay in the second cache while panels of centroids go by.
const CHUNK: usize = 64 * ROWS;
/// What a bound on a distance may be off by, relatively.
const ROUNDING: f64 = 4e-6;

/// Points, centroids, and who is whose.
pub(super) struct Lloyd<'a> {
    screen: Screen<'a>,
    points: &'a [f32],
    width: usize,
    k: usize,
    centroids: Vec<f32>,
    sums: Sums,
    labels: Vec<u32>,
    /// Squared distance to the own centroid.
    distances: Vec<f32>,
    /// No other centroid is nearer than this.
    others: Vec<f32>,
    /// How far each centroid has gone since the last assignment; none before the first.
    moved: Option<Vec<f64>>,
    /// Clusters whose centroid is not their mean.
    displaced: Vec<u32>,
}

/// One assignment.
pub(super) struct Assigned {
    /// Sum of squared distances.
    pub(super) objective: f64,
    /// Points that changed.
    pub(super) changed: usize,
    changes: Vec<Change>,
}

/// What one thread works on: a chunk of points.
struct Chunk<'c> {
    first: usize,
    labels: &'c mut [u32],
    distances: &'c mut [f32],
    others: &'c mut [f32],
}

/// What may be nearer than the present centroid of a point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rivals {
    None,
    Moved,
    All,
}

impl<'a> Lloyd<'a> {
    /// Points `[N, width]` and centroids `[k, width]`; none where [`Screen::new`] declines.
    pub(super) fn new(points: &'a [f32], mean: Vec<f32>, centroids: Vec<f32>) -> Option<Self> {
        let width = mean.len();
        let screen = Screen::new(points, mean)?;
        let (count, k) = (screen.len(), centroids.len() / width);
        let largest =
            points.par_iter().fold(|| 0.0_f32, |largest, entry| largest.max(entry.abs())).reduce(|| 0.0, f32::max);
        Some(Self {
            screen,
            points,
            width,
            k,
            centroids,
            sums: Sums::new(k, width, largest),
            labels: vec![0; count],
            distances: vec![0.0; count],
            others: vec![0.0; count],
            moved: None,
            displaced: Vec::new(),
        })
    }

    /// Gives every point its nearest centroid.
    pub(super) fn assign(&mut self) -> Assigned {
        let all = self.screen.columns(&self.centroids, (0..self.k as u32).collect());
        let moved_ids: Vec<u32> = match &self.moved {
            Some(moved) => (0..self.k as u32).filter(|&id| moved[id as usize] > 0.0).collect(),
            None => Vec::new(),
        };
        let some = (moved_ids.len() * 4 < self.k * 3).then(|| self.screen.columns(&self.centroids, moved_ids));
        let drift = self.moved.as_deref().map(Drift::new);
        let task = Task {
            screen: &self.screen,
            centroids: &self.centroids,
            width: self.width,
            all: &all,
            moved: some.as_ref(),
            drift,
        };
        let chunks = (
            self.labels.par_chunks_mut(CHUNK),
            self.distances.par_chunks_mut(CHUNK),
            self.others.par_chunks_mut(CHUNK),
        );
        let outcomes: Vec<(f64, Vec<Change>)> = chunks
            .into_par_iter()
            .enumerate()
            .map(|(index, (labels, distances, others))| {
                task.run(Chunk { first: index * CHUNK, labels, distances, others })
            })
            .collect();
        let objective = outcomes.iter().map(|(objective, _)| objective).sum();
        let changes: Vec<Change> = outcomes.into_iter().flat_map(|(_, changes)| changes).collect();
        self.moved = Some(vec![0.0; self.k]);
        Assigned { objective, changed: changes.len(), changes }
    }

    /// Moves centroids to the means of their points; those without points stay.
    pub(super) fn update(&mut self, assigned: &Assigned) {
        let mut clusters = self.sums.apply(self.points, &assigned.changes);
        clusters.append(&mut self.displaced);
        let mut mean = vec![0.0; self.width];
        for cluster in clusters {
            let cluster = cluster as usize;
            mean.copy_from_slice(self.centroid(cluster));
            self.sums.mean(cluster, &mut mean);
            self.move_to(cluster, &mean);
        }
    }

    /// Puts the centroids that differ in `places` `[k, width]` there, until the next update.
    pub(super) fn displace(&mut self, places: &[f32]) {
        for (cluster, place) in places.chunks_exact(self.width).enumerate() {
            if self.move_to(cluster, place) {
                self.displaced.push(cluster as u32);
            }
        }
    }

    /// Puts a centroid elsewhere; whether it was not there.
    fn move_to(&mut self, cluster: usize, place: &[f32]) -> bool {
        if self.centroid(cluster) == place {
            return false;
        }
        let far = f64::from(squared_distance(self.centroid(cluster), place)).sqrt();
        if let Some(moved) = &mut self.moved {
            // Two moves in a row go no farther than both.
            moved[cluster] += far * (1.0 + ROUNDING) + f64::from(f32::MIN_POSITIVE);
        }
        self.centroids[cluster * self.width..][..self.width].copy_from_slice(place);
        true
    }

    /// One centroid.
    pub(super) fn centroid(&self, cluster: usize) -> &[f32] {
        &self.centroids[cluster * self.width..][..self.width]
    }

    /// All centroids, `[k, width]`.
    pub(super) fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Points of each cluster, as of the last update.
    pub(super) fn counts(&self) -> &[u64] {
        self.sums.counts()
    }

    /// The cluster of each point.
    #[cfg(test)]
    pub(super) fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The squared distance of each point to its centroid.
    #[cfg(test)]
    pub(super) fn distances(&self) -> &[f32] {
        &self.distances
    }

    /// Labels and squared distances of the last assignment.
    pub(super) fn into_parts(self) -> (Vec<u32>, Vec<f32>) {
        (self.labels, self.distances)
    }
}

/// How far centroids have gone.
struct Drift<'m> {
    moved: &'m [f64],
    farthest: (usize, f64),
    next: f64,
}

impl<'m> Drift<'m> {
    fn new(moved: &'m [f64]) -> Self {
        let mut drift = Self { moved, farthest: (usize::MAX, 0.0), next: 0.0 };
        for (cluster, &far) in moved.iter().enumerate() {
            if far > drift.farthest.1 {
                drift.next = drift.farthest.1;
                drift.farthest = (cluster, far);
            } else {
                drift.next = drift.next.max(far);
            }
        }
        drift
    }

    /// The farthest that a centroid other than `own` has gone.
    fn of_others(&self, own: usize) -> f64 {
        if own == self.farthest.0 { self.next } else { self.farthest.1 }
    }
}

/// What all threads share.
struct Task<'t> {
    screen: &'t Screen<'t>,
    centroids: &'t [f32],
    width: usize,
    all: &'t Columns,
    moved: Option<&'t Columns>,
    drift: Option<Drift<'t>>,
}

impl Task<'_> {
    fn run(&self, mut chunk: Chunk<'_>) -> (f64, Vec<Change>) {
        let before = chunk.labels.to_vec();
        let rivals: Vec<Rivals> = (0..before.len()).map(|row| self.look(&mut chunk, row)).collect();
        let rows_with = |wanted: Rivals| (0..before.len()).filter(|&row| rivals[row] == wanted).collect::<Vec<_>>();
        self.search(&mut chunk, &rows_with(Rivals::All), self.all, false);
        if let Some(moved) = self.moved {
            self.search(&mut chunk, &rows_with(Rivals::Moved), moved, true);
        }
        let changes =
            chunk.labels.iter().zip(before).enumerate().filter(|(_, (to, from))| self.drift.is_none() || *to != from);
        let changes = changes.map(|(row, (&to, from))| Change {
            point: (chunk.first + row) as u32,
            from: self.drift.is_some().then_some(from),
            to,
        });
        (chunk.distances.iter().map(|&distance| f64::from(distance)).sum(), changes.collect())
    }

    fn distance(&self, point: usize, centroid: u32) -> f32 {
        squared_distance(self.screen.point(point), &self.centroids[centroid as usize * self.width..][..self.width])
    }

    /// Brings bounds of a point up to date; which centroids may be nearer than its own.
    fn look(&self, chunk: &mut Chunk<'_>, row: usize) -> Rivals {
        let Some(drift) = &self.drift else { return Rivals::All };
        let own = chunk.labels[row];
        let stays = drift.moved[own as usize] == 0.0;
        if !stays {
            chunk.distances[row] = self.distance(chunk.first + row, own);
        }
        let bound = f64::from(chunk.others[row]);
        let others = bound - drift.of_others(own as usize);
        if f64::from(chunk.distances[row]).sqrt() * (1.0 + ROUNDING) < others {
            chunk.others[row] = (others * (1.0 - ROUNDING)) as f32;
            return Rivals::None;
        }
        // What has not moved is as far as it was, and no nearer than the own centroid, which has not moved either.
        if stays && self.moved.is_some() { Rivals::Moved } else { Rivals::All }
    }

    /// Finds the nearest of `columns`, and of the own centroid, for some rows of the chunk.
    fn search(&self, chunk: &mut Chunk<'_>, rows: &[usize], columns: &Columns, only_moved: bool) {
        if rows.is_empty() {
            return;
        }
        let mut found: Vec<Found> = rows.iter().map(|&row| self.own(chunk, row)).collect();
        let mut seen: Vec<Seen> =
            rows.iter().zip(&found).map(|(&row, found)| self.seen(chunk.first + row, columns, found)).collect();
        seen.resize(rows.len().next_multiple_of(ROWS), Seen::new(i16::MAX));
        self.measure_likely(chunk.first, rows, columns, &mut seen, &mut found);

        for ((&row, seen), mut found) in rows.iter().zip(&seen).zip(found) {
            let point = chunk.first + row;
            let own = self.own(chunk, row);
            if seen.floor == i16::MIN {
                // So low, steps tell nothing.
                for &centroid in &columns.ids {
                    found.offer(centroid, self.distance(point, centroid), None);
                }
            }
            let (top, runner_up) = seen.top();
            let highest_other = if found.steps == Some(top) { runner_up } else { top };
            let mut others = self.screen.least_distance(point, columns, highest_other);
            if only_moved {
                // The rest is where it was: no nearer than its bound, and the own centroid of before is among it now.
                let before = f64::from(chunk.others[row]);
                let rest = if own.centroid == found.centroid { before } else { f64::from(own.distance).sqrt() };
                others = others.min(rest);
            }
            chunk.others[row] = (others * (1.0 - ROUNDING)) as f32;
            (chunk.distances[row], chunk.labels[row]) = (found.distance, found.centroid);
        }
    }

    /// What is known of a point before a search.
    fn own(&self, chunk: &Chunk<'_>, row: usize) -> Found {
        match self.drift {
            Some(_) => Found { distance: chunk.distances[row], centroid: chunk.labels[row], steps: None },
            None => Found { distance: f32::INFINITY, centroid: u32::MAX, steps: None },
        }
    }

    fn seen(&self, point: usize, columns: &Columns, found: &Found) -> Seen {
        let known = found.distance.is_finite();
        Seen::new(if known { self.screen.floor(point, columns, found.distance) } else { i16::MIN })
    }

    /// Measures the centroids of `columns` that are within the margin of each of `rows`; floors rise with what is found.
    fn measure_likely(&self, first: usize, rows: &[usize], columns: &Columns, seen: &mut [Seen], found: &mut [Found]) {
        let mut scored: [Scores; ROWS] = Default::default();
        for panel_index in 0..columns.panels() {
            let panel = columns.panel(panel_index);
            let ids = &columns.ids[panel_index * scores::COLUMNS..];
            let groups = rows.chunks(ROWS).zip(seen.as_chunks_mut::<ROWS>().0).zip(found.chunks_mut(ROWS));
            for ((rows, seen), found) in groups {
                let codes = std::array::from_fn(|at| self.screen.codes(first + rows[at.min(rows.len() - 1)]));
                let mut told = scores::score(codes, &panel, seen, &mut scored);
                while told != 0 {
                    let at = told.trailing_zeros() as usize;
                    told &= told - 1;
                    if at >= rows.len() {
                        break;
                    }
                    for (&steps, &centroid) in scored[at].iter().zip(ids) {
                        if steps <= seen[at].floor {
                            continue;
                        }
                        let point = first + rows[at];
                        if centroid == found[at].centroid {
                            found[at].steps = Some(steps);
                        } else if found[at].offer(centroid, self.distance(point, centroid), Some(steps)) {
                            seen[at].floor = self.screen.floor(point, columns, found[at].distance);
                        }
                    }
                }
            }
        }
    }
}

/// The nearest centroid of a point so far.
struct Found {
    distance: f32,
    centroid: u32,
    /// Its steps, where it was screened.
    steps: Option<i16>,
}

impl Found {
    /// Takes a centroid that is nearer, or as near and of a lower number; whether it was.
    fn offer(&mut self, centroid: u32, distance: f32, steps: Option<i16>) -> bool {
        let nearer = distance < self.distance || (distance == self.distance && centroid < self.centroid);
        if nearer {
            *self = Self { distance, centroid, steps };
        }
        nearer
    }
}
