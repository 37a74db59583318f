//! Which centroids share a panel: those that lie together, so that one bound serves them all.

use crate::torch::rows::squared_distance;
use crate::torch::scores::COLUMNS;

/// Centroids `[k, width]` in an order in which every sixteen, from the first, lie near each other.
///
/// Halves again and again along the line between two that are far apart: about `k log k` distances.
pub(super) fn put_together(centroids: &[f32], width: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..(centroids.len() / width) as u32).collect();
    halve(&mut order, &|id| &centroids[id as usize * width..][..width]);
    order
}

fn halve<'c>(ids: &mut [u32], centroid: &impl Fn(u32) -> &'c [f32]) {
    if ids.len() <= COLUMNS {
        return;
    }
    let farthest_from = |from: u32| {
        let distance = |id: u32| squared_distance(centroid(id), centroid(from));
        ids.iter().copied().max_by(|&left, &right| distance(left).total_cmp(&distance(right))).unwrap_or(from)
    };
    let one = farthest_from(ids[0]);
    let other = farthest_from(one);
    let mut along: Vec<(f32, u32)> = ids
        .iter()
        .map(|&id| {
            (squared_distance(centroid(id), centroid(one)) - squared_distance(centroid(id), centroid(other)), id)
        })
        .collect();
    along.sort_unstable_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    for (id, (_, sorted)) in ids.iter_mut().zip(along) {
        *id = sorted;
    }
    let middle = (ids.len() / COLUMNS).div_ceil(2) * COLUMNS;
    let (left, right) = ids.split_at_mut(middle);
    halve(left, centroid);
    halve(right, centroid);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_panel() {
        // Five groups of sixteen on a line, and seven more, dealt out in turn.
        let centroids: Vec<f32> = (0..87).map(|id| (id % 5) as f32 * 100.0 + (id / 5) as f32 * 0.01).collect();
        let order = put_together(&centroids, 1);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..87).collect::<Vec<u32>>());
        let spread = |panel: &[u32]| {
            let places = panel.iter().map(|&id| centroids[id as usize]);
            places.clone().fold(f32::MIN, f32::max) - places.fold(f32::MAX, f32::min)
        };
        let widest = order.chunks(COLUMNS).map(spread).fold(0.0, f32::max);
        assert!(widest <= 101.0, "{widest}: a panel spans at most two of the groups");
    }
}
