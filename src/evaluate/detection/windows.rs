//! Proposals of shoal's own, for photographs that come without any: windows of all sizes, ranked by their edges.
//!
//! In: a photograph. Out: about as many boxes as are asked for. Sides go down from those of the photograph by factors of √2,
//! proportions up to 3 : 1, and windows of one size lie a quarter of a side apart, so that no two are nearly the same. The rank
//! of a window is how much denser edges are just inside its border than just outside (as on an object before a plainer ground).
//! Each size has the same share of places, so that small objects get windows too; what a size cannot fill goes to the best of
//! the rest. They find fewer objects than selective search (Uijlings et al., IJCV 2013), which the paper's numbers rest on.

use crate::decode::Photograph;
use crate::evaluate::voc::devkit::Bounds;

/// Longest side of the picture on which edges are found.
const EDGE_SIDE: u32 = 256;
/// Shortest side of a window, in pixels of the photograph.
const SMALLEST: f32 = 16.0;
const WIDEST: f32 = 3.0;

/// At most `most` boxes, from the best rank on within each size.
pub fn propose(photograph: &Photograph, most: usize) -> Vec<Bounds> {
    let edges = Edges::of(photograph);
    let (width, height) = (photograph.width as f32, photograph.height as f32);
    let mut sizes: Vec<Vec<(f32, Bounds)>> = Vec::new();
    for window_width in sides(width) {
        for window_height in sides(height) {
            let proportion = window_width / window_height;
            if (1.0 / WIDEST..=WIDEST).contains(&proportion) {
                let mut windows = Vec::new();
                for top in places(height, window_height) {
                    for left in places(width, window_width) {
                        let window = Bounds { left, top, right: left + window_width, bottom: top + window_height };
                        windows.push((edges.rank(window), window));
                    }
                }
                sort(&mut windows);
                sizes.push(windows);
            }
        }
    }
    // From the size with the fewest windows on, what one leaves is shared by those that follow.
    sizes.sort_by_key(Vec::len);
    if sizes.is_empty() {
        return vec![Bounds { left: 0.0, top: 0.0, right: width, bottom: height }];
    }
    let (mut chosen, mut rest) = (Vec::new(), Vec::new());
    let count = sizes.len();
    for (at, mut windows) in sizes.into_iter().enumerate() {
        let share = (most - chosen.len()) / (count - at);
        rest.extend(windows.split_off(share.min(windows.len())));
        chosen.extend(windows);
    }
    sort(&mut rest);
    rest.truncate(most - chosen.len());
    chosen.extend(rest);
    chosen.into_iter().map(|(_, window)| window).collect()
}

fn sort(windows: &mut [(f32, Bounds)]) {
    windows.sort_by(|(left, _), (right, _)| right.total_cmp(left));
}

/// Sides of windows along a side of the photograph.
fn sides(length: f32) -> Vec<f32> {
    let sides = (0..).map(|step| length / 2f32.powf(step as f32 / 2.0));
    let mut sides: Vec<f32> = sides.take_while(|&side| side >= SMALLEST).collect();
    if sides.is_empty() {
        sides.push(length);
    }
    sides
}

/// Where windows of one side begin.
fn places(length: f32, side: f32) -> impl Iterator<Item = f32> {
    let steps = ((length - side) / (side / 4.0)).ceil().max(0.0) as usize;
    (0..=steps).map(move |step| if steps == 0 { 0.0 } else { (length - side) * step as f32 / steps as f32 })
}

/// Sums of the strength of edges over all rectangles from the top left corner.
struct Edges {
    sums: Vec<f64>,
    width: usize,
    height: usize,
    /// Pixels of it for one of the photograph, along both sides.
    scale: (f32, f32),
}

