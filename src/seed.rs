//! Counter-based randomness: every draw is keyed by what it is for, so that nothing depends on order, threads or time,
//! and a resumed run draws what an undisturbed one does.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The seed of the `counter`-th draw for `purpose` in the run of `seed`.
pub fn of(seed: u64, purpose: &str, counter: u64) -> u64 {
    xxh3_64_with_seed(&counter.to_le_bytes(), xxh3_64_with_seed(purpose.as_bytes(), seed))
}

#[cfg(test)]
mod tests {
    #[test]
    fn purposes_and_counters_give_different_seeds() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..10 {
            for purpose in ["step", "view", "order"] {
                for counter in 0..100 {
                    assert!(seen.insert(super::of(seed, purpose, counter)));
                }
            }
        }
    }
}
