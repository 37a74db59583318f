//! A run in numbers for monitoring: what `/metrics` of the page shows, in Prometheus' text format.
//!
//! In: records, the times of steps, and at each look what [`Live`] shows. Out: counters, gauges and histograms, all of them in
//! [`METRICS`]. The recorder is this run's own, so that two runs in a process do not mix. What can go wrong: nothing.

use super::{Live, Record, Stage, Totals};
use crate::decode::Part;
use crate::error::{Error, Result};
use crate::shards::{Filtered, Reason};
use crate::torch::cuda;
use crate::train::progress::Times;
use crate::train::record::{CycleRecord, StepRecord};
use metrics::{Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Times, sorted into buckets.
    Histogram,
}

use Kind::{Counter, Gauge};

/// Every number: its name, what it is, and what it says.
pub const METRICS: [(&str, Kind, &str); 52] = [
    ("shoal_info", Gauge, "Always 1; its label says which version runs"),
    ("shoal_step", Gauge, "Steps of the run, with those of earlier processes"),
    ("shoal_steps_total", Counter, "Steps of this process"),
    ("shoal_images_total", Counter, "Images trained on since this process began, by all ranks"),
    ("shoal_loss", Gauge, "Cross-entropy against the labels in nats, mean over the last steps"),
    ("shoal_learning_rate", Gauge, "Learning rate of the last step"),
    ("shoal_accuracy", Gauge, "Share of images whose class had the highest logit, where classes are learnt"),
    ("shoal_images_per_second", Gauge, "Images per second of wall time over the last steps"),
    ("shoal_label_entropy", Gauge, "Entropy of the new labels in nats"),
    ("shoal_label_largest_share", Gauge, "Share of the new labels in their largest cluster"),
    ("shoal_pass", Gauge, "The pass over the list, from 0"),
    ("shoal_pass_share", Gauge, "How much of the pass the stream has given, where an index knows"),
    ("shoal_last_step_timestamp_seconds", Gauge, "When a batch was last trained on or encoded, in Unix time"),
    ("shoal_step_seconds", Kind::Histogram, "Time of a step by what it went to"),
    ("shoal_stage", Gauge, "1 for what the trainer of rank 0 is about, 0 for all else"),
    ("shoal_stage_since_seconds", Gauge, "For how long the trainer has been about it"),
    ("shoal_samples_read_total", Counter, "Samples that the streams of all ranks gave"),
    ("shoal_read_bytes_total", Counter, "Bytes that came from files and servers, to all ranks"),
    ("shoal_second_requests_total", Counter, "Requests for bytes that were late, beside those under way"),
    ("shoal_shards_open", Gauge, "Shards being read by rank 0, by what they are at"),
    ("shoal_queue_put_total", Counter, "What went into a queue, of all ranks"),
    ("shoal_queue_taken_total", Counter, "What came out of a queue, of all ranks"),
    ("shoal_queue_length", Gauge, "What is in a queue of rank 0"),
    ("shoal_queue_capacity", Gauge, "What a queue of rank 0 has room for"),
    ("shoal_shuffle_bytes", Gauge, "Bytes of the images in the shuffle buffer of rank 0"),
    ("shoal_images_decoded_total", Counter, "Images that became pixels, of all ranks"),
    ("shoal_images_truncated_total", Counter, "Of these, images whose file is cut short or corrupt in places"),
    ("shoal_decode_seconds_total", Counter, "Time of the decoding threads of all ranks by what it went to"),
    ("shoal_samples_lost_total", Counter, "Samples lost since this process began, by all ranks, by reason"),
    (
        "shoal_samples_filtered_total",
        Counter,
        "Samples passed over on purpose since this process began, by all ranks, by rule",
    ),
    ("shoal_ranks", Gauge, "Processes that train the run together"),
    ("shoal_rank_wait_seconds_total", Counter, "Time that a rank has waited for its own batches, the others for it"),
    ("shoal_cycles_total", Counter, "Clusterings of this process"),
    ("shoal_cycle_seconds", Kind::Histogram, "Time of a clustering, with encoding"),
    ("shoal_cycle_stood_seconds", Kind::Histogram, "Time that training stood still for a clustering"),
    ("shoal_last_cycle_timestamp_seconds", Gauge, "When the last clustering ended, in Unix time"),
    ("shoal_cycle_rows", Gauge, "Rows of the last clustering"),
    ("shoal_cycle_objective", Gauge, "Squared distance to the centroid, mean over the rows of the last clustering"),
    ("shoal_cycle_nmi_previous", Gauge, "Agreement of the last clustering with the one before, as NMI"),
    ("shoal_cycle_nmi_labels", Gauge, "Agreement of the last clustering with the labels of the stream, as NMI"),
    ("shoal_cycle_reassigned_share", Gauge, "Share of samples that changed their cluster, after matching"),
    ("shoal_cycle_empty_clusters", Gauge, "Clusters without a sample in the last clustering"),
    ("shoal_cycle_largest_share", Gauge, "Share of the samples in the largest cluster of the last clustering"),
    ("shoal_cycle_entropy", Gauge, "Entropy of the cluster sizes in nats"),
    ("shoal_cycle_bank_age_steps", Gauge, "Mean age of the clustered rows in steps"),
    ("shoal_snapshots_total", Counter, "Snapshots written by this process"),
    ("shoal_snapshot_seconds", Kind::Histogram, "Time until a snapshot was on disk"),
    ("shoal_snapshot_stood_seconds", Kind::Histogram, "Time that training stood still for a snapshot"),
    ("shoal_snapshot_bytes", Gauge, "Size of the last snapshot"),
    (
        "shoal_last_snapshot_timestamp_seconds",
        Gauge,
        "When the last snapshot was on disk, or the process began, in Unix time",
    ),
    ("shoal_alarms_total", Counter, "Alarms raised by this process"),
    ("shoal_gpu_memory_bytes", Gauge, "Memory of the GPU, used by all processes and in all"),
];

