//! What the page shows of a run at a moment, as JSON.
//!
//! In: the plan, the records so far, and of a run under way what its stages do. Out: a [`State`]. Times to come are computed from the
//! speed of the last records.

use super::stages::{Doing, StageView};
use crate::config::Plan;
use crate::observe::RankView;
use crate::train::record::{AlarmRecord, CycleRecord, Record, StepRecord};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Alarms that are shown, the newest ones.
const ALARMS: usize = 5;
/// Ranks that are shown.
const RANKS: usize = 16;

/// Everything that moves.
#[derive(Debug, Serialize)]
pub(super) struct State {
    pub(super) run: String,
    /// Whether everything takes a token, downloads too.
    pub(super) takes_token: bool,
    /// Whether the run is under way in this process.
    pub(super) live: bool,
    /// Whether it has done all its steps.
    pub(super) ended: bool,
    pub(super) paused: bool,
    pub(super) step: u64,
    /// Steps in all; none where it goes on until it is stopped.
    pub(super) steps: Option<u64>,
    pub(super) images: u64,
    pub(super) pass: u64,
    pub(super) pass_share: Option<f64>,
    pub(super) loss: Option<f64>,
    pub(super) accuracy: Option<f64>,
    pub(super) lr: Option<f64>,
    pub(super) images_per_s: Option<f64>,
    /// Share of a step.
    pub(super) waiting: f64,
    pub(super) stage: Option<Doing>,
    pub(super) stages: Vec<StageView>,
    pub(super) waits_for: Option<String>,
    /// How many train together.
    pub(super) ranks: usize,
    /// Of several ranks, those that waited most for data of their own, the one that held up the others most first.
    pub(super) slowest_ranks: Vec<RankView>,
    pub(super) next: Next,
    pub(super) cycle: Option<CycleView>,
    pub(super) losses: Vec<Count>,
    pub(super) filtered: Vec<Count>,
    pub(super) snapshots: usize,
    pub(super) last_snapshot: Option<u64>,
    pub(super) alarms: Vec<AlarmRecord>,
}

/// What comes, and in how many seconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Next {
    pub(super) cycle_step: Option<u64>,
    pub(super) cycle_s: Option<f64>,
    pub(super) snapshot_s: Option<f64>,
    pub(super) end_s: Option<f64>,
}

/// The last clustering, without its sizes.
#[derive(Debug, Serialize)]
pub(super) struct CycleView {
    pub(super) step: u64,
    pub(super) cycle: u64,
    pub(super) nmi_prev: Option<f64>,
    pub(super) nmi_labels: Option<f64>,
    pub(super) reassigned: Option<f64>,
    pub(super) empty: usize,
    pub(super) largest_share: f64,
    pub(super) seconds: f64,
}

/// Samples by reason.
#[derive(Debug, Serialize)]
pub(super) struct Count {
    pub(super) reason: String,
    pub(super) count: u64,
}

/// What a run under way adds.
#[derive(Debug, Default)]
pub(super) struct Moving {
    pub(super) paused: bool,
    pub(super) stage: Option<Doing>,
    pub(super) stages: Vec<StageView>,
    pub(super) waits_for: Option<String>,
    pub(super) ranks: Vec<RankView>,
    /// Since the last snapshot.
    pub(super) snapshot_age_s: Option<f64>,
}

/// The state after these records.
pub(super) fn of(run: &Path, plan: &Plan, records: &[Record], moving: Option<Moving>) -> State {
    let last = last_steps(records);
    let cycle = last_cycle(records);
    let step = records.iter().map(Record::step).max().unwrap_or(0);
    let steps = (plan.train.steps > 0).then_some(plan.train.steps);
    let alarms = records.iter().rev().filter_map(|record| match record {
        Record::Alarm(alarm) => Some(alarm.clone()),
        _ => None,
    });
    let snapshots = records.iter().filter_map(|record| match record {
        Record::Snapshot(snapshot) => Some(snapshot.step),
        _ => None,
    });
    let live = moving.is_some();
    let moving = moving.unwrap_or_default();
    State {
        run: run.display().to_string(),
        takes_token: false,
        live,
        ended: !live && steps.is_some_and(|steps| step >= steps),
        paused: moving.paused,
        step,
        steps,
        images: last.map_or(0, |last| last.images),
        pass: last.map_or(0, |last| last.pass),
        pass_share: last.and_then(|last| last.pass_share),
        loss: last.map(|last| last.loss),
        accuracy: last.and_then(|last| last.accuracy),
        lr: last.map(|last| last.lr),
        images_per_s: last.map(|last| last.images_per_s),
        waiting: last.and_then(StepRecord::waiting).unwrap_or(0.0),
        next: next(plan, step, last, moving.snapshot_age_s),
        stage: moving.stage,
        stages: moving.stages,
        waits_for: moving.waits_for,
        ranks: moving.ranks.len(),
        slowest_ranks: slowest(moving.ranks),
        cycle: cycle.map(CycleView::of),
        losses: last.map(|last| counts(&last.losses)).unwrap_or_default(),
        filtered: last.map(|last| counts(&last.filtered)).unwrap_or_default(),
        snapshots: snapshots.clone().count(),
        last_snapshot: snapshots.max(),
        alarms: alarms.take(ALARMS).collect(),
    }
}

