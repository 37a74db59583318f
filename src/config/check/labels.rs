//! What `[bank]`, `[cluster]` and `[train]` must satisfy for labels to be had: those of clusters, or the classes of the stream.

use super::{Checks, MOST_CLASSES};
use crate::config::{Arch, AssignerKind, Balance, Encoder, HeadRenewal, Plan, Refresh};

impl Plan {
    /// Keys of `[bank]` and `[cluster]` mean nothing where classes are learnt, and are not looked at then.
    pub(super) fn check_classes(&self, checks: &mut Checks) {
        let train = &self.train;
        checks.require(train.classes == 0 || (2..=MOST_CLASSES).contains(&train.classes), &["train.classes"], || {
            format!(
                "train.classes = {} must be from 2 to {MOST_CLASSES}, or 0 to learn it from the list",
                train.classes
            )
        });
        checks.require(train.classes > 0 || !self.stream.follow, &["train.classes", "stream.follow"], || {
            "train.classes = 0 reads the whole list for its labels, and with stream.follow = true it has no end".into()
        });
        checks.require(train.balance != Balance::Sample, &["train.balance", "train.labels"], || {
            "train.balance = \"sample\" draws over clusters: with train.labels = \"classes\" every image counts alike".into()
        });
        checks.require(train.head != HeadRenewal::Centroids, &["train.head", "train.labels"], || {
            "train.head = \"centroids\" is for clusters: with train.labels = \"classes\" the head is trained and never renewed".into()
        });
    }

    pub(super) fn check_clusters(&self, checks: &mut Checks) {
        let (bank, cluster) = (&self.bank, &self.cluster);
        checks.require(self.train.classes == 0, &["train.classes", "train.labels"], || {
            let classes = self.train.classes;
            format!("train.classes = {classes} is a choice of train.labels = \"classes\": cluster.k is the number of clusters")
        });
        checks.at_least("cluster.k", cluster.k, 2);
        checks.require(bank.capacity >= cluster.k, &["bank.capacity", "cluster.k"], || {
            let (capacity, k) = (bank.capacity, cluster.k);
            format!(
                "bank.capacity = {capacity} must be at least cluster.k = {k}: each cluster needs a row to start from"
            )
        });
        checks.require(bank.capacity >= self.train.batch_size, &["bank.capacity", "train.batch_size"], || {
            let (capacity, batch) = (bank.capacity, self.train.batch_size);
            format!(
                "bank.capacity = {capacity} must be at least train.batch_size = {batch}: a batch is written at once"
            )
        });
        checks.require(
            cluster.every_steps > 0 || cluster.refresh == Refresh::Full,
            &["cluster.every_steps", "cluster.refresh"],
            || {
                "cluster.every_steps = 0 means once a pass, which needs cluster.refresh = \"full\"; \
                 otherwise it must be at least 1"
                    .into()
            },
        );
        checks.require(
            cluster.every_steps > 0 || (self.stream.weights.is_empty() && !self.stream.follow),
            &["cluster.every_steps", "stream.weights", "stream.follow"],
            || {
                "cluster.every_steps = 0 means once a pass: lists mixed by stream.weights have no pass in common, \
                 and with stream.follow = true a pass has no end"
                    .into()
            },
        );
        checks.require(
            cluster.refresh == Refresh::Rolling || bank.encoder == Encoder::Assigner,
            &["bank.encoder", "cluster.refresh"],
            || "bank.encoder is a choice of cluster.refresh = \"rolling\": otherwise the student fills the bank".into(),
        );
        checks.require(
            cluster.refresh != Refresh::Full || cluster.assigner == AssignerKind::Frozen,
            &["cluster.assigner", "cluster.refresh"],
            || {
                "cluster.assigner = \"live\" has no effect with cluster.refresh = \"full\", whose labels are kept by id"
                    .into()
            },
        );
        checks.at_least("cluster.iterations", cluster.iterations, 1);
        checks.share("cluster.tolerance", cluster.tolerance);
        checks.require(cluster.coarse == 0 || (2..=cluster.k).contains(&cluster.coarse), &["cluster.coarse"], || {
            format!(
                "cluster.coarse = {} must be from 2 to cluster.k = {}, or 0 for one level",
                cluster.coarse, cluster.k
            )
        });
        checks.require(cluster.coarse == 0 || !cluster.balanced, &["cluster.balanced", "cluster.coarse"], || {
            "cluster.balanced = true knows one level: set cluster.coarse = 0".into()
        });
        checks.require(!cluster.overlap || cluster.refresh != Refresh::Rolling, &["cluster.overlap", "cluster.refresh"], || {
            "cluster.overlap = true needs a bank that holds still meanwhile: cluster.refresh = \"refill\" or \"full\"".into()
        });
        let (steps, every) = (cluster.steps_beside(), cluster.every_steps);
        checks.require(
            !cluster.overlap || (steps > 0 && (every == 0 || steps < every)),
            &["cluster.overlap_steps", "cluster.every_steps"],
            || {
                let key = cluster.overlap_steps;
                format!(
                    "cluster.overlap_steps = {key} (0: half of cluster.every_steps) makes {steps} steps, which must be above 0 and \
                     below cluster.every_steps = {every}"
                )
            },
        );
        checks.at_least("cluster.neighbours", cluster.neighbours, 1);
        checks.above("cluster.sigma", cluster.sigma, 0.0);
        let features = feature_size(self.model.arch);
        checks.require(bank.projection <= features, &["bank.projection", "model.arch"], || {
            let (dims, arch) = (bank.projection, self.model.arch.name());
            format!("bank.projection = {dims} must not be above the {features} features of `{arch}`; 0 keeps them all")
        });
        let kept = if bank.projection > 0 { bank.projection.min(features) } else { features };
        let most = kept.min(bank.capacity);
        checks.require((1..=most).contains(&cluster.pca), &["cluster.pca", "bank.capacity"], || {
            let arch = self.model.arch.name();
            format!(
                "cluster.pca = {} must be from 1 to {most}: no more than the features of `{arch}` and the rows of the bank",
                cluster.pca
            )
        });
    }
}

/// Length of the clustered feature.
fn feature_size(arch: Arch) -> usize {
    match arch {
        Arch::AlexNet | Arch::Vgg16 => 4_096,
        Arch::ResNet18 => 512,
        Arch::ResNet50 => 2_048,
        Arch::Small => 256,
    }
}