/// Upper ends of the buckets of steps, in seconds.
const STEP_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Of clusterings and snapshots.
const LONG_BUCKETS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0];

/// What a run had come to when this process took it up: counters count from there, since a counter that jumps or falls misleads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Baseline {
    /// Steps.
    pub step: u64,
    /// Images trained on.
    pub images: u64,
    /// Samples lost, by reason.
    pub losses: BTreeMap<String, u64>,
    /// Samples passed over, by rule.
    pub filtered: BTreeMap<String, u64>,
}

/// The numbers of one run.
pub struct Meters {
    baseline: Baseline,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    wait: Histogram,
    assign: Histogram,
    train: Histogram,
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    /// Nothing yet, for a run that has come to `baseline`.
    ///
    /// # Errors
    /// The library takes no such buckets.
    pub fn new(baseline: Baseline) -> Result<Self> {
        let buckets = [
            ("shoal_step_seconds", &STEP_BUCKETS[..]),
            ("shoal_cycle_seconds", &LONG_BUCKETS),
            ("shoal_cycle_stood_seconds", &LONG_BUCKETS),
            ("shoal_snapshot_seconds", &LONG_BUCKETS),
            ("shoal_snapshot_stood_seconds", &LONG_BUCKETS),
        ];
        let builder = buckets.iter().try_fold(PrometheusBuilder::new(), |builder, (name, ends)| {
            builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), ends)
        });
        let builder = builder.map_err(|error| Error::device(format!("cannot set up the numbers: {error}")))?;
        let recorder = builder.build_recorder();
        let of_part = |part: &'static str| histogram!("shoal_step_seconds", "part" => part);
        let (wait, assign, train) = metrics::with_local_recorder(&recorder, || {
            describe();
            gauge!("shoal_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            gauge!("shoal_last_snapshot_timestamp_seconds").set(now());
            // One that first shows as 1 would be no increase to Prometheus.
            counter!("shoal_alarms_total", "alarm" => "collapse").absolute(0);
            for reason in Reason::ALL {
                counter!("shoal_samples_lost_total", "reason" => reason.name()).absolute(0);
            }
            for rule in Filtered::ALL {
                counter!("shoal_samples_filtered_total", "rule" => rule.name()).absolute(0);
            }
            (of_part("wait"), of_part("assign"), of_part("train"))
        });
        Ok(Self { baseline, handle: recorder.handle(), recorder, wait, assign, train })
    }

    /// The times of a block of `steps` steps, by what they went to.
    pub fn steps(&self, times: Times, steps: u64) {
        let Ok(count) = u32::try_from(steps) else { return };
        if count == 0 {
            return;
        }
        self.wait.record_many(times.wait / count, steps as usize);
        self.assign.record_many(times.assign / count, steps as usize);
        self.train.record_many(times.train / count, steps as usize);
    }

    /// What the run says of itself.
    pub fn record(&self, record: &Record) {
        metrics::with_local_recorder(&self.recorder, || match record {
            Record::Step(step) => of_steps(step, &self.baseline),
            Record::Cycle(cycle) => of_cycle(cycle),
            Record::Snapshot(snapshot) => {
                counter!("shoal_snapshots_total").increment(1);
                histogram!("shoal_snapshot_seconds").record(snapshot.seconds);
                histogram!("shoal_snapshot_stood_seconds").record(snapshot.stood_s);
                gauge!("shoal_snapshot_bytes").set(snapshot.bytes as f64);
                gauge!("shoal_last_snapshot_timestamp_seconds").set(now());
            }
            Record::Alarm(alarm) => counter!("shoal_alarms_total", "alarm" => alarm.alarm.clone()).increment(1),
        });
    }

    /// Everything at this moment.
    pub fn render(&self, live: &Live) -> String {
        metrics::with_local_recorder(&self.recorder, || of_live(live));
        self.handle.render()
    }

    /// Sorts times into buckets: they pile up until somebody does.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn describe() {
    for (name, kind, help) in METRICS {
        match kind {
            Counter => describe_counter!(name, help),
            Gauge => describe_gauge!(name, help),
            Kind::Histogram => describe_histogram!(name, help),
        }
    }
}

