//! Which snapshots may go.

use crate::config::SnapshotPlan;

/// The steps whose snapshots may be deleted once the one of `newest` is whole.
///
/// Kept are the `keep_last` newest (at least one), multiples of `keep_every`, and everything past `newest`: such
/// snapshots belong to an earlier try at those steps, and the run writes them anew when it comes there.
pub(super) fn expendable(steps: &[u64], newest: u64, plan: &SnapshotPlan) -> Vec<u64> {
    let mut past: Vec<u64> = steps.iter().copied().filter(|step| *step < newest).collect();
    past.sort_unstable_by(|a, b| b.cmp(a));
    let is_kept_for_good = |step: u64| plan.keep_every > 0 && step.is_multiple_of(plan.keep_every);
    past.into_iter().skip(plan.keep_last.saturating_sub(1)).filter(|step| !is_kept_for_good(*step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_and_the_milestones_stay() {
        let plan = SnapshotPlan { keep_last: 2, keep_every: 1_000, ..SnapshotPlan::default() };
        let steps = [500, 1_000, 1_500, 2_000, 2_500, 3_000];
        assert_eq!(expendable(&steps, 2_500, &plan), [1_500, 500]);
    }

    proptest! {
        #[test]
        fn at_least_as_many_stay_as_were_asked_for(
            steps in proptest::collection::btree_set(0_u64..10_000, 1..40),
            keep_last in 0_usize..10,
            keep_every in 0_u64..2_000,
        ) {
            let steps: Vec<u64> = steps.into_iter().collect();
            let newest = steps[steps.len() - 1];
            let plan = SnapshotPlan { keep_last, keep_every, ..SnapshotPlan::default() };
            let gone = expendable(&steps, newest, &plan);
            let kept: Vec<u64> = steps.iter().copied().filter(|step| !gone.contains(step)).collect();
            prop_assert!(kept.contains(&newest));
            prop_assert!(kept.len() >= keep_last.min(steps.len()));
            let last = &steps[steps.len() - keep_last.min(steps.len())..];
            prop_assert!(last.iter().all(|step| kept.contains(step)));
            let is_milestone = |step: u64| keep_every > 0 && step.is_multiple_of(keep_every);
            prop_assert!(steps.iter().filter(|step| is_milestone(**step)).all(|step| kept.contains(step)));
            let others = kept.iter().filter(|step| !is_milestone(**step)).count();
            prop_assert!(others <= keep_last.max(1));
        }
    }
}
