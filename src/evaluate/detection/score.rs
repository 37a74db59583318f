//! Average precision of detections, by the rules of the VOC 2007 kit (Everingham et al., IJCV 2010, section 4.2).
//!
//! In: detections on photographs, and what is annotated there. Out: average precision of each class. A detection belongs to the
//! object of its class that it overlaps most; it is right where that is half or more and the object was not found before by a
//! higher score; a second one on the same object is wrong; one on a difficult object counts neither way.

use super::find::Found;
use crate::evaluate::precision::{Reading, of_detections, ranked};
use crate::evaluate::voc::devkit::{CLASSES, Object};
use serde::Serialize;

/// Least overlap of a right detection.
const ENOUGH: f32 = 0.5;

/// What came out for one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Its name.
    pub class: &'static str,
    /// Objects to find, difficult ones left out.
    pub objects: usize,
    /// Detections, right or wrong.
    pub detections: usize,
    /// Objects found among them.
    pub found: usize,
    /// Mean of the precision at eleven recalls: the measure of VOC07. None without objects.
    pub ap: Option<f64>,
    /// Area under the curve: the measure of VOC10 and later.
    pub ap_area: Option<f64>,
}

/// One score for each class, in the order of the kit: `found` and `objects` of the same photographs.
pub fn by_class(found: &[Vec<Found>], objects: &[&[Object]]) -> Vec<ClassScore> {
    (0..CLASSES.len()).map(|class| of_class(class, found, objects)).collect()
}

/// Mean of the classes that have objects.
pub fn mean(scores: &[ClassScore], of: fn(&ClassScore) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = scores.iter().filter_map(of).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn of_class(class: usize, found: &[Vec<Found>], objects: &[&[Object]]) -> ClassScore {
    let of_class =
        |found: &'_ Vec<Found>| found.iter().filter(|found| found.class == class).copied().collect::<Vec<_>>();
    let detections: Vec<(usize, Found)> = found
        .iter()
        .enumerate()
        .flat_map(|(image, found)| of_class(found).into_iter().map(move |found| (image, found)))
        .collect();
    let scores: Vec<f32> = detections.iter().map(|(_, found)| found.score).collect();
    let mut is_taken: Vec<Vec<bool>> = objects.iter().map(|objects| vec![false; objects.len()]).collect();
    let mut right = Vec::with_capacity(detections.len());
    for at in ranked(&scores) {
        let (image, detection) = detections[at];
        let mut best: Option<(usize, f32)> = None;
        for (place, object) in objects[image].iter().enumerate().filter(|(_, object)| object.class == class) {
            let overlap = detection.bounds.overlap(object.bounds);
            if best.is_none_or(|(_, most)| overlap > most) {
                best = Some((place, overlap));
            }
        }
        match best.filter(|(_, overlap)| *overlap >= ENOUGH) {
            Some((place, _)) if objects[image][place].difficult => {}
            Some((place, _)) => right.push(!std::mem::replace(&mut is_taken[image][place], true)),
            None => right.push(false),
        }
    }
    let plain =
        |objects: &&[Object]| objects.iter().filter(|object| object.class == class && !object.difficult).count();
    let relevant = objects.iter().map(plain).sum();
    ClassScore {
        class: CLASSES[class],
        objects: relevant,
        detections: right.len(),
        found: right.iter().filter(|right| **right).count(),
        ap: of_detections(&right, relevant, Reading::ElevenPoints),
        ap_area: of_detections(&right, relevant, Reading::Area),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::voc::devkit::Bounds;

    const DOG: usize = 11;

    fn bounds(left: f32, right: f32) -> Bounds {
        Bounds { left, top: 0.0, right, bottom: 10.0 }
    }

    fn object(left: f32, right: f32, difficult: bool) -> Object {
        Object { class: DOG, bounds: bounds(left, right), difficult }
    }

    fn found(left: f32, right: f32, score: f32) -> Found {
        Found { class: DOG, score, bounds: bounds(left, right) }
    }

    fn of_dogs(found: &[Vec<Found>], objects: &[&[Object]]) -> ClassScore {
        by_class(found, objects)[DOG].clone()
    }

    #[test]
    fn a_second_detection_of_an_object_is_wrong() {
        let objects = [object(0.0, 100.0, false), object(200.0, 300.0, false)];
        // By score: right, wrong (found before), right.
        let detections = vec![found(200.0, 300.0, 0.1), found(0.0, 100.0, 0.8), found(0.0, 90.0, 0.9)];
        let score = of_dogs(&[detections], &[&objects]);
        assert_eq!((score.objects, score.detections, score.found), (2, 3, 2));
        assert!((score.ap_area.expect("objects") - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-12, "{score:?}");
        // Precision 1 at recalls 0 to 0.5, 2/3 from 0.6 on.
        assert!((score.ap.expect("objects") - (6.0 + 5.0 * 2.0 / 3.0) / 11.0).abs() < 1e-12, "{score:?}");
    }

    #[test]
    fn half_is_enough_and_less_is_not() {
        let objects = [object(0.0, 100.0, false)];
        assert_eq!(of_dogs(&[vec![found(0.0, 50.0, 0.9)]], &[&objects]).found, 1);
        assert_eq!(of_dogs(&[vec![found(0.0, 49.0, 0.9)]], &[&objects]).found, 0);
    }

    #[test]
    fn difficult_objects_count_neither_way() {
        let objects = [object(0.0, 100.0, true), object(200.0, 300.0, false)];
        let score =
            of_dogs(&[vec![found(0.0, 100.0, 0.9), found(0.0, 95.0, 0.8), found(200.0, 300.0, 0.7)]], &[&objects]);
        assert_eq!((score.objects, score.detections, score.found, score.ap_area), (1, 1, 1, Some(1.0)));
        let only = of_dogs(&[vec![found(0.0, 100.0, 0.9)]], &[&objects[..1]]);
        assert_eq!((only.objects, only.ap), (0, None));
    }

    #[test]
    fn a_detection_belongs_to_the_object_that_it_overlaps_most() {
        // It overlaps the taken object by 0.9 and the free one by 0.6: it is a second one of the first, not a first of the second.
        let objects = [object(0.0, 100.0, false), object(0.0, 60.0, false)];
        let score = of_dogs(&[vec![found(0.0, 100.0, 0.9), found(0.0, 90.0, 0.8)]], &[&objects]);
        assert_eq!((score.detections, score.found), (2, 1));
    }

    #[test]
    fn photographs_and_classes_are_kept_apart() {
        let dog = [object(0.0, 100.0, false)];
        let cat = [Object { class: 7, ..dog[0] }];
        let scores = by_class(&[vec![], vec![found(0.0, 100.0, 0.9)]], &[&dog, &cat]);
        assert_eq!((scores[DOG].detections, scores[DOG].found, scores[DOG].ap), (1, 0, Some(0.0)));
        assert_eq!((scores[7].objects, scores[7].detections), (1, 0));
        assert_eq!(mean(&scores, |score| score.ap), Some(0.0));
        assert_eq!(mean(&scores[..1], |score| score.ap), None);
    }
}
