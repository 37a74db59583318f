//! Scoring: the sum of the raw logits of random crops, and from it the average precision of each class.
//!
//! In: a split and a [`Classifier`]. Out: scores `[N][20]`, then an average precision a class, over the photographs on which the class is
//! present or absent: where all of its objects are difficult, a photograph counts neither way. A class that is present nowhere has none.

use super::Settings;
use super::crops::Cropper;
use super::data::Split;
use super::network::Classifier;
use crate::error::{Error, Result};
use crate::evaluate::ahead::ahead;
use crate::evaluate::precision::by_steps;
use crate::evaluate::voc::devkit::{CLASSES, Presence};
use crate::model::{Mode, Normalizer};
use crate::seed;
use tch::{Device, Kind};

/// Summed logits of every photograph, class by class. `at_once` is how many crops go through the network together, and
/// `go_on` is told how many photographs are done.
///
/// # Errors
/// A photograph that cannot be decoded; an interruption, where `go_on` says no.
pub fn logits(
    classifier: &Classifier,
    split: &Split,
    (normalizer, settings): (&Normalizer, &Settings),
    (threads, at_once): (usize, usize),
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<Vec<[f32; CLASSES.len()]>> {
    let _no_grad = tch::no_grad_guard();
    let backbone = classifier.backbone();
    let crops = settings.crops;
    let seed = seed::of(settings.seed, "voc test crops", 0);
    let cropper = Cropper::new(backbone.size(), settings.area, seed, threads)?;
    let rows_at_once = (at_once / crops).max(1);
    let rows: Vec<usize> = (0..split.len()).collect();
    let blocks: Vec<&[usize]> = rows.chunks(rows_at_once).collect();
    let mut found = Vec::with_capacity(split.len());
    let make = |block: usize| Ok((block, cropper.several_each(split, blocks[block], crops)?));
    ahead(0..blocks.len(), make, |(block, pixels)| {
        let images = normalizer.prepare(&pixels.f_to_device(backbone.device())?)?;
        let logits = classifier.logits(&images, Mode::Eval)?;
        let shape = [blocks[block].len() as i64, crops as i64, CLASSES.len() as i64];
        let sums = logits.f_view(shape)?.f_sum_dim_intlist(1, false, Kind::Float)?.f_to_device(Device::Cpu)?;
        let sums = Vec::<f32>::try_from(sums.f_flatten(0, -1)?)?;
        let (sums, _) = sums.as_chunks::<{ CLASSES.len() }>();
        found.extend_from_slice(sums);
        Ok(go_on(found.len()))
    })?;
    if found.len() < split.len() {
        return Err(Error::Interrupted { snapshot: None });
    }
    Ok(found)
}

/// Average precision of each class, in `[0, 1]`.
pub fn average_precisions(scores: &[[f32; CLASSES.len()]], split: &Split) -> [Option<f64>; CLASSES.len()] {
    std::array::from_fn(|class| {
        let ranked = scores.iter().zip(split.presence(class)).filter(|(_, presence)| *presence != Presence::Difficult);
        let (scores, present): (Vec<f32>, Vec<bool>) =
            ranked.map(|(scores, presence)| (scores[class], presence == Presence::Present)).unzip();
        by_steps(&scores, &present)
    })
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::kit_of;
    use super::*;
    use crate::config::Precision;
    use crate::model::Backbone;
    use tch::Tensor;

    #[test]
    fn difficult_photographs_are_left_out_and_absent_classes_have_no_precision() -> Result<()> {
        use Presence::{Absent, Difficult, Present};
        let split = kit_of(&[(&[2], Present), (&[2], Difficult), (&[], Absent), (&[2], Present)])?;
        let scores = [0.9, 0.8, 0.7, 0.6].map(|score: f32| [score; CLASSES.len()]);
        let found = average_precisions(&scores, &split);
        // Ranks 1 and 3 of present, absent, present.
        assert!((found[2].expect("birds") - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!(found[3], None);
        Ok(())
    }

    #[test]
    fn a_score_is_the_sum_over_crops_whatever_the_blocks() -> Result<()> {
        let split = kit_of(&[(&[1], Presence::Present), (&[2], Presence::Present), (&[4], Presence::Present)])?;
        let backbone = Backbone::random("small:rgb:32", 3, Device::Cpu, Precision::Fp32)?;
        let settings = Settings { crops: 4, ..Settings::default() };
        let classifier = Classifier::new(&backbone, &settings)?;
        let normalizer = Normalizer::new(&[0.5; 3], &[0.25; 3], Device::Cpu)?;
        let found = |at_once: usize| logits(&classifier, &split, (&normalizer, &settings), (1, at_once), |_| true);
        let (one, all) = (found(1)?, found(100)?);
        for (left, right) in one.as_flattened().iter().zip(all.as_flattened()) {
            assert!((left - right).abs() < 1e-4, "{left} {right}");
        }
        let cropper = Cropper::new(32, settings.area, seed::of(settings.seed, "voc test crops", 0), 1)?;
        let images = normalizer.prepare(&cropper.several_each(&split, &[1], 4)?)?;
        let sum: Tensor = classifier.logits(&images, Mode::Eval)?.sum_dim_intlist(0, false, Kind::Float);
        assert!((f64::from(all[1][7]) - sum.double_value(&[7])).abs() < 1e-4);
        assert!(matches!(
            logits(&classifier, &split, (&normalizer, &settings), (1, 1), |done| done < 2),
            Err(Error::Interrupted { .. })
        ));
        Ok(())
    }
}
