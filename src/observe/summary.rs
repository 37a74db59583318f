//! The closing table: what a run did, where its time went, and which key would make it faster.
//!
//! In: the records of this session. Out: aligned text, or the numbers. Times that no record accounts for (starting,
//! reading a snapshot, writing records) are `other`. Nothing here can fail.

use super::console::span;
use super::{Record, StepRecord};
use crate::decode::DecodeStats;
use indicatif::HumanCount;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What happened since this process took up the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Steps done in this session.
    pub steps: u64,
    /// The last step of the run.
    pub last_step: u64,
    /// Images trained on in this session.
    pub images: u64,
    /// Clusterings.
    pub cycles: u64,
    /// Where classes are learnt: the share of the last images whose class had the highest logit.
    pub accuracy: Option<f64>,
    /// Snapshots written.
    pub snapshots: u64,
    /// Alarms raised.
    pub alarms: u64,
    /// Samples lost since the run began, by reason: in passes, and in encodings of the list for a clustering.
    pub losses: BTreeMap<String, u64>,
    /// Samples passed over on purpose since the run began, by rule.
    pub filtered: BTreeMap<String, u64>,
    /// Wall time.
    pub wall: Duration,
    /// Seconds by stage; what is left of `wall` is `other`.
    pub stages: Stages,
    /// What it ran on.
    pub hardware: Hardware,
    /// What the decoders did beside the trainer.
    pub decoding: Option<DecodeStats>,
}

/// What a run makes use of already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// It trains on a GPU.
    pub cuda: bool,
    /// Forward and backward passes compute in bfloat16.
    pub bf16: bool,
}

impl Hardware {
    /// The key that would make the network faster.
    fn remedy(self) -> &'static str {
        match self {
            Self { cuda: false, .. } => {
                "device.kind = \"cuda\" with device.precision = \"bf16\", or a smaller views.size"
            }
            Self { bf16: false, .. } => "device.precision = \"bf16\", or a smaller views.size",
            Self { .. } => "a smaller views.size, or a smaller model.arch",
        }
    }
}

/// Seconds spent in each stage of the trainer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stages {
    /// Waiting for a batch.
    pub wait: f64,
    /// The assigner and the labels.
    pub assign: f64,
    /// The student and the optimiser.
    pub train: f64,
    /// Clustering.
    pub cluster: f64,
    /// Writing snapshots.
    pub snapshot: f64,
}

impl Stages {
    fn named(&self) -> [(&'static str, f64); 5] {
        [
            ("wait", self.wait),
            ("assign", self.assign),
            ("train", self.train),
            ("cluster", self.cluster),
            ("snapshot", self.snapshot),
        ]
    }
}

impl Summary {
    /// The summary of a session that goes on from `step`.
    pub fn from_step(step: u64) -> Self {
        Self { last_step: step, ..Self::default() }
    }

    /// Adds a record; `batch_size` images a step.
    pub fn add(&mut self, record: &Record, batch_size: usize) {
        match record {
            Record::Step(record) => self.add_step(record, batch_size),
            Record::Cycle(record) => {
                self.cycles += 1;
                self.stages.cluster += record.stood_s;
            }
            Record::Snapshot(record) => {
                self.snapshots += 1;
                self.stages.snapshot += record.stood_s;
            }
            Record::Alarm(_) => self.alarms += 1,
        }
    }

    fn add_step(&mut self, record: &StepRecord, batch_size: usize) {
        let steps = record.step.saturating_sub(self.last_step);
        self.steps += steps;
        self.last_step = record.step;
        self.images += steps * batch_size as u64;
        self.stages.wait += steps as f64 * record.wait_data_s;
        self.stages.assign += steps as f64 * record.assign_s;
        self.stages.train += steps as f64 * record.train_s;
        self.accuracy = record.accuracy;
        self.losses.clone_from(&record.losses);
        self.filtered.clone_from(&record.filtered);
    }

    /// Images trained on per second of wall time, everything counted.
    pub fn images_per_s(&self) -> f64 {
        let seconds = self.wall.as_secs_f64();
        if seconds > 0.0 { self.images as f64 / seconds } else { 0.0 }
    }