impl Edges {
    fn of(photograph: &Photograph) -> Self {
        let longest = photograph.width.max(photograph.height);
        let block = longest.div_ceil(EDGE_SIDE).max(1) as usize;
        let (full_width, full_height) = (photograph.width as usize, photograph.height as usize);
        let (width, height) = (full_width.div_ceil(block), full_height.div_ceil(block));

        // Means of the three channels over blocks.
        let mut grey = vec![0f32; width * height];
        let mut counts = vec![0f32; width * height];
        let (pixels, _) = photograph.rgb.as_chunks::<3>();
        for (at, pixel) in pixels.iter().enumerate() {
            let place = at / full_width / block * width + at % full_width / block;
            grey[place] += pixel.iter().map(|&value| f32::from(value)).sum::<f32>();
            counts[place] += 1.0;
        }
        for (value, count) in grey.iter_mut().zip(counts) {
            *value /= count;
        }

        let mut sums = vec![0.0; (width + 1) * (height + 1)];
        for y in 0..height {
            for x in 0..width {
                let along = grey[y * width + (x + 1).min(width - 1)] - grey[y * width + x.saturating_sub(1)];
                let down = grey[(y + 1).min(height - 1) * width + x] - grey[y.saturating_sub(1) * width + x];
                let above = |x: usize| sums[y * (width + 1) + x];
                let sum = f64::from(along.hypot(down)) + above(x + 1) - above(x) + sums[(y + 1) * (width + 1) + x];
                sums[(y + 1) * (width + 1) + x + 1] = sum;
            }
        }
        let scale = (width as f32 / full_width as f32, height as f32 / full_height as f32);
        Self { sums, width, height, scale }
    }

    /// Density of edges in the outer quarter of the window, less that of as wide a frame around it.
    fn rank(&self, window: Bounds) -> f32 {
        let frame = |grown: Bounds, shrunk: Bounds| {
            let ((more, more_area), (less, less_area)) = (self.sum(grown), self.sum(shrunk));
            if more_area > less_area { (more - less) / (more_area - less_area) } else { 0.0 }
        };
        (frame(window, grow(window, -0.125)) - frame(grow(window, 0.125), window)) as f32
    }

    /// Edges within a box, and how many pixels of the picture they are on.
    fn sum(&self, bounds: Bounds) -> (f64, f64) {
        let place = |at: f32, scale: f32, most: usize| ((at * scale).round().max(0.0) as usize).min(most);
        let (left, right) =
            (place(bounds.left, self.scale.0, self.width), place(bounds.right, self.scale.0, self.width));
        let (top, bottom) =
            (place(bounds.top, self.scale.1, self.height), place(bounds.bottom, self.scale.1, self.height));
        let corner = |x: usize, y: usize| self.sums[y * (self.width + 1) + x];
        let sum = corner(right, bottom) - corner(left, bottom) - corner(right, top) + corner(left, top);
        (sum, ((right - left) * (bottom - top)) as f64)
    }
}

/// Moves each border outwards by a share of the side.
fn grow(bounds: Bounds, share: f32) -> Bounds {
    let (x, y) = ((bounds.right - bounds.left) * share, (bounds.bottom - bounds.top) * share);
    Bounds { left: bounds.left - x, top: bounds.top - y, right: bounds.right + x, bottom: bounds.bottom + y }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stripes in `object` on a plain ground.
    fn photograph(width: u32, height: u32, object: Bounds) -> Photograph {
        let mut rgb = Vec::new();
        for y in 0..height {
            for x in 0..width {
                let within = (object.left..object.right).contains(&(x as f32))
                    && (object.top..object.bottom).contains(&(y as f32));
                let value = if within && (x + y) / 4 % 2 == 0 { 250 } else { 90 };
                rgb.extend([value; 3]);
            }
        }
        Photograph { width, height, rgb }
    }

    #[test]
    fn an_object_on_a_plain_ground_gets_a_window() {
        for object in [
            Bounds { left: 40.0, top: 60.0, right: 130.0, bottom: 150.0 },
            Bounds { left: 200.0, top: 20.0, right: 240.0, bottom: 110.0 },
            Bounds { left: 0.0, top: 0.0, right: 300.0, bottom: 220.0 },
        ] {
            let photograph = photograph(320, 240, object);
            let found = propose(&photograph, 500);
            let best = found.iter().map(|window| window.overlap(object)).fold(0.0, f32::max);
            assert!(best >= 0.5, "{object:?}: {best}");
            assert!(found.len() <= 500 && found.len() > 400, "{}", found.len());
        }
    }

    #[test]
    fn windows_lie_on_the_photograph_and_apart() {
        let object = Bounds { left: 40.0, top: 60.0, right: 130.0, bottom: 150.0 };
        for (width, height) in [(320, 240), (61, 500), (9, 7), (2, 300)] {
            let found = propose(&photograph(width, height, object), 300);
            assert!(!found.is_empty());
            for (at, window) in found.iter().enumerate() {
                let within = window.left >= 0.0 && window.top >= 0.0;
                assert!(
                    within && window.right <= width as f32 + 0.01 && window.bottom <= height as f32 + 0.01,
                    "{window:?}"
                );
                assert!(found[..at].iter().all(|other| other.overlap(*window) < 0.75), "{window:?}");
            }
        }
    }
}
