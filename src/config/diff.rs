//! Which keys a run that has begun cannot change.
//!
//! In come the plan a run was saved with and the one it is started with again; out come the [`Change`]s that would break
//! it, each with the reason. Three kinds of keys break a run: those that shape what a snapshot holds (weights, bank,
//! centroids), those that decide the order of samples, in which the cursor counts, and those that the labels and weights so
//! far took for granted. All others may change from one start to the next: how long, how fast, how loud, on what device.

use std::path::Path;

use super::Plan;
use crate::secrets::identity;
use crate::{Error, Result};

/// A changed key that breaks a resumed run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: &'static str,
    /// The value of the run so far, as TOML.
    pub old: String,
    /// The value asked for, as TOML.
    pub new: String,
    /// What would break.
    pub why: &'static str,
}

const ORDER: &str = "it decides the order of samples, in which the cursor of the run counts";
const CHOSEN: &str = "it decides which samples the run is trained on, and which it remembers";
const WEIGHTS: &str = "the weights of the run have this shape";
const PIXELS: &str = "the weights of the run were trained on pixels of this scale";
const CENTROIDS: &str = "the centroids of the run have this shape";
const LABELS: &str = "the labels of the run come from it";

/// Keys that a run keeps for life, and why.
const FIXED: &[(&str, &str)] = &[
    (
        "stream.shards",
        "the cursor of the run counts in this list; shards may be added to folders and to files named as @list.txt",
    ),
    ("stream.seed", ORDER),
    ("stream.lanes", ORDER),
    ("stream.shuffle", ORDER),
    ("stream.max_member_mib", ORDER),
    ("stream.max_shard_loss", ORDER),
    ("views.size", WEIGHTS),
    ("views.mean", PIXELS),
    ("views.std", PIXELS),
    ("model.arch", WEIGHTS),
    ("model.input", WEIGHTS),
    ("bank.projection", CENTROIDS),
    ("cluster.k", CENTROIDS),
    ("cluster.pca", CENTROIDS),
    ("cluster.method", LABELS),
    ("cluster.assigner", LABELS),
    ("cluster.refresh", LABELS),
    ("cluster.overlap", LABELS),
    ("cluster.overlap_steps", LABELS),
    ("train.labels", LABELS),
    ("train.classes", WEIGHTS),
    ("train.balance", "a window of batches is drawn anew after a restart, by the rule it was drawn before"),
    ("train.balance_window", "a window of batches is drawn anew after a restart, by the rule it was drawn before"),
    ("filter.min_side", CHOSEN),
    ("filter.max_aspect", CHOSEN),
    ("filter.min_bytes", CHOSEN),
    ("filter.placeholders", CHOSEN),
    ("filter.uniform", CHOSEN),
    ("filter.uniform_bytes", CHOSEN),
    ("filter.duplicates", CHOSEN),
    ("filter.near_bits", CHOSEN),
    ("filter.remember", CHOSEN),
    ("stream.order", ORDER),
    ("stream.weights", ORDER),
    ("stream.shuffle_mib", ORDER),
    ("stream.follow", ORDER),
    ("filter.licences", CHOSEN),
    ("filter.metadata_key", CHOSEN),
];

impl Plan {
    /// The keys by which `self`, the plan of a run so far, and `new` differ and which the run cannot change, in the order of
    /// the plan.
    ///
    /// # Errors
    /// [`Error::Usage`] for a plan that TOML cannot hold; none that was loaded is.
    pub fn breaking_changes(&self, new: &Self) -> Result<Vec<Change>> {
        let (old, new) = (self.identified()?, new.identified()?);
        let mut changes = Vec::new();
        for &(name, why) in FIXED {
            let value = |table: &toml::Table| {
                let (section, key) = name.split_once('.')?;
                Some(table.get(section)?.get(key)?.to_string())
            };
            if let (Some(old), Some(new)) = (value(&old), value(&new))
                && old != new
            {
                changes.push(Change { key: name, old, new, why });
            }
        }
        Ok(changes)
    }

    /// The plan, with specs that stay the same when a URL is signed anew, or was stored without its credentials.
    fn identified(&self) -> Result<toml::Table> {
        let mut plan = self.clone();
        for spec in &mut plan.stream.shards {
            *spec = identity(spec);
        }
        plan.to_table()
    }

