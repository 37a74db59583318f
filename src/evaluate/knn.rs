//! k-nearest-neighbour classification of frozen features (Wu et al., CVPR 2018, section 3.4).
//!
//! In go train and test features `[N, D]` with labels; out comes the share of test rows whose class the `k` most similar
//! train rows vote for. Similarity is the cosine. A vote weighs `exp(similarity / temperature)`, or the same for all. Train and
//! test are taken in tiles, so their product never exists in full.

use super::{Classes, check_sets};
use crate::cluster::{block, blocks};
use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// Test rows that are compared at once.
const TEST_TILE: i64 = 512;
/// Shortest row that has a direction.
const SHORTEST_ROW: f64 = 1e-12;
/// Weight of similarity among equal votes of a plain majority: together less than one vote for any `k` below 1,000,000.
const TIE_BREAK: f64 = 1e-6;

/// How to vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Neighbours.
    pub k: usize,
    /// Divides the similarity in the exponent of a vote; none lets every neighbour count one, equal counts going to the
    /// more similar.
    pub temperature: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { k: 20, temperature: Some(0.07) }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Share of test rows classified rightly.
    pub accuracy: f64,
    /// Test rows.
    pub tested: usize,
    /// Classes of the train set.
    pub classes: usize,
}

/// Classifies each row of `test` `[M, D]` by its neighbours in `train` `[N, D]`.
pub fn accuracy(
    train: &Tensor,
    train_labels: &[i64],
    test: &Tensor,
    test_labels: &[i64],
    options: Options,
) -> Result<Report> {
    let _no_grad = tch::no_grad_guard();
    check_sets(train, train_labels, test, test_labels)?;
    if options.k == 0 || options.k > train_labels.len() {
        return Err(Error::usage(format!("{} neighbours among {} train rows", options.k, train_labels.len()))
            .with_hint("choose a k between 1 and the number of train rows"));
    }
    if options.temperature.is_some_and(|temperature| temperature.is_nan() || temperature <= 0.0) {
        return Err(Error::usage("the temperature of the votes is not above 0"));
    }
    let device = train.device();
    let classes = Classes::of(train_labels);
    let train_classes = classes.number(train_labels)?.f_to_device(device)?;
    let test_classes = classes.number(test_labels)?.f_to_device(device)?;
    let test_rows = test.size2()?.0;
    let mut right = 0;
    for start in (0..test_rows).step_by(TEST_TILE as usize) {
        let len = TEST_TILE.min(test_rows - start);
        let queries = unit_rows(&block(test, (start, len), device, Kind::Float)?)?;
        let (similarities, rows) = neighbours(train, &queries, options.k as i64)?;
        let mut votes = Tensor::f_zeros([len, classes.len()], (Kind::Double, device))?;
        let ballots = train_classes.f_index_select(0, &rows.f_reshape([-1])?)?.f_view_as(&rows)?;
        let _ = votes.f_scatter_add_(1, &ballots, &weights(&similarities, options.temperature)?)?;
        let hits = votes.f_argmax(1, false)?.f_eq_tensor(&test_classes.f_narrow(0, start, len)?)?;
        right += i64::try_from(hits.f_sum(Kind::Int64)?)?;
    }
    Ok(Report { accuracy: right as f64 / test_rows as f64, tested: test_labels.len(), classes: classes.len() as usize })
}

/// Similarities and row numbers, both `[B, k]`, of the `k` train rows most similar to each of `queries` `[B, D]`.
fn neighbours(train: &Tensor, queries: &Tensor, k: i64) -> Result<(Tensor, Tensor)> {
    let (train_rows, width) = train.size2()?;
    let device = queries.device();
    let mut best: Option<(Tensor, Tensor)> = None;
    for (start, len) in blocks(train_rows, 4 * width.max(queries.size2()?.0), device) {
        let tile = unit_rows(&block(train, (start, len), device, Kind::Float)?)?;
        let (similarities, rows) = queries.f_matmul(&tile.f_tr()?)?.f_topk(k.min(len), 1, true, true)?;
        let rows = rows.f_add_scalar(start)?;
        best = Some(match best {
            None => (similarities, rows),
            Some((best_similarities, best_rows)) => {
                let similarities = Tensor::f_cat(&[best_similarities, similarities], 1)?;
                let rows = Tensor::f_cat(&[best_rows, rows], 1)?;
                let (kept, order) = similarities.f_topk(k.min(similarities.size2()?.1), 1, true, true)?;
                (kept, rows.f_gather(1, &order, false)?)
            }
        });
    }
    best.ok_or_else(|| Error::data("there are no train rows to compare with"))
}

