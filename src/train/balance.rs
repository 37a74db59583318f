//! How large clusters are kept from drowning small ones (paper, section 3.3, "trivial parametrization").
//!
//! Two ways to the same end, both from labels alone. [`ClusterWeights`] weights the loss of a sample by the inverse size of
//! its cluster: every cluster then pulls equally hard. [`draw_window`] plans batches in which every cluster occurs equally often.
//!
//! The loss of a weighted batch is `Σ weight · loss / B`, divided by the number of samples, not by the sum of weights: the mean
//! weight over the bank is 1, so the scale of the gradient, and with it the learning rate, stays that of unweighted training.

use crate::error::{Error, Result};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use tch::{Device, Tensor};

/// A weight for each cluster: inverse to its size, with a mean of 1 over the clustered samples.
#[derive(Debug)]
pub struct ClusterWeights {
    /// `[k]`, f32.
    weights: Tensor,
}

impl ClusterWeights {
    /// Weights for clusters of these sizes; none is above `limit`, the largest multiple of the mean.
    ///
    /// What the limit takes from the smallest clusters goes to the others, so the mean stays 1. An empty cluster, whose
    /// label may yet be given to a new sample, weighs as much as one of a single sample.
    pub fn new(sizes: &[u64], limit: f64, device: Device) -> Result<Self> {
        let weights: Vec<f32> = balanced_weights(sizes, limit)?.into_iter().map(|weight| weight as f32).collect();
        Ok(Self { weights: Tensor::f_from_slice(&weights)?.f_to_device(device)? })
    }

    /// The weights of samples with these labels: `[B]` of i64 in, `[B]` of f32 out.
    pub fn of(&self, labels: &Tensor) -> Result<Tensor> {
        Ok(self.weights.f_index_select(0, labels)?)
    }
}

/// `min(share / size, limit)` for each cluster, with the `share` that makes the mean over samples 1.
fn balanced_weights(sizes: &[u64], limit: f64) -> Result<Vec<f64>> {
    if limit.is_nan() || limit < 1.0 {
        return Err(Error::usage(format!("train.balance_limit = {limit} is below the mean weight, which is 1"))
            .with_hint("set it to 1 (no balance) or more"));
    }
    let mut ascending: Vec<u64> = sizes.iter().copied().filter(|&size| size > 0).collect();
    ascending.sort_unstable();
    let samples = ascending.iter().sum::<u64>() as f64;
    if samples == 0.0 {
        return Err(Error::data("no cluster has a sample to weight"));
    }
    // The smallest clusters are at the limit; the others share what is left equally.
    let mut at_limit = 0.0;
    let mut share = samples;
    for (limited, &size) in ascending.iter().enumerate() {
        share = (samples - limit * at_limit) / (ascending.len() - limited) as f64;
        if share <= limit * size as f64 {
            break;
        }
        at_limit += size as f64;
    }
    Ok(sizes.iter().map(|&size| (share / size.max(1) as f64).min(limit)).collect())
}