/// Whom to look at: of one rank alone there is nothing to compare.
fn slowest(mut ranks: Vec<RankView>) -> Vec<RankView> {
    if ranks.len() < 2 {
        return Vec::new();
    }
    ranks.sort_by(|one, other| other.waiting.total_cmp(&one.waiting).then(one.rank.cmp(&other.rank)));
    ranks.truncate(RANKS);
    ranks
}

/// The last record of a clustering.
pub(super) fn last_cycle(records: &[Record]) -> Option<&CycleRecord> {
    records.iter().rev().find_map(|record| match record {
        Record::Cycle(cycle) => Some(cycle),
        _ => None,
    })
}

/// The last record of training.
pub(super) fn last_steps(records: &[Record]) -> Option<&StepRecord> {
    records.iter().rev().find_map(|record| match record {
        Record::Step(step) => Some(step),
        _ => None,
    })
}

impl CycleView {
    fn of(record: &CycleRecord) -> Self {
        Self {
            step: record.step,
            cycle: record.cycle,
            nmi_prev: record.nmi_prev,
            nmi_labels: record.nmi_labels,
            reassigned: record.reassigned,
            empty: record.empty,
            largest_share: record.largest_share,
            seconds: record.seconds,
        }
    }
}

/// What comes next at the speed of the last steps.
fn next(plan: &Plan, step: u64, last: Option<&StepRecord>, snapshot_age_s: Option<f64>) -> Next {
    let per_s = last.map_or(0.0, |last| last.images_per_s / plan.train.batch_size.max(1) as f64);
    let until = |target: u64| (per_s > 0.0 && target >= step).then(|| (target - step) as f64 / per_s);
    let cycle_step = last.and_then(|last| last.next_cycle);
    let every = plan.snapshot.every_steps;
    let by_steps = (every > 0).then(|| (step / every + 1) * every).and_then(until);
    let minutes = plan.snapshot.every_minutes;
    let by_time = snapshot_age_s.filter(|_| minutes > 0.0).map(|age| (60.0 * minutes - age).max(0.0));
    Next {
        cycle_step,
        cycle_s: cycle_step.and_then(until),
        snapshot_s: match (by_steps, by_time) {
            (Some(steps), Some(time)) => Some(steps.min(time)),
            (one, other) => one.or(other),
        },
        end_s: (plan.train.steps > 0).then_some(plan.train.steps).and_then(until),
    }
}

fn counts(by_reason: &BTreeMap<String, u64>) -> Vec<Count> {
    let mut counts: Vec<Count> =
        by_reason.iter().map(|(reason, &count)| Count { reason: reason.clone(), count }).collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.count));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn records() -> Vec<Record> {
        let step = |step: u64| {
            json!({"kind": "step", "step": step, "images": step * 32, "loss": 3.5, "lr": 0.1, "images_per_s": 64.0, "wait_data_s": 0.1,
            "assign_s": 0.1, "train_s": 0.2, "label_entropy": 1.5, "largest_share": 0.1, "losses": {"corrupt": 2, "bomb": 5}, "pass": 1,
            "ids": "", "next_cycle": 150})
        };
        let alarm = |step: u64| json!({"kind": "alarm", "step": step, "alarm": "collapse", "message": "at a step"});
        let lines = [step(10), alarm(20), step(100)].into_iter().chain((30..40).map(alarm));
        lines.map(|line| serde_json::from_value(line).expect("a record")).collect()
    }

    fn plan() -> Plan {
        let mut plan = Plan::default();
        plan.train.steps = 500;
        plan.train.batch_size = 32;
        plan.snapshot.every_steps = 120;
        plan.snapshot.every_minutes = 60.0;
        plan
    }

    #[test]
    fn times_to_come_follow_from_the_last_speed() {
        // 64 images a second are 2 steps
        let moving = Moving { snapshot_age_s: Some(3_597.0), ..Moving::default() };
        let state = of(Path::new("runs/one"), &plan(), &records(), Some(moving));
        assert_eq!((state.step, state.images, state.next.cycle_step), (100, 3_200, Some(150)));
        assert_eq!((state.next.cycle_s, state.next.end_s), (Some(25.0), Some(200.0)));
        assert_eq!(state.next.snapshot_s, Some(3.0), "by the clock, before the ten seconds of twenty steps");
        assert_eq!(of(Path::new("r"), &plan(), &records(), None).next.snapshot_s, Some(10.0));
        assert_eq!(state.waiting, 0.25);
        let reasons: Vec<&str> = state.losses.iter().map(|count| count.reason.as_str()).collect();
        assert_eq!(reasons, ["bomb", "corrupt"]);
        assert_eq!(state.alarms.iter().map(|alarm| alarm.step).collect::<Vec<_>>(), [39, 38, 37, 36, 35]);
    }

    #[test]
    fn a_run_without_a_record_has_a_state() {
        let state = of(Path::new("runs/none"), &plan(), &[], None);
        assert_eq!((state.step, state.loss, state.next.end_s, state.ended), (0, None, None, false));
    }
}
