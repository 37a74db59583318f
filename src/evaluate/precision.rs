//! Average precision, in the three ways that the field computes it.
//!
//! In: for each thing that was ranked, a score and whether it counts. Out: the area under precision over recall, in `[0, 1]`. The ways
//! differ on purpose, and numbers of one are not numbers of another: [`by_steps`] is what scikit-learn computes and VOC07
//! classification reports, [`of_detections`] is that of the VOC development kit, [`by_trapezia`] that of the Oxford buildings.
//!
//! What can go wrong: nothing that counts, of which there is no precision; the functions give none then.

use std::cmp::Ordering;

/// Sum over distinct scores, from the highest on, of the recall gained times the precision there (scikit-learn's
/// `average_precision_score`). Things of one score count together, whatever their order.
pub fn by_steps(scores: &[f32], counts: &[bool]) -> Option<f64> {
    let order = ranked(scores);
    let relevant = counts.iter().filter(|counts| **counts).count();
    if relevant == 0 {
        return None;
    }
    let (mut seen, mut found, mut area) = (0, 0, 0.0);
    for tied in order.chunk_by(|&left, &right| scores[left] == scores[right]) {
        let gained = tied.iter().filter(|&&at| counts[at]).count();
        seen += tied.len();
        found += gained;
        area += gained as f64 / relevant as f64 * found as f64 / seen as f64;
    }
    Some(area)
}

/// How the VOC development kit reads the area off a curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Mean of the highest precision at a recall of 0, 0.1, ..., 1 or more (VOC07).
    ElevenPoints,
    /// Area under the highest precision at each recall or more (VOC10 and later).
    Area,
}

/// Of detections in the order of their scores, each right or wrong, with `relevant` things to find (Everingham et al., IJCV 2010,
/// section 3.4).
pub fn of_detections(right: &[bool], relevant: usize, reading: Reading) -> Option<f64> {
    if relevant == 0 {
        return None;
    }
    let mut found = 0;
    let mut curve: Vec<(f64, f64)> = Vec::with_capacity(right.len());
    for (at, &right) in right.iter().enumerate() {
        found += usize::from(right);
        curve.push((found as f64 / relevant as f64, found as f64 / (at + 1) as f64));
    }
    // The highest precision at this recall or more.
    for at in (1..curve.len()).rev() {
        curve[at - 1].1 = curve[at - 1].1.max(curve[at].1);
    }
    let area = match reading {
        Reading::ElevenPoints => {
            // A point is where its recall, as the kit computes it, is reached: tenths are compared as such.
            let precision_at = |tenths: usize| {
                let reached = curve.iter().find(|(recall, _)| *recall >= tenths as f64 / 10.0);
                reached.map_or(0.0, |(_, precision)| *precision)
            };
            (0..=10).map(precision_at).sum::<f64>() / 11.0
        }
        Reading::Area => {
            let gains = curve.iter().scan(0.0, |before, &(recall, precision)| {
                let gained = recall - std::mem::replace(before, recall);
                Some(gained * precision)
            });
            // The sum of nothing is -0.
            gains.sum::<f64>() + 0.0
        }
    };
    Some(area)
}

/// What something in a ranking is for its query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relevance {
    /// Counts.
    Positive,
    /// Is passed over, as if it were not there.
    Junk,
    /// Counts against.
    Negative,
}

/// Of a ranking from the nearest on, with `relevant` positives to find: recall gained times the mean of the precision before and after
/// (`compute_ap` of the Oxford buildings, Philbin et al., CVPR 2007).
pub fn by_trapezia(ranking: impl IntoIterator<Item = Relevance>, relevant: usize) -> Option<f64> {
    if relevant == 0 {
        return None;
    }
    let (mut area, mut recall_before, mut precision_before) = (0.0, 0.0, 1.0);
    let (mut rank, mut found) = (0, 0);
    for relevance in ranking {
        if relevance == Relevance::Junk {
            continue;
        }
        found += usize::from(relevance == Relevance::Positive);
        rank += 1;
        let (recall, precision) = (f64::from(found as u32) / relevant as f64, found as f64 / f64::from(rank));
        area += (recall - recall_before) * (precision_before + precision) / 2.0;
        (recall_before, precision_before) = (recall, precision);
    }
    Some(area)
}