/// Plans the batches of a window of samples with these labels: indices into the window, `batch` for each step, such that
/// every cluster present is drawn equally often, give or take one.
///
/// Each of `m` clusters present gets a quota of `⌊N / m⌋ + 1` of the `N` samples drawn: with replacement where it has fewer
/// members, without where it has as many or more. The draws are shuffled and cut to `N`. `seed` and the window's first
/// `step` fix everything.
pub fn draw_window(labels: &[i64], batch: usize, seed: u64, step: u64) -> Vec<Vec<usize>> {
    let mut members: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (index, &label) in labels.iter().enumerate() {
        members.entry(label).or_default().push(index);
    }
    if members.is_empty() || batch == 0 {
        return Vec::new();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step);
    let quota = labels.len() / members.len() + 1;
    let mut drawn = Vec::with_capacity(quota * members.len());
    for cluster in members.values() {
        if cluster.len() < quota {
            drawn.extend((0..quota).map(|_| cluster[rng.random_range(0..cluster.len())]));
        } else {
            drawn.extend(cluster.sample(&mut rng, quota).copied());
        }
    }
    drawn.shuffle(&mut rng);
    drawn.truncate(labels.len());
    drawn.chunks_exact(batch).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use proptest::prelude::*;

    /// Sizes 1/1, 1/2, 1/3, ... of `largest`.
    fn zipf(clusters: u64, largest: u64) -> Vec<u64> {
        (1..=clusters).map(|rank| (largest / rank).max(1)).collect()
    }

    #[test]
    fn every_cluster_weighs_the_same_unless_the_limit_cuts_it() -> Result<()> {
        let sizes = zipf(50, 4_000);
        let weights = balanced_weights(&sizes, 1_000.0)?;
        let pulls: Vec<f64> = weights.iter().zip(&sizes).map(|(weight, &size)| weight * size as f64).collect();
        assert!(pulls.iter().all(|pull| (pull - pulls[0]).abs() < 1e-9 * pulls[0]), "{pulls:?}");

        let labels = Tensor::from_slice(&[0_i64, 49, 49]);
        let of_labels = Vec::<f32>::try_from(ClusterWeights::new(&sizes, 1_000.0, Device::Cpu)?.of(&labels)?)?;
        assert_eq!(of_labels, [weights[0] as f32, weights[49] as f32, weights[49] as f32]);
        Ok(())
    }

    #[test]
    fn a_limit_of_one_is_no_balance_and_less_is_refused() -> Result<()> {
        assert_eq!(balanced_weights(&[10, 1, 0], 1.0)?, [1.0, 1.0, 1.0]);
        assert!(balanced_weights(&[10, 1], 0.5).is_err());
        assert!(balanced_weights(&[0, 0], 2.0).is_err());
        Ok(())
    }

    proptest! {
        #[test]
        fn weights_have_mean_one_and_keep_the_limit(
            sizes in prop::collection::vec(0_u64..2_000, 1..40),
            limit in 1.0_f64..20.0,
        ) {
            prop_assume!(sizes.iter().any(|&size| size > 0));
            let weights = balanced_weights(&sizes, limit).expect("weights");
            let samples = sizes.iter().sum::<u64>() as f64;
            let mean = weights.iter().zip(&sizes).map(|(weight, &size)| weight * size as f64).sum::<f64>() / samples;
            prop_assert!((mean - 1.0).abs() < 1e-9, "mean {}", mean);
            for (left, right) in weights.iter().zip(&sizes) {
                prop_assert!(*left <= limit);
                let lighter = weights.iter().zip(&sizes).filter(|(weight, _)| *weight < left);
                prop_assert!(lighter.into_iter().all(|(_, size)| size > right));
            }
        }
    }

    #[test]
    fn a_window_draws_every_cluster_equally_often() {
        let mut labels = Vec::new();
        for (cluster, size) in zipf(40, 500).into_iter().enumerate() {
            labels.extend(std::iter::repeat_n(cluster as i64, size as usize));
        }
        let batch = 64;
        labels.truncate(labels.len() / batch * batch);
        let clusters = labels[labels.len() - 1] as usize + 1;
        let quota = labels.len() / clusters + 1;
        let batches = draw_window(&labels, batch, 31, 100);
        assert_eq!(batches.len(), labels.len() / batch);
        assert!(batches.iter().all(|indices| indices.len() == batch));

        let mut drawn = vec![0; clusters];
        let mut times = vec![0; labels.len()];
        for index in batches.concat() {
            drawn[labels[index] as usize] += 1;
            times[index] += 1;
        }
        let cut = quota * clusters - labels.len();
        assert!(drawn.iter().all(|&count| count <= quota) && drawn.iter().sum::<usize>() == quota * clusters - cut);
        assert!(drawn.iter().all(|&count| count + 8 > quota), "quota {quota}, drawn {drawn:?}");
        // The largest cluster has more members than its quota: none of them comes twice.
        assert!(labels.iter().zip(&times).all(|(&label, &times)| label != 0 || times <= 1));
    }

    #[test]
    fn the_seed_and_the_step_fix_a_window() {
        let labels: Vec<i64> = (0..96).map(|index| index % 5).collect();
        let window = draw_window(&labels, 32, 1, 7);
        assert_eq!(window, draw_window(&labels, 32, 1, 7));
        assert_ne!(window, draw_window(&labels, 32, 1, 8));
        assert_ne!(window, draw_window(&labels, 32, 2, 7));
        assert!(draw_window(&[], 32, 1, 7).is_empty());
    }
}
