//! Clusters of clusters: k-means in levels, either way.
//!
//! Downwards ([`divide`]), for more clusters than one k-means can hold: a few coarse clusters first, then `k` within them, each
//! coarse cluster having its share by the points in it (DeeperCluster, Caron et al., ICCV 2019, section 3.2, gives each the same).
//!
//! Upwards ([`levels`]), to choose from uncurated data: the centroids of one level are the points of the next (Vo et al.,
//! "Automatic data curation for self-supervised learning", 2024, section 3.2). [`sample`] then takes as many points as asked
//! for, evenly over the clusters of the highest level, within each evenly over those of the next, and so on: concepts, not
//! photographs, are what is drawn evenly.
//!
//! What can go wrong: more coarse clusters than clusters, a level with no fewer clusters than the one below it.

use super::blocks::gather;
use super::kmeans::{self, Options, Partition};
use crate::error::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

/// The coarse clusters above the clusters of a [`divide`], but for those without points.
#[derive(Debug)]
pub struct Coarse {
    /// `[m, d]`, f32.
    pub centroids: Tensor,
    /// The first cluster in each, and the number of clusters: `m + 1` numbers.
    pub firsts: Vec<i64>,
}

/// Divides `points` `[N, d]` into `coarse` clusters, and those into `options.k` in all.
pub fn divide(
    points: &Tensor,
    coarse: usize,
    options: Options,
    tell: &mut dyn FnMut(f64),
) -> Result<(Partition, Coarse)> {
    if coarse < 2 || coarse > options.k {
        return Err(Error::usage(format!("cluster.coarse = {coarse} does not divide into cluster.k = {}", options.k))
            .with_hint("choose from 2 to cluster.k, or 0 for one level"));
    }
    let above = kmeans::watched(points, None, Options { k: coarse, ..options }, tell)?;
    let shares = shares(&above.sizes, options.k);
    let (mut assignment, mut distances) = (vec![0; above.assignment.len()], vec![0.0; above.assignment.len()]);
    let (mut centroids, mut sizes, mut firsts) = (Vec::new(), Vec::new(), vec![0]);
    let mut objectives = vec![0.0; options.iterations];
    let mut iterations = 0;
    let groups: Vec<i64> = (0_i64..).zip(&shares).filter(|(_, share)| **share > 0).map(|(group, _)| group).collect();
    for &group in &groups {
        let (share, first) = (shares[group as usize], sizes.len() as u32);
        let rows: Vec<i64> = (0_i64..)
            .zip(&above.assignment)
            .filter(|(_, label)| i64::from(**label) == group)
            .map(|(row, _)| row)
            .collect();
        let members = gather(points, &rows)?;
        let seed = options.seed.wrapping_add(1 + group as u64);
        let part = kmeans::watched(&members, None, Options { k: share, seed, ..options }, tell)?;
        for ((&row, label), distance) in rows.iter().zip(part.assignment).zip(part.distances) {
            assignment[row as usize] = first + label;
            distances[row as usize] = distance;
        }
        // What has settled in one group stays as it is while the others go on.
        let last = part.objectives.last().copied().unwrap_or(0.0);
        let padded = part.objectives.iter().copied().chain(std::iter::repeat(last));
        objectives.iter_mut().zip(padded).for_each(|(sum, objective)| *sum += objective);
        iterations = iterations.max(part.objectives.len());
        centroids.push(part.centroids);
        sizes.extend(part.sizes);
        firsts.push(sizes.len() as i64);
    }
    objectives.truncate(iterations);
    let centroids = Tensor::f_cat(&centroids, 0)?;
    let coarse = Coarse { centroids: gather(&above.centroids, &groups)?, firsts };
    Ok((Partition { centroids, assignment, distances, sizes, objectives }, coarse))
}

/// Parts of `k` in proportion to `sizes`, none larger than its size or, unless that is 0, below one.
fn shares(sizes: &[u64], k: usize) -> Vec<usize> {
    let total: u64 = sizes.iter().sum();
    let mut shares: Vec<usize> =
        sizes.iter().map(|&size| ((k as u64 * size / total.max(1)) as usize).max(usize::from(size > 0))).collect();
    // The rounding goes to those that have most points for each cluster, or comes from those that have least.
    let points = |shares: &[usize], at: usize| sizes[at] as f64 / shares[at] as f64;
    while shares.iter().sum::<usize>() != k {
        let is_short = shares.iter().sum::<usize>() < k;
        let open =
            (0..shares.len()).filter(|&at| if is_short { (shares[at] as u64) < sizes[at] } else { shares[at] > 1 });
        let chosen = if is_short {
            open.max_by(|&left, &right| points(&shares, left).total_cmp(&points(&shares, right)))
        } else {
            open.min_by(|&left, &right| points(&shares, left).total_cmp(&points(&shares, right)))
        };
        let Some(chosen) = chosen else { break };
        shares[chosen] = if is_short { shares[chosen] + 1 } else { shares[chosen] - 1 };
    }
    shares
}