fn of_steps(record: &StepRecord, baseline: &Baseline) {
    gauge!("shoal_step").set(record.step as f64);
    counter!("shoal_steps_total").absolute(record.step.saturating_sub(baseline.step));
    counter!("shoal_images_total").absolute(record.images.saturating_sub(baseline.images));
    gauge!("shoal_loss").set(record.loss);
    gauge!("shoal_learning_rate").set(record.lr);
    record.accuracy.iter().for_each(|accuracy| gauge!("shoal_accuracy").set(*accuracy));
    gauge!("shoal_images_per_second").set(record.images_per_s);
    gauge!("shoal_label_entropy").set(record.label_entropy);
    gauge!("shoal_label_largest_share").set(record.largest_share);
    gauge!("shoal_pass").set(record.pass as f64);
    record.pass_share.iter().for_each(|share| gauge!("shoal_pass_share").set(*share));
    let since = |counts: &BTreeMap<String, u64>, what: &str, count: u64| {
        count.saturating_sub(counts.get(what).copied().unwrap_or(0))
    };
    for (reason, count) in &record.losses {
        let new = since(&baseline.losses, reason, *count);
        counter!("shoal_samples_lost_total", "reason" => reason.clone()).absolute(new);
    }
    for (rule, count) in &record.filtered {
        let new = since(&baseline.filtered, rule, *count);
        counter!("shoal_samples_filtered_total", "rule" => rule.clone()).absolute(new);
    }
}

fn of_cycle(record: &CycleRecord) {
    counter!("shoal_cycles_total").increment(1);
    histogram!("shoal_cycle_seconds").record(record.seconds);
    histogram!("shoal_cycle_stood_seconds").record(record.stood_s);
    gauge!("shoal_last_cycle_timestamp_seconds").set(now());
    gauge!("shoal_cycle_rows").set(record.rows as f64);
    gauge!("shoal_cycle_objective").set(record.objective);
    record.nmi_prev.iter().for_each(|nmi| gauge!("shoal_cycle_nmi_previous").set(*nmi));
    record.nmi_labels.iter().for_each(|nmi| gauge!("shoal_cycle_nmi_labels").set(*nmi));
    record.reassigned.iter().for_each(|share| gauge!("shoal_cycle_reassigned_share").set(*share));
    gauge!("shoal_cycle_empty_clusters").set(record.empty as f64);
    gauge!("shoal_cycle_largest_share").set(record.largest_share);
    gauge!("shoal_cycle_entropy").set(record.entropy);
    gauge!("shoal_cycle_bank_age_steps").set(record.bank_age);
}

