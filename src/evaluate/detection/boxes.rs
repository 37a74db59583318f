//! Boxes as a detector moves and sorts them out.
//!
//! In: regions, and the objects or corrections that belong to them. Out: corrections `(dx, dy, log dw, log dh)`, corrected
//! boxes within a photograph, and those that stay after greedy suppression. [`Bounds`] end one past the last pixel, so that
//! their sides are those that the VOC kit counts with its `+ 1`, and coding and decoding undo each other exactly.
//!
//! Nothing can go wrong: a correction that overflows ends at the border of the photograph.

use crate::evaluate::precision::ranked;
use crate::evaluate::voc::devkit::Bounds;

/// Deviations by which corrections are divided, for a network to predict numbers of one size (the means are 0): the values
/// that Fast R-CNN's published code takes where it does not count its own.
pub const DEVIATIONS: [f32; 4] = [0.1, 0.1, 0.2, 0.2];

/// What takes `region` to `object`: shift of the centre in sides of the region, logarithm of the growth of the sides, each over
/// its deviation (Girshick, ICCV 2015, section 2.3, after Girshick et al., CVPR 2014, appendix C).
pub fn encode(region: Bounds, object: Bounds) -> [f32; 4] {
    let (x, y, width, height) = centred(region);
    let (to_x, to_y, to_width, to_height) = centred(object);
    let plain = [(to_x - x) / width, (to_y - y) / height, (to_width / width).ln(), (to_height / height).ln()];
    [0, 1, 2, 3].map(|at| plain[at] / DEVIATIONS[at])
}

/// Undoes [`encode`].
pub fn decode(region: Bounds, correction: [f32; 4]) -> Bounds {
    let (x, y, width, height) = centred(region);
    let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|at| correction[at] * DEVIATIONS[at]);
    let (x, y) = (x + dx * width, y + dy * height);
    let (half_width, half_height) = (width * dw.exp() / 2.0, height * dh.exp() / 2.0);
    Bounds { left: x - half_width, top: y - half_height, right: x + half_width, bottom: y + half_height }
}

/// The part of a box within a photograph of `width` by `height` pixels.
pub fn clip(bounds: Bounds, (width, height): (u32, u32)) -> Bounds {
    let (width, height) = (width as f32, height as f32);
    Bounds {
        left: bounds.left.max(0.0).min(width),
        top: bounds.top.max(0.0).min(height),
        right: bounds.right.min(width).max(0.0),
        bottom: bounds.bottom.min(height).max(0.0),
    }
}

/// The box on the photograph seen in a mirror.
pub fn mirror(bounds: Bounds, width: u32) -> Bounds {
    let width = width as f32;
    Bounds { left: width - bounds.right, right: width - bounds.left, ..bounds }
}

/// Greedy non-maximum suppression: numbers of the boxes, from the highest score on, that overlap none before them by more than
/// `threshold`.
pub fn suppress(boxes: &[Bounds], scores: &[f32], threshold: f32) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for candidate in ranked(scores) {
        if kept.iter().all(|&before| boxes[before].overlap(boxes[candidate]) <= threshold) {
            kept.push(candidate);
        }
    }
    kept
}

fn centred(bounds: Bounds) -> (f32, f32, f32, f32) {
    let (width, height) = (bounds.right - bounds.left, bounds.bottom - bounds.top);
    (bounds.left + width / 2.0, bounds.top + height / 2.0, width, height)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds(left: f32, top: f32, right: f32, bottom: f32) -> Bounds {
        Bounds { left, top, right, bottom }
    }

    #[test]
    fn corrections_by_hand() {
        // Twice as wide, as high, moved right by half a width and up by a quarter of a height.
        let region = bounds(10.0, 20.0, 30.0, 60.0);
        let object = bounds(10.0, 10.0, 50.0, 50.0);
        let expected = [0.5 / 0.1, -0.25 / 0.1, 2f32.ln() / 0.2, 0.0];
        for (found, expected) in encode(region, object).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
        }
        assert_eq!(decode(region, [0.0; 4]), region);
    }

    #[test]
    fn what_overflows_ends_at_the_border() {
        let region = bounds(10.0, 20.0, 30.0, 60.0);
        assert_eq!(clip(decode(region, [0.0, 0.0, 1e9, 1e9]), (100, 80)), bounds(0.0, 0.0, 100.0, 80.0));
        let outside = clip(decode(region, [1e4, 0.0, 0.0, 0.0]), (100, 80));
        assert_eq!(outside.area(), 0.0);
    }

    #[test]
    fn suppression_by_hand() {
        let boxes = [bounds(0.0, 0.0, 10.0, 10.0), bounds(0.0, 0.0, 10.0, 8.0), bounds(0.0, 0.0, 10.0, 3.0)];
        // Overlaps: 0.8 of the first two, 0.3 and 0.375 with the last.
        assert_eq!(suppress(&boxes, &[0.5, 0.9, 0.1], 0.3), [1]);
        assert_eq!(suppress(&boxes, &[0.9, 0.5, 0.1], 0.3), [0, 2], "an overlap of 0.3 is not more than 0.3");
        assert_eq!(suppress(&boxes, &[0.5, 0.9, 0.1], 0.8), [1, 0, 2]);
        assert!(suppress(&[], &[], 0.3).is_empty());
    }

    fn any_bounds() -> impl Strategy<Value = Bounds> {
        (0f32..400.0, 0f32..300.0, 1f32..400.0, 1f32..300.0)
            .prop_map(|(left, top, width, height)| bounds(left, top, left + width, top + height))
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(region in any_bounds(), object in any_bounds()) {
            let found = decode(region, encode(region, object));
            // The centre comes back to a rounding error of the sides, and the sides to one of the exponential.
            let slack = 1e-5 * (1000.0 + region.right + region.bottom);
            for (found, expected) in [(found.left, object.left), (found.top, object.top), (found.right, object.right), (found.bottom, object.bottom)] {
                prop_assert!((found - expected).abs() < slack, "{} instead of {}", found, expected);
            }
        }

        #[test]
        fn mirrored_corrections_differ_in_the_sign_of_dx_alone(region in any_bounds(), object in any_bounds()) {
            let [dx, dy, dw, dh] = encode(region, object);
            let [mirrored, y, w, h] = encode(mirror(region, 800), mirror(object, 800));
            let near = |a: f32, b: f32| (a - b).abs() <= 2e-2 * (1.0 + a.abs());
            prop_assert!(near(mirrored, -dx) && near(y, dy) && near(w, dw) && near(h, dh));
            prop_assert_eq!(mirror(mirror(object, 800), 800).top, object.top);
        }
    }
}