impl Coarse {
    /// The cluster of each of `points` `[N, d]` among `centroids` `[k, d]`: that nearest within the nearest coarse one.
    /// Labels `[N]` of i64 and squared distances `[N]` of f32.
    pub fn nearest(&self, points: &Tensor, centroids: &Tensor) -> Result<(Tensor, Tensor)> {
        let (groups, _) = kmeans::nearest(points, &self.centroids)?;
        let labels = groups.f_zeros_like()?;
        let distances = Tensor::f_zeros([points.size2()?.0], (Kind::Float, points.device()))?;
        for (group, range) in self.firsts.windows(2).enumerate() {
            let rows = groups.f_eq(group as i64)?.f_nonzero()?.f_squeeze_dim(1)?;
            if rows.numel() == 0 {
                continue;
            }
            let members = points.f_index_select(0, &rows)?;
            let (found, squared) = kmeans::nearest(&members, &centroids.f_narrow(0, range[0], range[1] - range[0])?)?;
            let _ = labels.shallow_clone().f_index_copy_(0, &rows, &found.f_add_scalar(range[0])?)?;
            let _ = distances.shallow_clone().f_index_copy_(0, &rows, &squared)?;
        }
        Ok((labels, distances))
    }
}

/// One k-means after the other, from the points up: each entry of `ks` is the clusters of a level.
pub fn levels(
    points: &Tensor,
    ks: &[usize],
    options: Options,
    tell: &mut dyn FnMut(usize, f64),
) -> Result<Vec<Partition>> {
    if ks.is_empty() || ks.windows(2).any(|pair| pair[1] >= pair[0]) {
        return Err(Error::usage(format!("levels {ks:?}: each must have fewer clusters than the one before"))
            .with_hint("for example --levels 10000,500"));
    }
    let mut levels: Vec<Partition> = Vec::new();
    for (level, &k) in ks.iter().enumerate() {
        let options = Options { k, seed: options.seed.wrapping_add(level as u64), ..options };
        let below = levels.last().map_or(points, |below| &below.centroids);
        let found = kmeans::watched(below, None, options, &mut |objective| tell(level, objective))?;
        levels.push(found);
    }
    Ok(levels)
}

/// Which of the points of a cluster are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Any, drawn at random.
    Random,
    /// Those nearest to the centroid.
    Nearest,
}

