use super::*;
use proptest::prelude::*;

/// Pseudo-random pixels with neighbours that are alike, as in photographs, and hard edges.
fn pixels(width: usize, height: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let place = (0..width * height * 3).map(|i| ((i / 3 % width) * 255 / width) as u8);
    noise.zip(place).map(|(noise, place)| if noise > 230 { noise } else { place.wrapping_add(noise & 15) }).collect()
}

/// Bilinear with antialiasing, by its formula in float64, unrounded. Positions beyond the picture have no weight.
fn oracle(picture: Picture<'_>, across: Span, down: Span, size: usize) -> Vec<f64> {
    let weights = |span: Span, place: usize, length: usize| {
        let place = if span.backwards { size - 1 - place } else { place };
        let scale = span.extent / size as f64;
        let center = span.start + (place as f64 + 0.5) * scale;
        let triangle = move |pixel: usize| (1.0 - ((pixel as f64 + 0.5 - center) / scale.max(1.0)).abs()).max(0.0);
        let sum: f64 = (0..length).map(triangle).sum();
        (0..length).map(move |pixel| triangle(pixel) / sum).collect::<Vec<f64>>()
    };
    let mut view = Vec::with_capacity(size * size * 3);
    for y in 0..size {
        let rows = weights(down, y, picture.height);
        for x in 0..size {
            let columns = weights(across, x, picture.width);
            for channel in 0..3 {
                let mut sum = 0.0;
                for (row, by_row) in rows.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                    for (column, by_column) in columns.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                        let stored = picture.rgb[(row * picture.width + column) * 3 + channel];
                        sum += by_row * by_column * f64::from(stored);
                    }
                }
                view.push(sum);
            }
        }
    }
    view
}

fn span(length: usize, (start, extent): (f64, f64), backwards: bool) -> Span {
    let extent = (extent * length as f64).max(0.5);
    let extent = extent.min(length as f64);
    Span { start: start * (length as f64 - extent), extent, backwards }
}

fn both_ways(picture: Picture<'_>, across: Span, down: Span, size: usize) -> [Vec<u8>; 2] {
    let mut views = [vec![1; size * size * 3], vec![2; size * size * 3]];
    let mut resampler = Resampler::default();
    resampler.resample(picture, across, down, &mut views[0], size);
    let Resampler { columns, rows, line, .. } = &mut resampler;
    plain::resample(picture, columns, rows, &mut views[1], size, line);
    views
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn vectors_give_what_the_definition_gives_and_that_is_right(
        (width, height) in (1_usize..80, 1_usize..80),
        size in 1_usize..40,
        across in (0.0..1.0, 0.0..1.0),
        down in (0.0..1.0, 0.0..1.0),
        mirrored in any::<(bool, bool)>(),
        (seed, slack) in (any::<u32>(), 0_usize..70),
    ) {
        let mut rgb = pixels(width, height, seed);
        rgb.resize(rgb.len() + slack, 77);
        let picture = Picture { rgb: &rgb, width, height };
        let (across, down) = (span(width, across, mirrored.0), span(height, down, mirrored.1));
        let [fast, plain] = both_ways(picture, across, down, size);
        prop_assert_eq!(&fast, &plain);
        let exact = oracle(picture, across, down, size);
        let worst = fast.iter().zip(&exact).map(|(&found, exact)| (f64::from(found) - exact).abs()).fold(0.0, f64::max);
        prop_assert!(worst < 0.56, "{} levels", worst);
    }
}

#[test]
fn a_plain_colour_stays_what_it_is() {
    for colour in 0..=255 {
        let rgb = vec![colour; 61 * 47 * 3];
        let picture = Picture { rgb: &rgb, width: 61, height: 47 };
        for extent in [9.5, 47.0] {
            let whole = Span { start: 0.0, extent, backwards: false };
            for view in both_ways(picture, whole, whole, 10) {
                assert!(view.iter().all(|&shown| shown == colour), "{colour} became {:?}", &view[..3]);
            }
        }
    }
}

#[test]
fn a_view_of_the_size_of_its_box_is_the_box() {
    let rgb = pixels(40, 30, 3);
    let picture = Picture { rgb: &rgb, width: 40, height: 30 };
    let across = Span { start: 7.0, extent: 20.0, backwards: true };
    let down = Span { start: 5.0, extent: 20.0, backwards: false };
    for view in both_ways(picture, across, down, 20) {
        for (y, row) in view.chunks_exact(60).enumerate() {
            for (x, shown) in row.chunks_exact(3).enumerate() {
                let at = ((5 + y) * 40 + 7 + 19 - x) * 3;
                assert_eq!(shown, &rgb[at..at + 3], "{x}, {y}");
            }
        }
    }
}

#[test]
fn a_great_reduction_is_a_mean() {
    // black and white in turn: the mean over thousands of them must not drift with their number
    let rgb: Vec<u8> = (0..3000 * 300).flat_map(|i| [if (i + i / 3000) % 2 == 0 { 255 } else { 0 }; 3]).collect();
    let picture = Picture { rgb: &rgb, width: 3000, height: 300 };
    let across = Span { start: 0.0, extent: 3000.0, backwards: false };
    let down = Span { start: 0.0, extent: 300.0, backwards: false };
    for view in both_ways(picture, across, down, 2) {
        assert!(view.iter().all(|shown| (126..=129).contains(shown)), "{view:?}");
    }
}

#[test]
fn what_is_kept_does_not_show_in_the_next_view() {
    let (large, small) = (pixels(300, 200, 1), pixels(9, 7, 2));
    let whole = |length: usize| Span { start: 0.0, extent: length as f64, backwards: false };
    let mut resampler = Resampler::default();
    let view = |resampler: &mut Resampler, rgb: &[u8], width: usize, height: usize| {
        let mut view = vec![0; 16 * 16 * 3];
        resampler.resample(Picture { rgb, width, height }, whole(width), whole(height), &mut view, 16);
        view
    };
    let alone = view(&mut Resampler::default(), &small, 9, 7);
    view(&mut resampler, &large, 300, 200);
    assert_eq!(view(&mut resampler, &small, 9, 7), alone);
    assert!(resampler.kept_bytes() > 0);
}
