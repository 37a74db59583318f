//! Each stage of a run under way: how fast it is, and how full the queue behind it.

use crate::observe::{Live, Rates, Stage};
use crate::shards::Reason;
use crate::train::record::StepRecord;
use serde::Serialize;

/// A stage, from left to right in the drawing.
#[derive(Debug, Serialize)]
pub(super) struct StageView {
    pub(super) name: &'static str,
    /// What it is about.
    pub(super) text: String,
    /// Whether it has work, and nothing to wait for.
    pub(super) busy: bool,
    /// How fast it was of late.
    pub(super) rate: Option<f64>,
    pub(super) unit: &'static str,
    /// Samples lost in it since the run began.
    pub(super) lost: u64,
    /// What waits behind it.
    pub(super) queue: Option<QueueView>,
}

/// A queue.
#[derive(Debug, Serialize)]
pub(super) struct QueueView {
    pub(super) what: &'static str,
    pub(super) length: u64,
    pub(super) capacity: u64,
}

/// What the trainer is about.
#[derive(Debug, Serialize)]
pub(super) struct Doing {
    pub(super) stage: &'static str,
    pub(super) doing: &'static str,
    pub(super) detail: String,
    pub(super) for_s: f64,
    /// Since the last step ended.
    pub(super) step_ago_s: f64,
}

pub(super) fn doing(live: &Live) -> Doing {
    let (stage, detail, since) = live.activity.now();
    Doing {
        stage: stage.name(),
        doing: stage.doing(),
        detail: detail.into_owned(),
        for_s: since.as_secs_f64(),
        step_ago_s: live.activity.since_step().as_secs_f64(),
    }
}

/// `last` is the last record of training.
pub(super) fn stages(live: &Live, rates: &Rates, last: Option<&StepRecord>) -> Vec<StageView> {
    let sources = live.sources();
    let (stream, queues) = (&sources.progress, &sources.queues);
    let lanes = stream.lanes();
    let words = stream.lane_words();
    let (stage, detail, _) = live.activity.now();
    let queue = |what, length, capacity| Some(QueueView { what, length, capacity });
    let lost = |of_decoding: bool| {
        let losses = last.iter().flat_map(|last| &last.losses);
        let here = losses.filter(|(reason, _)| of_stage(reason, of_decoding)).map(|(_, count)| count);
        here.sum::<u64>()
    };
    let decoding = sources.decoders.read();
    let per_image = 1e3 * decoding.busy_s() / decoding.tried().max(1) as f64;
    vec![
        StageView {
            name: "read",
            text: if words.is_empty() { "no shard is open".into() } else { format!("shards: {words}") },
            busy: lanes.keys().any(|activity| *activity == crate::shards::Activity::Reading),
            rate: rates.per_second(|totals| totals.bytes as f64 / 1e6),
            unit: "MB/s",
            lost: lost(false),
            queue: None,
        },
        StageView {
            name: "shuffle",
            text: format!("{:.1} MB of images wait to be drawn", stream.shuffle_bytes() as f64 / 1e6),
            busy: stream.waiting().is_none() && queues.samples.len() < queues.samples.capacity(),
            rate: rates.per_second(|totals| totals.samples as f64),
            unit: "samples/s",
            lost: 0,
            queue: queue("in the buffer", stream.shuffle_samples(), live.shuffle as u64),
        },
        StageView {
            name: "decode",
            text: format!("{per_image:.2} ms an image and thread"),
            busy: queues.batches.len() < queues.batches.capacity(),
            rate: rates.per_second(|totals| totals.decoding.tried as f64),
            unit: "images/s",
            lost: lost(true),
            queue: queue("samples wait", queues.samples.len(), queues.samples.capacity()),
        },
        StageView {
            name: "train",
            text: stage.doing().to_owned(),
            busy: matches!(stage, Stage::Assign | Stage::Train),
            rate: last.map(|last| last.images_per_s),
            unit: "images/s",
            lost: 0,
            queue: queue("batches wait", queues.batches.len(), queues.batches.capacity()),
        },
        StageView {
            name: "cluster",
            text: match stage {
                Stage::Encode => format!("encoding: {}", detail),
                Stage::Cluster => detail.to_string(),
                _ => "at rest".to_owned(),
            },
            busy: matches!(stage, Stage::Encode | Stage::Cluster),
            rate: None,
            unit: "",
            lost: 0,
            queue: None,
        },
    ]
}

/// Whether a loss for this reason is found by decoding, or by reading.
fn of_stage(reason: &str, decoding: bool) -> bool {
    let known = Reason::ALL.iter().find(|known| known.name() == reason);
    known.is_some_and(|reason| reason.is_of_decoding()) == decoding
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Queues;
    use crate::observe::{Controls, Sources};
    use std::sync::Arc;

    #[test]
    fn losses_belong_to_the_stage_that_finds_them() {
        assert!(of_stage("decode_failed", true) && !of_stage("decode_failed", false));
        assert!(of_stage("truncated_shard", false) && !of_stage("truncated_shard", true));
        assert!(of_stage("a reason of a later version", false));
    }

    #[test]
    fn who_is_at_work_is_told_from_who_waits() {
        let queues = Queues::new(4, 1);
        let sources = Sources { progress: Arc::default(), decoders: Arc::default(), queues: Arc::new(queues) };
        let live = Live::new(sources.clone(), Controls::default(), false, 100);
        let busy = || -> Vec<&str> {
            let views = stages(&live, &Rates::default(), None);
            views.into_iter().filter(|stage| stage.busy).map(|stage| stage.name).collect()
        };
        live.activity.enter(Stage::Wait, "");
        assert_eq!(busy(), ["shuffle", "decode"]);
        live.activity.enter(Stage::Train, "");
        sources.queues.batches.count_put();
        (0..4).for_each(|_| sources.queues.samples.count_put());
        assert_eq!(busy(), ["train"]);
        live.activity.enter(Stage::Cluster, "k-means");
        assert_eq!(busy(), ["cluster"]);
        assert_eq!((doing(&live).stage, doing(&live).detail.as_str()), ("cluster", "k-means"));
    }
}