/// `count` points, ascending, taken evenly over the clusters of the highest of `levels`, and within each evenly downwards.
pub fn sample(levels: &[Partition], count: usize, pick: Pick, seed: u64) -> Result<Vec<usize>> {
    let points = levels.first().map_or(0, |level| level.assignment.len());
    if count > points {
        return Err(Error::usage(format!("a sample of {count} of {points} rows")).with_hint("lower --sample"));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Of each cluster of each level what lies in it one level down, and how many points in all.
    let mut members: Vec<Vec<Vec<usize>>> = Vec::new();
    let mut held: Vec<Vec<usize>> = Vec::new();
    for level in levels {
        let mut clusters = vec![Vec::new(); level.sizes.len()];
        for (item, &cluster) in level.assignment.iter().enumerate() {
            clusters[cluster as usize].push(item);
        }
        let points_in = |item: usize| held.last().map_or(1, |below| below[item]);
        held.push(clusters.iter().map(|items| items.iter().map(|&item| points_in(item)).sum()).collect());
        members.push(clusters);
    }
    let Some(top) = held.last() else { return Ok(Vec::new()) };
    let mut wanted = spread_evenly(count, top, &mut rng);
    for level in (1..levels.len()).rev() {
        let mut below = vec![0; held[level - 1].len()];
        for (items, wanted) in members[level].iter().zip(wanted) {
            let sizes: Vec<usize> = items.iter().map(|&item| held[level - 1][item]).collect();
            for (&item, share) in items.iter().zip(spread_evenly(wanted, &sizes, &mut rng)) {
                below[item] = share;
            }
        }
        wanted = below;
    }
    let mut chosen = Vec::with_capacity(count);
    for (rows, wanted) in members[0].iter_mut().zip(wanted) {
        match pick {
            Pick::Random => rows.shuffle(&mut rng),
            Pick::Nearest => {
                rows.sort_by(|&left, &right| levels[0].distances[left].total_cmp(&levels[0].distances[right]))
            }
        }
        chosen.extend_from_slice(&rows[..wanted]);
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// `count` dealt out so that all have the same, but for those that hold less: as water fills vessels. What does not divide
/// goes to some drawn at random.
fn spread_evenly(count: usize, sizes: &[usize], rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.shuffle(rng);
    order.sort_by_key(|&at| sizes[at]);
    let mut left = count;
    let mut shares = vec![0; sizes.len()];
    for (rank, &at) in order.iter().enumerate() {
        shares[at] = (left / (sizes.len() - rank)).min(sizes[at]);
        left -= shares[at];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::{normal, unit};
    use proptest::prelude::*;

    #[test]
    fn shares_follow_sizes() {
        assert_eq!(shares(&[50, 30, 20], 10), [5, 3, 2]);
        assert_eq!(shares(&[97, 1, 2], 10), [8, 1, 1]);
        assert_eq!(shares(&[2, 98], 60), [2, 58]);
        assert_eq!(shares(&[5, 0, 5], 10), [5, 0, 5]);
    }

    #[test]
    fn labels_of_two_levels_are_found_again_by_way_of_both() -> Result<()> {
        let points = unit(1, 3_000, 12);
        let options = Options { k: 60, iterations: 40, ..Options::default() };
        let (found, coarse) = divide(&points, 4, options, &mut |_| {})?;
        assert_eq!((found.sizes.len(), found.sizes.iter().sum::<u64>()), (60, 3_000));
        assert!(found.sizes.iter().all(|&size| size > 0));
        assert_eq!((coarse.firsts.len(), coarse.firsts[4]), (5, 60));
        assert!(found.objectives.windows(2).all(|pair| pair[1] <= pair[0] * 1.000_001), "{:?}", found.objectives);
        let (labels, distances) = coarse.nearest(&points, &found.centroids)?;
        assert_eq!(kmeans::host_labels(&labels)?, found.assignment);
        let distances = Vec::<f32>::try_from(distances)?;
        assert!(distances.iter().zip(&found.distances).all(|(left, right)| (left - right).abs() < 1e-5));
        // Two levels cost little in what they are for.
        let flat = kmeans::cluster(&points, None, options)?;
        assert!(found.objective() < 1.1 * flat.objective(), "{} {}", found.objective(), flat.objective());
        assert!(divide(&points, 61, options, &mut |_| {}).is_err());
        Ok(())
    }

    #[test]
    fn a_sample_of_zipf_sized_groups_has_as_many_of_each() -> Result<()> {
        // Groups of 1,600, 800, ..., 50 points.
        let group_of: Vec<i64> = (0..6).flat_map(|group| std::iter::repeat_n(group, 1_600 >> group)).collect();
        let points = (normal(2, 6, 8) * 20.0).index_select(0, &Tensor::from_slice(&group_of))
            + normal(3, group_of.len() as i64, 8);
        let options = Options { seeding: kmeans::Seeding::PlusPlus, ..Options::default() };
        let levels = levels(&points, &[120, 6], options, &mut |_, _| {})?;
        for pick in [Pick::Random, Pick::Nearest] {
            let rows = sample(&levels, 270, pick, 7)?;
            assert!(rows.len() == 270 && rows.windows(2).all(|pair| pair[0] < pair[1]), "270 different rows");
            let mut drawn = [0; 6];
            rows.iter().for_each(|&row| drawn[group_of[row] as usize] += 1);
            assert_eq!(drawn, [45; 6], "{pick:?}");
        }
        assert_eq!(sample(&levels, group_of.len(), Pick::Random, 7)?, (0..group_of.len()).collect::<Vec<_>>());
        assert!(sample(&levels, group_of.len() + 1, Pick::Random, 7).is_err());
        Ok(())
    }

    #[test]
    fn levels_must_shrink() {
        let points = unit(1, 30, 3);
        for ks in [vec![], vec![5, 5], vec![5, 6]] {
            assert!(levels(&points, &ks, Options::default(), &mut |_, _| {}).is_err());
        }
    }

    proptest! {
        /// All is dealt out, none gets more than it holds, and whoever gets less than another is full.
        #[test]
        fn water_finds_its_level(sizes in prop::collection::vec(0_usize..20, 1..10), share in 0.0_f64..=1.0) {
            let count = (sizes.iter().sum::<usize>() as f64 * share) as usize;
            let shares = spread_evenly(count, &sizes, &mut ChaCha8Rng::seed_from_u64(1));
            prop_assert_eq!(shares.iter().sum::<usize>(), count);
            let most = shares.iter().copied().max().unwrap_or(0);
            for (&share, &size) in shares.iter().zip(&sizes) {
                prop_assert!(share <= size && (share == size || share + 1 >= most), "{:?} of {:?}", shares, sizes);
            }
        }
    }
}
