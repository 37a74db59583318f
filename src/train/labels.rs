//! Labels for the samples that pass by: clusters, or the classes of the stream.
//!
//! With `train.labels = "classes"` they come with the samples, and the decoders have let none pass that lacks one. Otherwise a label
//! is the nearest centroid of the sample's center view, encoded by the assigner: a copy of the student frozen at the last clustering.
//! Labels of a live student chase themselves into one cluster; that choice is kept to show it. With `refresh = "full"` labels are
//! those of the last full clustering, by id, as in the paper; a batch with a sample that was not in the list then is encoded.

use crate::error::{Error, Result};
use crate::ingest::SampleMeta;
use crate::shards::SampleId;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// Labels by id, from a clustering of the whole list.
pub type LabelsById = HashMap<SampleId, u32>;

/// `[B]` labels of `samples` from `known`, or `None` where one is missing.
pub fn look_up(known: &LabelsById, samples: &[SampleMeta], device: Device) -> Result<Option<Tensor>> {
    let mut labels = Vec::with_capacity(samples.len());
    for sample in samples {
        let Some(label) = known.get(&sample.id) else { return Ok(None) };
        labels.push(i64::from(*label));
    }
    Ok(Some(Tensor::f_from_slice(&labels)?.f_to_device(device)?))
}

/// `[B]` classes of `samples`, as the stream has them.
pub fn of_classes(samples: &[SampleMeta], device: Device) -> Result<Tensor> {
    let mut labels = Vec::with_capacity(samples.len());
    for sample in samples {
        let lacks = || Error::data(format!("{} of {} has no class to learn", sample.key, sample.shard));
        labels.push(sample.class.ok_or_else(lacks)?);
    }
    Ok(Tensor::f_from_slice(&labels)?.f_to_device(device)?)
}

/// How many of `[B]` labels have the highest of their `[B, k]` logits: a scalar of i64, where they are.
pub fn hits(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(logits.f_detach()?.f_argmax(1, false)?.f_eq_tensor(labels)?.f_sum(Kind::Int64)?)
}

/// Mean over the batch of the cross-entropy, each row times its weight: the loss of one step, a scalar.
///
/// `logits`: `[B, k]`, `labels`: `[B]`, `weights`: `[B]`, with mean 1 over the clustered rows.
pub fn loss(logits: &Tensor, labels: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let log_probabilities = logits.f_to_kind(Kind::Float)?.f_log_softmax(-1, Kind::Float)?;
    let picked = log_probabilities.f_gather(1, &labels.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?;
    let picked = match weights {
        Some(weights) => picked.f_mul(weights)?,
        None => picked,
    };
    Ok(picked.f_mean(Kind::Float)?.f_neg()?)
}

/// Stops a run whose loss is no number, before it reaches a snapshot.
pub fn check_finite(loss: f64, step: u64) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    Err(Error::data(format!("the loss is {loss} at or before step {step}: training has diverged"))
        .with_hint("go back to the last snapshot with a lower train.lr"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_that_of_libtorch_when_weights_are_one() -> Result<()> {
        let logits = Tensor::from_slice2(&[[1f32, 2.0, 0.5], [0.1, -3.0, 2.0]]);
        let labels = Tensor::from_slice(&[2i64, 0]);
        let expected = logits.cross_entropy_for_logits(&labels).double_value(&[]);
        let plain = loss(&logits, &labels, None)?.double_value(&[]);
        let ones = loss(&logits, &labels, Some(&Tensor::from_slice(&[1f32, 1.0])))?.double_value(&[]);
        let first_only = loss(&logits, &labels, Some(&Tensor::from_slice(&[2f32, 0.0])))?.double_value(&[]);
        assert!((plain - expected).abs() < 1e-6);
        assert!((ones - expected).abs() < 1e-6);
        assert!((first_only - 1.9644_f64).abs() < 1e-3, "{first_only}"); // ln(e^1 + e^2 + e^.5) - .5
        Ok(())
    }

    #[test]
    fn a_hit_is_a_label_with_the_highest_logit() -> Result<()> {
        let logits = Tensor::from_slice2(&[[1f32, 2.0, 0.5], [0.1, -3.0, 2.0], [4.0, 0.0, 3.9]]);
        assert_eq!(hits(&logits, &Tensor::from_slice(&[1i64, 2, 2]))?.int64_value(&[]), 2);
        assert_eq!(hits(&logits, &Tensor::from_slice(&[0i64, 0, 1]))?.int64_value(&[]), 0);
        Ok(())
    }

    #[test]
    fn a_loss_that_is_no_number_ends_the_run() {
        assert!(check_finite(f64::NAN, 3).is_err());
        assert!(check_finite(f64::INFINITY, 3).is_err());
        assert!(check_finite(0.0, 3).is_ok());
    }
}