/// Seconds are cut to whole ones where they are counted: so the library counts.
fn of_live(live: &Live) {
    let (stage, _, since) = live.activity.now();
    for one in Stage::ALL {
        gauge!("shoal_stage", "stage" => one.name()).set(f64::from(u8::from(one == stage)));
    }
    gauge!("shoal_stage_since_seconds").set(since);
    gauge!("shoal_last_step_timestamp_seconds").set(now() - live.activity.since_step().as_secs_f64());
    of_totals(&live.totals_of_all());
    let waited = live.waited_s();
    gauge!("shoal_ranks").set(waited.len() as f64);
    for (rank, seconds) in waited.into_iter().enumerate() {
        counter!("shoal_rank_wait_seconds_total", "rank" => rank.to_string()).absolute(seconds as u64);
    }
    let sources = live.sources();
    for activity in crate::shards::Activity::ALL {
        let open = sources.progress.lanes().get(&activity).copied().unwrap_or(0);
        gauge!("shoal_shards_open", "activity" => activity.name()).set(open as f64);
    }
    let queues = [
        ("shuffle", sources.progress.shuffle_samples(), live.shuffle as u64),
        ("samples", sources.queues.samples.len(), sources.queues.samples.capacity()),
        ("batches", sources.queues.batches.len(), sources.queues.batches.capacity()),
    ];
    for (queue, length, capacity) in queues {
        gauge!("shoal_queue_length", "queue" => queue).set(length as f64);
        gauge!("shoal_queue_capacity", "queue" => queue).set(capacity as f64);
    }
    gauge!("shoal_shuffle_bytes").set(sources.progress.shuffle_bytes() as f64);
    if live.cuda
        && let Ok((free, all)) = cuda::memory()
    {
        gauge!("shoal_gpu_memory_bytes", "what" => "used").set(all.saturating_sub(free) as f64);
        gauge!("shoal_gpu_memory_bytes", "what" => "total").set(all as f64);
    }
}

