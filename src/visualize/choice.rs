//! Which clusters a sheet shows, which of their samples, and what is said of them.
//!
//! In: who is in which cluster, how far from its centroid, of which class. Out: numbers of clusters and of samples. What can go wrong:
//! ids that name no cluster, an order by purity where no sample has a class.

use super::sheet::SheetRow;
use crate::cluster::assignments::Assignments;
use crate::error::{Error, Result};
use crate::shards::SampleId;
use image::RgbImage;
use indicatif::HumanCount;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What clusters are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// The largest first
    #[default]
    Size,
    /// The one with the largest share of one class first
    Purity,
}

/// Which of the sorted clusters a sheet shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first ones.
    First(usize),
    /// Evenly spread from the first to the last.
    Spread(usize),
    /// These.
    These(Vec<usize>),
}

/// Which samples of a cluster come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Nearest to the centroid first
    #[default]
    Nearest,
    /// Any, the same at each call
    Random,
    /// Farthest from the centroid first
    Farthest,
}

impl Order {
    /// For a line below the title.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest to the centroid first",
            Self::Random => "random members",
            Self::Farthest => "farthest from the centroid first",
        }
    }
}

/// What is known of the clusters of some assignments.
#[derive(Debug)]
pub struct Clusters<'a> {
    assignments: &'a Assignments,
    members: Vec<Vec<usize>>,
}

impl<'a> Clusters<'a> {
    /// Sorts samples by their clusters.
    pub fn of(assignments: &'a Assignments) -> Self {
        let count = assignments.clusters.iter().max().map_or(0, |last| *last as usize + 1);
        let mut members = vec![Vec::new(); count];
        for (sample, &cluster) in assignments.clusters.iter().enumerate() {
            members[cluster as usize].push(sample);
        }
        Self { assignments, members }
    }

    /// Clusters that are not empty.
    pub fn count(&self) -> usize {
        self.members.iter().filter(|members| !members.is_empty()).count()
    }

    /// Samples of a cluster.
    pub fn size(&self, cluster: usize) -> usize {
        self.members.get(cluster).map_or(0, Vec::len)
    }

    /// The chosen clusters; empty ones only where they are asked for by number.
    pub fn choose(&self, choice: &Choice, sort: Sort) -> Result<Vec<usize>> {
        if let Choice::These(clusters) = choice {
            if let Some(unknown) = clusters.iter().find(|cluster| **cluster >= self.members.len()) {
                return Err(Error::usage(format!("there is no cluster {unknown}"))
                    .with_hint(format!("clusters are numbered from 0 to {}", self.members.len().saturating_sub(1))));
            }
            return Ok(clusters.clone());
        }
        let mut sorted: Vec<usize> = (0..self.members.len()).filter(|cluster| self.size(*cluster) > 0).collect();
        sorted.sort_by_key(|cluster| (Reverse(self.size(*cluster)), *cluster));
        if sort == Sort::Purity {
            if self.assignments.classes.iter().all(Option::is_none) {
                return Err(Error::data("no sample has a class, so that purity is not known")
                    .with_hint("classes come from .cls members of the shards; --sort size needs none"));
            }
            // Stable: of equally pure ones the larger stays first.
            sorted.sort_by(|&a, &b| self.purity(b).total_cmp(&self.purity(a)));
        }
        match *choice {
            Choice::First(rows) => sorted.truncate(rows),
            Choice::Spread(rows) if rows < sorted.len() => {
                let last = sorted.len() - 1;
                let intervals = rows.saturating_sub(1).max(1);
                sorted = (0..rows).map(|row| sorted[row * last / intervals]).collect();
            }
            Choice::Spread(_) | Choice::These(_) => {}
        }
        Ok(sorted)
    }

    /// At most `count` samples of a cluster, as rows of the assignments.
    pub fn members(&self, cluster: usize, order: Order, count: usize) -> Vec<usize> {
        let mut members = self.members.get(cluster).cloned().unwrap_or_default();
        let distance = |sample: &usize| self.assignments.distances[*sample];
        match order {
            Order::Nearest => members.sort_by(|a, b| distance(a).total_cmp(&distance(b))),
            Order::Farthest => members.sort_by(|a, b| distance(b).total_cmp(&distance(a))),
            Order::Random => members.shuffle(&mut ChaCha8Rng::seed_from_u64(cluster as u64)),
        }
        members.truncate(count);
        members
    }

    /// The chosen clusters, each with at most `count` of its samples as rows of the assignments.
    pub fn pick(&self, choice: &Choice, sort: Sort, order: Order, count: usize) -> Result<Vec<(usize, Vec<usize>)>> {
        let chosen = self.choose(choice, sort)?;
        Ok(chosen.into_iter().map(|cluster| (cluster, self.members(cluster, order, count))).collect())
    }

    /// Samples of what [`Clusters::pick`] gave.
    pub fn ids(&self, picked: &[(usize, Vec<usize>)]) -> HashSet<SampleId> {
        picked.iter().flat_map(|(_, members)| members).map(|&row| self.assignments.ids[row]).collect()
    }

    /// Rows of a sheet with those of the photographs that were found.
    pub fn rows(&self, picked: &[(usize, Vec<usize>)], found: &HashMap<SampleId, RgbImage>) -> Vec<SheetRow> {
        let largest = picked.iter().map(|(cluster, _)| self.size(*cluster)).max().unwrap_or(0).max(1);
        let row = |(cluster, members): &(usize, Vec<usize>)| {
            let size = self.size(*cluster);
            let unit = if size == 1 { "image" } else { "images" };
            SheetRow {
                name: format!("cluster {cluster}"),
                share: Some(size as f64 / largest as f64),
                caption: format!("{} {unit}\n{}", HumanCount(size as u64), self.describe(*cluster)),
                thumbnails: members.iter().filter_map(|&row| found.get(&self.assignments.ids[row]).cloned()).collect(),
            }
        };
        picked.iter().map(row).collect()
    }