/// The weight of each vote, f64; those of one query relative to its most similar neighbour, which keeps them finite.
fn weights(similarities: &Tensor, temperature: Option<f64>) -> Result<Tensor> {
    let similarities = similarities.f_to_kind(Kind::Double)?;
    let Some(temperature) = temperature else {
        return Ok(similarities.f_mul_scalar(TIE_BREAK)?.f_add_scalar(1.0)?);
    };
    let nearest = similarities.f_narrow(1, 0, 1)?;
    Ok(similarities.f_sub(&nearest)?.f_div_scalar(temperature)?.f_exp()?)
}

/// Rows of length one; a row of zeros stays.
fn unit_rows(rows: &Tensor) -> Result<Tensor> {
    let lengths = rows.f_square()?.f_sum_dim_intlist(1, true, Kind::Float)?.f_sqrt()?;
    Ok(rows.f_div(&lengths.f_clamp_min(SHORTEST_ROW)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::normal;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Noisy rows around one of three directions, and their class.
    fn sample(rows: usize, width: usize, seed: u64) -> (Vec<f64>, Vec<i64>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let labels: Vec<i64> = (0..rows).map(|_| [-5, 2, 40][rng.random_range(0..3)]).collect();
        let mut entries = Vec::new();
        for &label in &labels {
            let favoured = (label + 5) as usize % 3;
            for column in 0..width {
                let pull = if column % 3 == favoured { 0.4 } else { 0.0 };
                entries.push(f64::from(rng.random_range(-1.0_f32..1.0)) + pull);
            }
        }
        (entries, labels)
    }

    /// The definition, in plain loops.
    fn by_loops(
        train: &[f64],
        train_labels: &[i64],
        test: &[f64],
        test_labels: &[i64],
        width: usize,
        options: Options,
    ) -> f64 {
        let cosine = |left: &[f64], right: &[f64]| {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
        };
        let mut right = 0;
        for (query, label) in test.chunks(width).zip(test_labels) {
            let mut similar: Vec<(f64, i64)> =
                train.chunks(width).zip(train_labels).map(|(row, &label)| (cosine(query, row), label)).collect();
            similar.sort_by(|left, right| right.0.total_cmp(&left.0));
            let vote = |class: i64| -> f64 {
                let voters = similar[..options.k].iter().filter(|(_, label)| *label == class);
                voters.map(|(cosine, _)| options.temperature.map_or(1.0 + 1e-6 * cosine, |t| (cosine / t).exp())).sum()
            };
            let winner = [-5, 2, 40].into_iter().max_by(|&left, &right| vote(left).total_cmp(&vote(right)));
            right += usize::from(winner == Some(*label));
        }
        right as f64 / test_labels.len() as f64
    }

    #[test]
    fn votes_are_those_of_the_definition() -> Result<()> {
        let width = 12;
        let (train, train_labels) = sample(300, width, 1);
        let (test, test_labels) = sample(200, width, 2);
        let tensor = |entries: &[f64]| Tensor::from_slice(entries).view([-1, width as i64]);
        for options in [Options::default(), Options { k: 5, temperature: None }, Options { k: 1, temperature: None }] {
            let report = accuracy(&tensor(&train), &train_labels, &tensor(&test), &test_labels, options)?;
            let expected = by_loops(&train, &train_labels, &test, &test_labels, width, options);
            assert!(expected > 0.4 && expected < 0.95, "{expected} would not tell right from wrong");
            assert_eq!(report, Report { accuracy: expected, tested: 200, classes: 3 });
        }
        Ok(())
    }

    #[test]
    fn many_tiles_find_the_neighbours_that_one_would() -> Result<()> {
        // Rows of 2^20 entries make tiles of 4 rows.
        let train = normal(3, 40, 1 << 20);
        let queries = unit_rows(&train.narrow(0, 17, 3))?;
        let (similarities, rows) = neighbours(&train, &queries, 20)?;
        let all = queries.matmul(&unit_rows(&train)?.tr());
        let (expected, expected_rows) = all.topk(20, 1, true, true);
        assert!(similarities.allclose(&expected, 1e-5, 1e-6, false));
        assert_eq!(rows, expected_rows);
        Ok(())
    }

    #[test]
    fn a_class_never_seen_and_impossible_questions() -> Result<()> {
        let train = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0]).view([2, 2]);
        let one = Options { k: 1, temperature: None };
        let report = accuracy(&train, &[0, 1], &train, &[0, 9], one)?;
        assert_eq!(report.accuracy, 0.5);
        assert!(accuracy(&train, &[0, 1], &train, &[0, 1], Options { k: 3, ..one }).is_err());
        assert!(accuracy(&train, &[0, 0], &train, &[0, 1], one).is_err());
        assert!(accuracy(&train, &[0], &train, &[0, 1], one).is_err());
        assert!(accuracy(&train, &[0, 1], &train.view([1, 4]), &[0], one).is_err());
        Ok(())
    }
}