fn of_totals(totals: &Totals) {
    counter!("shoal_samples_read_total").absolute(totals.samples);
    counter!("shoal_read_bytes_total").absolute(totals.bytes);
    counter!("shoal_second_requests_total").absolute(totals.second_requests);
    for (queue, flow) in [("samples", totals.sample_queue), ("batches", totals.batch_queue)] {
        counter!("shoal_queue_put_total", "queue" => queue).absolute(flow.put);
        counter!("shoal_queue_taken_total", "queue" => queue).absolute(flow.taken);
    }
    counter!("shoal_images_decoded_total").absolute(totals.decoding.decoded);
    counter!("shoal_images_truncated_total").absolute(totals.decoding.truncated);
    for (part, seconds) in Part::NAMES.iter().zip(totals.decoding.part_s) {
        counter!("shoal_decode_seconds_total", "part" => *part).absolute(seconds as u64);
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Queues;
    use crate::observe::{AlarmRecord, Controls, Report, SnapshotRecord, Sources};
    use serde_json::json;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn live() -> Live {
        let queues = Queues::new(32, 1);
        let sources = Sources { progress: Arc::default(), decoders: Arc::default(), queues: Arc::new(queues) };
        let live = Live::new(sources, Controls::default(), false, 500);
        let report = |waited_s| Report { waited_s, ..Report::default() };
        live.hear(vec![report(1.25), report(30.5)]);
        live
    }

    fn records() -> Vec<Record> {
        let step = json!({"kind": "step", "step": 20, "images": 640, "loss": 3.5, "lr": 0.1, "images_per_s": 100.0, "wait_data_s": 0.25,
            "assign_s": 0.25, "train_s": 0.5, "label_entropy": 1.5, "largest_share": 0.1, "accuracy": 0.5, "losses": {"decode_failed": 2},
            "filtered": {"too_small": 3}, "pass": 1, "pass_share": 0.5, "ids": "", "next_cycle": null});
        let cycle = json!({"kind": "cycle", "step": 20, "cycle": 2, "rows": 10, "objective": 0.5, "nmi_prev": 0.7, "nmi_labels": 0.4,
            "reassigned": 0.1, "empty": 0, "largest_share": 0.6, "entropy": 2.0, "sizes": [6, 4], "bank_age": 5.0, "iterations": 3,
            "seconds": 1.0, "stood_s": 0.4});
        let path = "snapshots/step-000000020".to_owned();
        let parsed = [step, cycle].map(|line| serde_json::from_value(line).expect("a record"));
        let snapshot = SnapshotRecord { step: 20, path, bytes: 4_096, seconds: 2.0, stood_s: 0.5 };
        let alarm = AlarmRecord { step: 20, alarm: "collapse".into(), message: String::new() };
        parsed.into_iter().chain([Record::Snapshot(snapshot), Record::Alarm(alarm)]).collect()
    }

    #[test]
    fn every_number_of_the_table_is_shown_and_no_other() -> Result<()> {
        let meters = Meters::new(Baseline::default())?;
        records().iter().for_each(|record| meters.record(record));
        let text = meters.render(&live());
        let shown: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' ').map(|(name, _)| name))
            .collect();
        // a machine without a GPU has none of its memory to show
        let all: BTreeSet<&str> =
            METRICS.iter().map(|(name, _, _)| *name).filter(|name| !name.starts_with("shoal_gpu")).collect();
        assert_eq!(shown, all);
        let described = text.lines().filter(|line| line.starts_with("# HELP ")).count();
        assert_eq!(described, shown.len(), "each says what it is");
        Ok(())
    }

    #[test]
    fn records_and_times_come_out_as_they_went_in() -> Result<()> {
        let meters = Meters::new(Baseline::default())?;
        records().iter().for_each(|record| meters.record(record));
        let times = |wait, train| Times { wait, assign: std::time::Duration::ZERO, train };
        let ms = std::time::Duration::from_millis;
        [3, 4, 700].into_iter().for_each(|wait| meters.steps(times(ms(wait), ms(60)), 1));
        let text = meters.render(&live());
        for line in [
            "shoal_steps_total 20",
            "shoal_loss 3.5",
            "shoal_samples_lost_total{reason=\"decode_failed\"} 2",
            "shoal_cycle_nmi_previous 0.7",
            "shoal_step_seconds_bucket{part=\"wait\",le=\"0.005\"} 2",
            "shoal_step_seconds_bucket{part=\"wait\",le=\"1\"} 3",
            "shoal_step_seconds_count{part=\"train\"} 3",
            "shoal_queue_capacity{queue=\"shuffle\"} 500",
            "shoal_stage{stage=\"start\"} 1",
            "shoal_stage{stage=\"train\"} 0",
            "shoal_alarms_total{alarm=\"collapse\"} 1",
            "shoal_ranks 2",
            "shoal_rank_wait_seconds_total{rank=\"1\"} 30",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        Ok(())
    }

    #[test]
    fn counters_of_a_resumed_run_count_what_this_process_does() -> Result<()> {
        let baseline = Baseline {
            step: 15,
            images: 480,
            losses: BTreeMap::from([("decode_failed".into(), 1)]),
            filtered: BTreeMap::from([("too_small".into(), 5)]),
        };
        let meters = Meters::new(baseline)?;
        records().iter().for_each(|record| meters.record(record));
        let text = meters.render(&live());
        for line in [
            "shoal_step 20",
            "shoal_steps_total 5",
            "shoal_images_total 160",
            "shoal_samples_lost_total{reason=\"decode_failed\"} 1",
            "shoal_samples_lost_total{reason=\"unreachable\"} 0",
            "shoal_samples_filtered_total{rule=\"too_small\"} 0",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        Ok(())
    }

    #[test]
    fn two_runs_do_not_mix() -> Result<()> {
        let (one, other) = (Meters::new(Baseline::default())?, Meters::new(Baseline::default())?);
        records().iter().for_each(|record| one.record(record));
        assert!(!other.render(&live()).contains("shoal_steps_total 20"));
        Ok(())
    }
}