    /// Share of the commonest class among the samples of a cluster that have one; 0 where none has.
    pub fn purity(&self, cluster: usize) -> f64 {
        let counts = self.class_counts(cluster);
        let known: usize = counts.values().sum();
        counts.values().max().map_or(0.0, |&most| most as f64 / known as f64)
    }

    /// Mean distance to the centroid and, where samples have classes, the commonest one's share and the entropy, in lines.
    pub fn describe(&self, cluster: usize) -> String {
        let members = self.members.get(cluster).map_or(&[][..], Vec::as_slice);
        let distance: f64 = members.iter().map(|sample| f64::from(self.assignments.distances[*sample])).sum();
        let mut caption = format!("distance {:.3}", distance / members.len().max(1) as f64);
        let counts = self.class_counts(cluster);
        let known: usize = counts.values().sum();
        let Some((class, &most)) = counts.iter().max_by_key(|(class, count)| (**count, -**class)) else {
            return caption;
        };
        let share = |count: usize| count as f64 / known as f64;
        let entropy: f64 = counts.values().map(|&count| -share(count) * share(count).ln()).sum();
        caption.push_str(&format!("\n{:.0} % class {class}\nentropy {:.2}", 100.0 * share(most), entropy.abs()));
        caption
    }

    fn class_counts(&self, cluster: usize) -> BTreeMap<i64, usize> {
        let mut counts = BTreeMap::new();
        let members = self.members.get(cluster).map_or(&[][..], Vec::as_slice);
        for class in members.iter().filter_map(|sample| self.assignments.classes[*sample]) {
            *counts.entry(class).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignments(clusters: &[u32], distances: &[f32], classes: &[Option<i64>]) -> Assignments {
        Assignments {
            ids: (0..clusters.len() as u64).map(SampleId).collect(),
            clusters: clusters.to_vec(),
            distances: distances.to_vec(),
            classes: classes.to_vec(),
            ..Assignments::default()
        }
    }

    /// Clusters of these sizes.
    fn sized(sizes: &[usize]) -> Assignments {
        let clusters: Vec<u32> =
            sizes.iter().enumerate().flat_map(|(cluster, &size)| vec![cluster as u32; size]).collect();
        assignments(&clusters, &vec![0.5; clusters.len()], &vec![None; clusters.len()])
    }

    #[test]
    fn clusters_are_chosen_by_size_or_number() -> Result<()> {
        let found = sized(&[5, 0, 9, 1, 7, 3]);
        let clusters = Clusters::of(&found);
        let choose = |choice| clusters.choose(&choice, Sort::Size);
        assert_eq!(choose(Choice::First(3))?, [2, 4, 0]);
        assert_eq!(choose(Choice::Spread(3))?, [2, 0, 3]);
        assert_eq!(choose(Choice::Spread(1))?, [2]);
        assert_eq!(choose(Choice::Spread(9))?, [2, 4, 0, 5, 3]);
        assert_eq!(choose(Choice::These(vec![3, 1]))?, [3, 1]);
        assert_eq!(choose(Choice::These(vec![6])).map_err(|e| e.exit_code()), Err(2));
        assert_eq!(clusters.count(), 5);
        Ok(())
    }

    #[test]
    fn pure_clusters_come_first_where_classes_are_known() -> Result<()> {
        let classes = [Some(1), Some(2), Some(1), None, Some(4), Some(4), Some(4), Some(9)];
        let found = assignments(&[0, 0, 1, 1, 2, 2, 2, 2], &[0.25; 8], &classes);
        let clusters = Clusters::of(&found);
        assert_eq!([0, 1, 2].map(|cluster| clusters.purity(cluster)), [0.5, 1.0, 0.75]);
        assert_eq!(clusters.choose(&Choice::First(3), Sort::Purity)?, [1, 2, 0]);
        let unknown = sized(&[2, 2]);
        let error = Clusters::of(&unknown).choose(&Choice::First(1), Sort::Purity).expect_err("no classes");
        assert!(error.hint().is_some_and(|hint| hint.contains(".cls")));
        Ok(())
    }

    #[test]
    fn members_come_by_their_distance_or_any() {
        let found = assignments(&[1, 0, 1, 1, 0, 1], &[0.5, 0.1, 0.2, 0.9, 0.3, 0.2], &[None; 6]);
        let clusters = Clusters::of(&found);
        assert_eq!(clusters.members(1, Order::Nearest, 3), [2, 5, 0]);
        assert_eq!(clusters.members(1, Order::Farthest, 2), [3, 0]);
        assert_eq!(clusters.members(7, Order::Nearest, 3), [0_usize; 0]);
        let mut any = clusters.members(1, Order::Random, 9);
        assert_eq!(any, clusters.members(1, Order::Random, 9));
        any.sort_unstable();
        assert_eq!(any, [0, 2, 3, 5]);
    }

    #[test]
    fn a_caption_tells_purity_and_entropy_by_hand() {
        let describe = |classes: &[Option<i64>]| {
            let found = assignments(&vec![0; classes.len()], &vec![0.25; classes.len()], classes);
            Clusters::of(&found).describe(0)
        };
        // Three quarters and one quarter: -(0.75 ln 0.75 + 0.25 ln 0.25) = 0.5623
        assert_eq!(describe(&[4, 4, 9, 4].map(Some)), "distance 0.250\n75 % class 4\nentropy 0.56");
        assert_eq!(describe(&[Some(2)]), "distance 0.250\n100 % class 2\nentropy 0.00");
        assert_eq!(describe(&[None]), "distance 0.250");
    }
}