    /// The stage that takes most of the time, and what to change about it.
    pub fn narrowest(&self) -> Option<(&'static str, &'static str)> {
        let (stage, seconds) = self.stages.named().into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        if seconds <= 0.0 {
            return None;
        }
        let remedy = match stage {
            "wait" => "device.decode_threads if cores are idle, else stream.lanes, or shards nearer to the machine",
            "assign" | "train" => self.hardware.remedy(),
            "cluster" => "a larger cluster.every_steps, or fewer cluster.iterations",
            _ => "a larger snapshot.every_steps, or a faster disk",
        };
        Some((stage, remedy))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.images_per_s();
        let mut rows = vec![
            ("images", format!("{} ({rate:.0} a second)", HumanCount(self.images))),
            ("steps", format!("{} (the run is at {})", HumanCount(self.steps), HumanCount(self.last_step))),
            match self.accuracy {
                Some(accuracy) => ("accuracy", format!("{:.1} % of the last images trained on", 100.0 * accuracy)),
                None => ("cycles", HumanCount(self.cycles).to_string()),
            },
            ("snapshots", HumanCount(self.snapshots).to_string()),
        ];
        if self.alarms > 0 {
            rows.push(("alarms", HumanCount(self.alarms).to_string()));
        }
        rows.push(("lost", counts_text(&self.losses)));
        if !self.filtered.is_empty() {
            rows.push(("filtered", counts_text(&self.filtered)));
        }
        rows.push(("wall time", span(self.wall)));
        for (name, value) in rows {
            writeln!(f, "  {name:<10} {value}")?;
        }

        let wall = self.wall.as_secs_f64();
        let accounted: f64 = self.stages.named().iter().map(|(_, seconds)| seconds).sum();
        let other = ("other", (wall - accounted).max(0.0));
        for (name, seconds) in self.stages.named().into_iter().chain([other]) {
            let share = if wall > 0.0 { 100.0 * seconds / wall } else { 0.0 };
            writeln!(f, "    {name:<8} {seconds:>10.1} s {share:>5.1} %")?;
        }
        if let Some(decoding) = self.decoding.as_ref().filter(|decoding| decoding.decoded > 0) {
            writeln!(f, "  beside it, decoding took {} and thread", decoding.per_image())?;
        }
        match self.narrowest() {
            Some((stage, remedy)) => write!(f, "  most of the time goes to {stage}; to change that: {remedy}"),
            None => write!(f, "  no time was measured in any stage"),
        }
    }
}

fn counts_text(counts: &BTreeMap<String, u64>) -> String {
    let total: u64 = counts.values().sum();
    if total == 0 {
        return "nothing".into();
    }
    let mut reasons: Vec<(&String, &u64)> = counts.iter().filter(|(_, count)| **count > 0).collect();
    reasons.sort_by(|a, b| b.1.cmp(a.1));
    let reasons: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{reason} {}", HumanCount(**count))).collect();
    format!("{} samples: {}", HumanCount(total), reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::SnapshotRecord;

    fn step(step: u64, wait: f64, train: f64) -> Record {
        Record::Step(StepRecord {
            step,
            images: step * 64,
            loss: 1.0,
            lr: 0.1,
            images_per_s: 100.0,
            wait_data_s: wait,
            assign_s: 0.1,
            train_s: train,
            label_entropy: 1.0,
            largest_share: 0.1,
            accuracy: None,
            losses: BTreeMap::from([("corrupt".into(), step / 10), ("bomb".into(), 1)]),
            filtered: BTreeMap::from([("too_small".into(), 20)]),
            pass: 0,
            pass_share: None,
            ids: String::new(),
            next_cycle: None,
        })
    }

    #[test]
    fn time_is_accounted_for_by_stage() {
        let mut summary = Summary::from_step(100);
        summary.add(&step(110, 0.5, 0.2), 64);
        summary.add(&step(130, 0.2, 0.2), 64);
        let path = "snapshots/step-000000130".to_owned();
        summary.add(&Record::Snapshot(SnapshotRecord { step: 130, path, bytes: 1, seconds: 9.0, stood_s: 2.0 }), 64);
        summary.wall = Duration::from_secs(40);

        assert_eq!((summary.steps, summary.images, summary.snapshots), (30, 1_920, 1));
        assert!((summary.stages.wait - 9.0).abs() < 1e-9);
        assert!((summary.stages.train - 6.0).abs() < 1e-9);
        assert!((summary.images_per_s() - 48.0).abs() < 1e-9);
        assert_eq!(summary.narrowest().map(|(stage, _)| stage), Some("wait"));
        let text = summary.to_string();
        assert!(text.contains("lost       14 samples: corrupt 13, bomb 1"), "{text}");
        assert!(text.contains("filtered   20 samples: too_small 20"), "{text}");
        assert!(text.contains("other          20.0 s  50.0 %"), "{text}");
        assert!(text.contains("device.decode_threads"), "{text}");
    }

    #[test]
    fn nobody_is_told_to_use_what_the_run_uses_already() {
        let mut summary = Summary::from_step(0);
        summary.add(&step(10, 0.0, 1.0), 64);
        let remedy = |cuda, bf16| {
            let summary = Summary { hardware: Hardware { cuda, bf16 }, ..summary.clone() };
            summary.narrowest().map_or("", |(_, remedy)| remedy)
        };
        assert!(remedy(false, false).contains("cuda"));
        assert!(!remedy(true, false).contains("cuda") && remedy(true, false).contains("bf16"));
        assert!(!remedy(true, true).contains("cuda") && !remedy(true, true).contains("bf16"));
    }

    #[test]
    fn a_session_without_a_step_has_no_narrowest_stage() {
        let summary = Summary::from_step(7);
        assert_eq!(summary.narrowest(), None);
        assert!(summary.to_string().contains("the run is at 7"));
    }
}