/// Numbers from the highest score on; equal ones keep their order, and what is no number comes last.
pub fn ranked(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&left, &right| match (scores[left].is_nan(), scores[right].is_nan()) {
        (false, false) => scores[right].total_cmp(&scores[left]),
        (true, true) => Ordering::Equal,
        (left, _) => {
            if left {
                Ordering::Greater
            } else {
                Ordering::Less
            }
        }
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(found: Option<f64>, expected: f64) {
        let found = found.expect("something counts");
        assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
    }

    #[test]
    fn steps_by_hand() {
        // Hits at ranks 1, 3 and 4 of 5: (1/1 + 2/3 + 3/4) / 3.
        close(by_steps(&[0.9, 0.8, 0.7, 0.6, 0.5], &[true, false, true, true, false]), (1.0 + 2.0 / 3.0 + 0.75) / 3.0);
        // One tie of a hit and a miss: recall 1 is reached at precision 1/2, whichever comes first.
        close(by_steps(&[0.5, 0.5], &[true, false]), 0.5);
        close(by_steps(&[0.5, 0.5], &[false, true]), 0.5);
        assert_eq!(by_steps(&[0.5], &[false]), None);
    }

    #[test]
    fn detections_by_hand() {
        // Right, wrong, right, and one thing never found: recall 1/3, 1/3, 2/3 at precision 1, 1/2, 2/3.
        let right = [true, false, true];
        close(of_detections(&right, 3, Reading::Area), 1.0 / 3.0 + 2.0 / 9.0);
        // Recall 0 to 0.3 at precision 1, 0.4 to 0.6 at 2/3, nothing beyond.
        close(of_detections(&right, 3, Reading::ElevenPoints), (4.0 + 3.0 * 2.0 / 3.0) / 11.0);
        close(of_detections(&[true, true], 2, Reading::ElevenPoints), 1.0);
        assert!(of_detections(&[], 2, Reading::Area).is_some_and(|area| area == 0.0 && area.is_sign_positive()));
        assert_eq!(of_detections(&[false], 0, Reading::Area), None);
    }

    #[test]
    fn trapezia_by_hand() {
        use Relevance::{Junk, Negative, Positive};
        // Hit, miss, hit: 1/2 · (1 + 1)/2 + 0 + 1/2 · (1/2 + 2/3)/2.
        close(by_trapezia([Positive, Negative, Positive], 2), 0.5 + 0.25 * (0.5 + 2.0 / 3.0));
        close(by_trapezia([Junk, Positive, Junk, Negative, Junk, Positive], 2), 0.5 + 0.25 * (0.5 + 2.0 / 3.0));
        close(by_trapezia([Negative, Positive], 1), 0.25); // (0 + 1/2) / 2
        assert_eq!(by_trapezia([Junk, Negative], 0), None);
    }

    proptest! {
        /// Straight from the definition: for each distinct score, everything at it or above.
        #[test]
        fn steps_follow_their_definition(rows in proptest::collection::vec((0u8..6, any::<bool>()), 1..40)) {
            let (scores, counts): (Vec<f32>, Vec<bool>) = rows.iter().map(|&(score, counts)| (f32::from(score), counts)).unzip();
            let relevant = counts.iter().filter(|counts| **counts).count();
            let at_or_above = |bar: f32| {
                let kept = rows.iter().filter(|(score, _)| f32::from(*score) >= bar);
                kept.fold((0, 0), |(seen, found), (_, counts)| (seen + 1, found + usize::from(*counts)))
            };
            let (mut expected, mut recall_before) = (0.0, 0.0);
            for bar in (0u8..6).rev().map(f32::from).filter(|bar| scores.contains(bar)) {
                let (seen, found) = at_or_above(bar);
                let recall = found as f64 / relevant.max(1) as f64;
                expected += (recall - recall_before) * found as f64 / seen as f64;
                recall_before = recall;
            }
            match by_steps(&scores, &counts) {
                Some(found) => prop_assert!((found - expected).abs() < 1e-12),
                None => prop_assert_eq!(relevant, 0),
            }
        }
    }
}
