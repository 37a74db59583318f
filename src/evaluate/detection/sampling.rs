//! Which regions a step of training sees (Girshick, ICCV 2015, section 2.3, "Mini-batch sampling").
//!
//! In: a scene. Out: regions drawn without repetition, a quarter of them on objects, with the class that each is to be given and
//! the correction that takes it to its object. Objects stand among the regions themselves; difficult ones take no part.

use super::boxes;
use super::scene::Scene;
use crate::evaluate::voc::devkit::{Bounds, Object};
use rand::Rng;
use rand::seq::IndexedRandom;

/// Overlap with an object from which on a region is on it.
const ON_OBJECT: f32 = 0.5;
/// Overlap from which on a region that is on none is shown as background: those around objects are the hard ones.
const BACKGROUND: f32 = 0.1;
/// Share of regions on objects.
const SHARE: f64 = 0.25;

/// A region and what is to be said about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// On the photograph.
    pub region: Bounds,
    /// 0 for background, else one more than the place of the class in [`CLASSES`](crate::evaluate::voc::devkit::CLASSES).
    pub class: i64,
    /// The box of its object; itself for background.
    pub object: Bounds,
}

impl Sample {
    /// What takes the region to its object, on the photograph or as a mirror shows it.
    pub fn correction(&self, is_mirrored: bool) -> [f32; 4] {
        let [dx, dy, dw, dh] = boxes::encode(self.region, self.object);
        [if is_mirrored { -dx } else { dx }, dy, dw, dh]
    }
}

/// Up to `count` regions of a scene: as many on objects as `SHARE` allows, the rest background.
pub fn draw(scene: &Scene, count: usize, rng: &mut impl Rng) -> Vec<Sample> {
    let (on_objects, background) = candidates(scene);
    let most = (SHARE * count as f64).round() as usize;
    let mut drawn: Vec<Sample> = on_objects.sample(rng, most).copied().collect();
    let left = count - drawn.len();
    drawn.extend(background.sample(rng, left));
    drawn
}

/// Whether there is anything to draw.
pub fn is_usable(scene: &Scene) -> bool {
    let (on_objects, background) = candidates(scene);
    !(on_objects.is_empty() && background.is_empty())
}

/// Regions on objects, and background.
fn candidates(scene: &Scene) -> (Vec<Sample>, Vec<Sample>) {
    let objects: Vec<&Object> = scene.plain_objects().collect();
    let own = objects.iter().map(|object| object.bounds);
    let (mut on_objects, mut background) = (Vec::new(), Vec::new());
    for region in own.chain(scene.proposals.iter().copied()) {
        let mut best: (f32, Option<&Object>) = (0.0, None);
        for object in &objects {
            let overlap = region.overlap(object.bounds);
            if overlap > best.0 {
                best = (overlap, Some(object));
            }
        }
        match best {
            (overlap, Some(object)) if overlap >= ON_OBJECT => {
                on_objects.push(Sample { region, class: object.class as i64 + 1, object: object.bounds });
            }
            (overlap, _) if overlap >= BACKGROUND => background.push(Sample { region, class: 0, object: region }),
            _ => {}
        }
    }
    (on_objects, background)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn bounds(left: f32, right: f32) -> Bounds {
        Bounds { left, top: 0.0, right, bottom: 10.0 }
    }

    /// One dog from 0 to 100, one difficult cat from 200 to 300, and proposals `0..right`.
    fn scene(rights: impl IntoIterator<Item = f32>) -> Scene {
        let dog = Object { class: 11, bounds: bounds(0.0, 100.0), difficult: false };
        let cat = Object { class: 7, bounds: bounds(200.0, 300.0), difficult: true };
        let mut proposals: Vec<Bounds> = rights.into_iter().map(|right| bounds(0.0, right)).collect();
        proposals.push(bounds(200.0, 300.0));
        Scene { name: "1".into(), size: (300, 10), objects: vec![dog, cat], proposals }
    }

    #[test]
    fn classes_follow_the_overlap() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let drawn = draw(&scene([80.0, 50.0, 49.0, 10.0, 9.0]), 64, &mut rng);
        let with =
            |right: f32| drawn.iter().find(|sample| sample.region == bounds(0.0, right)).map(|sample| sample.class);
        assert_eq!([100.0, 80.0, 50.0].map(with), [Some(12); 3], "the object itself, and half of it");
        assert_eq!([49.0, 10.0].map(with), [Some(0); 2]);
        assert_eq!(with(9.0), None, "too far from objects");
        assert_eq!(drawn.len(), 5, "a difficult object is none: {drawn:?}");
    }

    #[test]
    fn a_quarter_is_on_objects_and_none_comes_twice() {
        let many = scene((10..=100).map(|right| right as f32));
        for seed in 0..20 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let drawn = draw(&many, 32, &mut rng);
            assert_eq!(drawn.len(), 32);
            assert_eq!(drawn.iter().filter(|sample| sample.class > 0).count(), 8);
            for (at, sample) in drawn.iter().enumerate() {
                // The object stands among the regions twice: itself, and as a proposal.
                let same = drawn[..at].iter().filter(|other| other.region == sample.region).count();
                assert!(same == 0 || sample.region == bounds(0.0, 100.0), "{sample:?}");
            }
        }
        let nothing = Scene { objects: vec![], ..many };
        assert!(!is_usable(&nothing) && is_usable(&scene([])));
    }

    #[test]
    fn a_mirror_turns_the_sign_of_the_shift() {
        let sample = Sample { region: bounds(0.0, 50.0), class: 12, object: bounds(0.0, 100.0) };
        let [dx, _, dw, _] = sample.correction(false);
        assert!((dx - 5.0).abs() < 1e-5 && (dw - 2f32.ln() / 0.2).abs() < 1e-5);
        assert_eq!(sample.correction(true)[0], -dx);
    }
}
