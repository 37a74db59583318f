//! Evaluation of frozen features: what a network has learnt, measured without training it further.
//!
//! In go features `[N, D]` and labels; out come accuracies. [`features`] reads and writes the feature files of `shoal embed`.
//! Everything works in blocks of rows and gives the same result for the same input.

mod ahead;
pub mod detection;
pub mod features;
pub mod knn;
mod lbfgs;
pub mod linear;
pub mod pooling;
pub mod precision;
pub mod probes;
pub mod results;
pub mod retrieval;
pub mod voc;

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

/// Labels of any value, numbered from 0 in the order of their values in the train set.
struct Classes {
    numbers: BTreeMap<i64, i64>,
}

impl Classes {
    fn of(train_labels: &[i64]) -> Self {
        let mut numbers: BTreeMap<i64, i64> = train_labels.iter().map(|&label| (label, 0)).collect();
        for (number, slot) in numbers.values_mut().enumerate() {
            *slot = number as i64;
        }
        Self { numbers }
    }

    fn len(&self) -> i64 {
        self.numbers.len() as i64
    }

    /// Numbers `[N]` of i64; a class that the train set lacks is -1, which no prediction equals.
    fn number(&self, labels: &[i64]) -> Result<Tensor> {
        let numbers: Vec<i64> = labels.iter().map(|label| self.numbers.get(label).copied().unwrap_or(-1)).collect();
        Ok(Tensor::f_from_slice(&numbers)?)
    }
}

/// Checks that train and test set have rows of one length, a label for each row, and two classes to tell apart.
fn check_sets(train: &Tensor, train_labels: &[i64], test: &Tensor, test_labels: &[i64]) -> Result<()> {
    let (train_rows, train_width) = train.size2()?;
    let (test_rows, test_width) = test.size2()?;
    if train_rows as usize != train_labels.len() || test_rows as usize != test_labels.len() {
        return Err(Error::data(format!(
            "{train_rows} train rows with {} labels, {test_rows} test rows with {}",
            train_labels.len(),
            test_labels.len()
        )));
    }
    if train_width != test_width {
        return Err(Error::data(format!("train features have {train_width} entries, test features {test_width}"))
            .with_hint("both must come from the same network and layer"));
    }
    if test_rows == 0 || train_labels.iter().all(|label| label == &train_labels[0]) {
        return Err(Error::data(format!(
            "{test_rows} test rows, and {train_rows} train rows with fewer than two classes, measure nothing"
        ))
        .with_hint("the shards need `.cls` members with at least two classes"));
    }
    Ok(())
}
