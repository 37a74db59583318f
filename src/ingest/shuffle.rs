//! The order of a pass: which shard comes when, and which of the waiting samples leaves next.
//!
//! Every draw is a hash of (seed, purpose, pass, counter), so that an order depends on nothing that came before it, can be
//! taken up anywhere, and is the same on every machine. No random state lives across samples.

/// 64 random bits, for one purpose, pass and counter.
pub(super) fn chance(seed: u64, purpose: &[u8; 8], pass: u64, counter: u64) -> u64 {
    let mut key = [0; 24];
    key[..8].copy_from_slice(purpose);
    key[8..16].copy_from_slice(&pass.to_le_bytes());
    key[16..].copy_from_slice(&counter.to_le_bytes());
    xxhash_rust::xxh3::xxh3_64_with_seed(&key, seed)
}

/// A number in `0..bound`, for one purpose, pass and counter.
fn draw(seed: u64, purpose: &[u8; 8], pass: u64, counter: u64, bound: usize) -> usize {
    let chance = chance(seed, purpose, pass, counter);
    // the high half of the product: even over the range but for a part in 2^64 / bound
    ((u128::from(chance) * bound as u128) >> 64) as usize
}

/// The order in which a pass takes `count` shards: a permutation of `0..count` (Fisher and Yates).
pub(super) fn permutation(seed: u64, pass: u64, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let other = draw(seed, b"permute ", pass, last as u64, last + 1);
        order.swap(last, other);
    }
    order
}

/// Which of `waiting` samples leaves at this draw of a pass.
pub(super) fn leaver(seed: u64, pass: u64, draw_number: u64, waiting: usize) -> usize {
    draw(seed, b"leaver  ", pass, draw_number, waiting)
}

/// How many samples enter before one leaves a shuffle buffer of this capacity, in which so many wait.
///
/// A buffer that fills up first of all would make every start wait for thousands of samples. This one lets samples go from an
/// eighth of its capacity on, two entering for each that leaves, until it is full.
pub(super) fn entering(waiting: usize, capacity: usize) -> usize {
    let least = capacity / 8;
    if waiting < least {
        least - waiting + 1
    } else if waiting + 1 < capacity {
        2
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_shard_comes_once(seed: u64, pass: u64, count in 0_usize..400) {
            let mut order = permutation(seed, pass, count);
            order.sort_unstable();
            prop_assert_eq!(order, (0..count).collect::<Vec<_>>());
        }

        #[test]
        fn a_buffer_never_outgrows_its_capacity(capacity in 0_usize..50, steps in 1_usize..200) {
            let mut waiting = 0;
            for _ in 0..steps {
                waiting += entering(waiting, capacity);
                prop_assert!(waiting >= 1 && waiting <= capacity.max(1));
                waiting -= 1;
            }
            prop_assert!(steps < 2 * capacity || waiting + 1 == capacity.max(1));
        }
    }

    #[test]
    fn draws_are_even() {
        // 70,000 draws over 7 values: the deviation of a count is sqrt(70000 * 6 / 49) = 93
        let mut counts = [0_i64; 7];
        for counter in 0..70_000 {
            counts[draw(31, b"leaver  ", 0, counter, 7)] += 1;
        }
        assert!(counts.iter().all(|count| (count - 10_000).abs() < 5 * 93), "{counts:?}");
    }

    #[test]
    fn passes_and_seeds_differ() {
        let base = permutation(1, 0, 50);
        assert_eq!(base, permutation(1, 0, 50));
        assert_ne!(base, permutation(1, 1, 50));
        assert_ne!(base, permutation(2, 0, 50));
    }
}
