//! Where R-MAC looks: square regions of a map at several scales (Tolias, Sicre and Jégou, ICLR 2016, section 3.2).
//!
//! In: height and width of a map, and the number of levels. Out: squares inside the map, level by level, each row by row. Level `l` has
//! squares of side `2w / (l + 1)` for the short side `w` of the map: `l` of them along the short side, and along the long side as many
//! more as make neighbours overlap by 40 %, or nearly so. The map as a whole is no region.
//!
//! The arithmetic is that of the published formula, in double precision and in its order, so that ties and rounding fall as they do in
//! other programs. Nothing goes wrong, but that a map of one or two pixels leaves no room for small squares: they keep a side of 1.

/// Share of a square that its neighbour along the long side is to cover.
const OVERLAP: f64 = 0.4;
/// Most additional squares along the long side.
const MOST_EXTRA: usize = 6;

/// A square of a map, in pixels of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First row.
    pub top: i64,
    /// First column.
    pub left: i64,
    /// Rows and columns.
    pub side: i64,
}

/// The regions of a map of `height` by `width` pixels at levels 1 to `levels`: 14 of a square map at three levels, and three more for
/// each additional column of squares and level.
pub fn regions(height: i64, width: i64, levels: i64) -> Vec<Region> {
    let short = height.min(width);
    let extra = extra(short, height.max(width));
    let along = |dim: i64| if dim > short { extra } else { 0 };
    let mut found = Vec::new();
    for level in 1..=levels {
        let side = (2 * short / (level + 1)).max(1);
        let columns = origins(width, side, level + along(width));
        for top in origins(height, side, level + along(height)) {
            found.extend(columns.iter().map(|&left| Region { top, left, side }));
        }
    }
    found
}

/// How many squares more there are along the long side than along the short one.
fn extra(short: i64, long: i64) -> i64 {
    if short == long {
        return 0;
    }
    let (short, long) = (short as f64, long as f64);
    let mut best = (f64::INFINITY, 0);
    for extra in 1..=MOST_EXTRA {
        let step = (long - short) / extra as f64;
        let miss = ((short * short - short * step) / (short * short) - OVERLAP).abs();
        if miss < best.0 {
            best = (miss, extra as i64);
        }
    }
    best.1
}

/// First pixels of `count` squares of `side` pixels, evenly over a side of `dim`: by their centres, as the formula has it.
fn origins(dim: i64, side: i64, count: i64) -> Vec<i64> {
    let step = if count > 1 { (dim - side) as f64 / (count - 1) as f64 } else { 0.0 };
    let half = (side as f64 / 2.0 - 1.0).floor();
    let origin = |number: i64| ((half + step * number as f64).floor() - half) as i64;
    (0..count).map(|number| origin(number).clamp(0, dim - side)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(found: &[Region]) -> Vec<(i64, i64, i64)> {
        found.iter().map(|region| (region.top, region.left, region.side)).collect()
    }

    #[test]
    fn a_square_map_by_hand() {
        // Sides 12, 8, 6; steps 0, 4, 3.
        let mut expected = vec![(0, 0, 12)];
        expected.extend([(0, 0, 8), (0, 4, 8), (4, 0, 8), (4, 4, 8)]);
        for top in [0, 3, 6] {
            expected.extend([0, 3, 6].map(|left| (top, left, 6)));
        }
        assert_eq!(squares(&regions(12, 12, 3)), expected);
        assert_eq!(expected.len(), 14);
    }

    #[test]
    fn a_map_of_three_by_four_by_hand() {
        // One additional column overlaps by 1 - 16/48 = 2/3, two by 5/6: one is nearer to 0.4. Sides 48, 32, 24.
        let found = regions(48, 64, 3);
        assert_eq!(found.len(), 20);
        let mut expected = vec![(0, 0, 48), (0, 16, 48)];
        for top in [0, 16] {
            expected.extend([0, 16, 32].map(|left| (top, left, 32)));
        }
        for top in [0, 12, 24] {
            // Steps of 40 / 3: 13 and a third, 26 and two thirds.
            expected.extend([0, 13, 26, 40].map(|left| (top, left, 24)));
        }
        assert_eq!(squares(&found), expected);
        // Upright, the same with rows and columns exchanged.
        let mut turned: Vec<_> =
            regions(64, 48, 3).iter().map(|region| (region.left, region.top, region.side)).collect();
        turned.sort_unstable();
        expected.sort_unstable();
        assert_eq!(turned, expected);
    }

    #[test]
    fn a_long_map_takes_more_columns() {
        // 1 : 3, so 2w are left: steps of 2w, w, 2w/3, w/2, ... of which 2w/3 overlaps by a third, w/2 by a half: 0.067 against 0.1.
        assert_eq!(regions(20, 60, 1).iter().map(|region| region.left).collect::<Vec<_>>(), [0, 13, 26, 40]);
        assert_eq!(regions(20, 60, 3).len(), 4 + 2 * 5 + 3 * 6);
    }

    #[test]
    fn all_regions_of_all_maps_lie_inside_and_reach_the_edges() {
        for height in 1..=70 {
            for width in 1..=70 {
                for levels in 1..=4 {
                    let found = regions(height, width, levels);
                    let short = height.min(width);
                    let extra = extra(short, height.max(width));
                    assert_eq!(found.len() as i64, (1..=levels).map(|level| level * (level + extra)).sum::<i64>());
                    let inside = |region: &Region| {
                        region.side >= 1
                            && region.side <= short
                            && region.top >= 0
                            && region.left >= 0
                            && region.top + region.side <= height
                            && region.left + region.side <= width
                    };
                    assert!(found.iter().all(inside), "{height} x {width}: {found:?}");
                    // Rounding may leave out the last row or column, and no more.
                    let bottom = found.iter().map(|region| region.top + region.side).max();
                    let right = found.iter().map(|region| region.left + region.side).max();
                    assert!(bottom >= Some(height - 1) && right >= Some(width - 1), "{height} x {width}: {found:?}");
                }
            }
        }
    }
}