    /// Refuses to go on, under the plan `new`, with the run in `run` that was saved with `self`, where that would break it.
    ///
    /// # Errors
    /// [`Error::Usage`] with one line for each key.
    pub fn ensure_run_can_go_on(&self, new: &Self, run: &Path) -> Result<()> {
        let changes = self.breaking_changes(new)?;
        if changes.is_empty() {
            return Ok(());
        }
        let mut what = format!("the run in {} cannot go on with a changed pipeline:", run.display());
        for Change { key, old, new, why } in changes {
            match key {
                // too long to be read, most often
                "stream.shards" => what.push_str(&format!("\n  {key} has changed: {why}")),
                _ => what.push_str(&format!("\n  {key} = {new}, was {old}: {why}")),
            }
        }
        Err(Error::usage(what).with_hint("set these keys back, or start a new run with another --run"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::*;
    use super::FIXED;

    /// Keys that may change from one start to the next.
    const FREE: &[&str] = &[
        "fetch.endpoint",
        "fetch.anonymous",
        "fetch.cache",
        "fetch.cache_gib",
        "fetch.retries",
        "bank.capacity",
        "fetch.timeout_s",
        "fetch.max_pause_s",
        "fetch.outage_minutes",
        "fetch.min_kib_per_s",
        "fetch.range_mib",
        "fetch.ranges",
        "fetch.buffer_mib",
        "fetch.connections",
        "fetch.hedge",
        "stream.buffer_mib",
        "stream.max_megapixels",
        "stream.max_loss_rate",
        "stream.loss_window",
        "stream.exif",
        "stream.index",
        "filter.metadata",
        "views.resize",
        "views.area",
        "views.aspect",
        "views.flip",
        "model.dropout",
        "bank.encoder",
        "cluster.every_steps",
        "cluster.iterations",
        "cluster.tolerance",
        "cluster.spherical",
        "cluster.start",
        "cluster.empties",
        "cluster.small",
        "cluster.coarse",
        "cluster.balanced",
        "cluster.neighbours",
        "cluster.sigma",
        "train.batch_size",
        "train.steps",
        "train.lr",
        "train.momentum",
        "train.weight_decay",
        "train.schedule",
        "train.warmup_steps",
        "train.lr_gamma",
        "train.lr_step_size",
        "train.balance_limit",
        "train.head",
        "train.temperature",
        "snapshot.every_steps",
        "snapshot.every_minutes",
        "snapshot.keep_last",
        "snapshot.keep_every",
        "observe.every_steps",
        "observe.tensorboard",
        "observe.pictures",
        "observe.page",
        "observe.collapse_share",
        "observe.collapse_stop",
        "device.kind",
        "device.threads",
        "device.decode_threads",
        "device.precision",
        "stream.follow_every_s",
        "stream.follow_settle_s",
        "ranks.timeout_s",
        "ranks.bucket_mib",
        "ranks.sync_batch_norm",
        "ranks.check_every",
    ];

    #[test]
    fn every_key_is_either_fixed_or_free() {
        let table = Plan::default().to_table().unwrap();
        let all: BTreeSet<String> = table
            .iter()
            .flat_map(|(section, keys)| keys.as_table().unwrap().keys().map(move |key| format!("{section}.{key}")))
            .collect();
        let sorted: Vec<&str> = FIXED.iter().map(|(key, _)| *key).chain(FREE.iter().copied()).collect();
        assert_eq!(sorted.len(), all.len(), "a key is both fixed and free, or named twice");
        assert_eq!(sorted.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn a_run_may_go_on_longer_and_slower() {
        let old = Plan::default();
        let mut new = old.clone();
        (new.train.steps, new.train.lr, new.device.threads) = (9, 0.001, 3);
        assert_eq!(old.breaking_changes(&new).unwrap(), []);
        assert!(old.ensure_run_can_go_on(&new, "runs/a".as_ref()).is_ok());
    }

    #[test]
    fn a_run_may_go_on_with_urls_signed_anew() {
        let of = |spec: &str| {
            let mut plan = Plan::default();
            plan.stream.shards = vec![spec.to_owned()];
            plan
        };
        let old = of("https://me:one@h/{0..9}.tar?id=7&X-Amz-Signature=abc&X-Amz-Date=1");
        let text = old.to_toml().unwrap();
        assert!(!text.contains("one@") && !text.contains("abc") && text.contains("left out"), "{text}");
        let stored = Plan::parse(&text, "pipeline.toml".as_ref(), &[]).unwrap();
        let signed_anew = of("https://me:two@h/{0..9}.tar?id=7&X-Amz-Signature=def&X-Amz-Date=2");
        assert_eq!(stored.breaking_changes(&signed_anew).unwrap(), []);
        let another = of("https://h/{0..9}.tar?id=8&X-Amz-Signature=def&X-Amz-Date=2");
        assert_eq!(stored.breaking_changes(&another).unwrap().len(), 1);
    }

    #[test]
    fn a_run_cannot_change_its_shape_or_order() {
        let old = Plan::default();
        let mut new = old.clone();
        (new.model.arch, new.stream.seed, new.cluster.k) = (Arch::Vgg16, 32, 100);
        let changes = old.breaking_changes(&new).unwrap();
        let told: Vec<_> =
            changes.iter().map(|change| (change.key, change.old.as_str(), change.new.as_str())).collect();
        assert_eq!(
            told,
            [("stream.seed", "31", "32"), ("model.arch", "\"alexnet\"", "\"vgg16\""), ("cluster.k", "10000", "100")]
        );
        let error = old.ensure_run_can_go_on(&new, "runs/a".as_ref()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("\n  cluster.k = 100, was 10000: "), "{error}");
    }
}
