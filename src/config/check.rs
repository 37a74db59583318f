//! What the values of a plan must satisfy, alone and beside each other, before anything starts.
//!
//! In comes a typed plan; out come [`Problem`]s, none for a plan that can run. What only the data can tell (whether the
//! list is finite, as `refresh = "full"` needs it, or longer than the bank) is not looked at here.

mod labels;

use crate::shards::metadata::LICENCES;

use super::{Arch, Balance, Labels, Plan, Schedule};
use std::net::SocketAddr;

/// Classes that a head may have: more are numbers that were never meant to be counted from 0.
pub(crate) const MOST_CLASSES: usize = 1_000_000;

/// A value that is out of its range, or at odds with another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The keys at odds, `section.key`, the one most likely meant to change first.
    pub keys: Vec<&'static str>,
    /// Key, value, and what is allowed.
    pub what: String,
}

impl Plan {
    /// Every problem of the plan, in the order of its sections.
    pub fn check(&self) -> Vec<Problem> {
        let mut checks = Checks::default();
        self.check_stream(&mut checks);
        self.check_fetch(&mut checks);
        self.check_views(&mut checks);
        match self.train.labels {
            Labels::Clusters => self.check_clusters(&mut checks),
            Labels::Classes => self.check_classes(&mut checks),
        }
        self.check_train(&mut checks);
        self.check_rest(&mut checks);
        self.check_filter(&mut checks);
        checks.problems
    }

    fn check_stream(&self, checks: &mut Checks) {
        let stream = &self.stream;
        checks.require(!stream.shards.is_empty(), &["stream.shards"], || {
            "stream.shards is empty: name at least one shard, as in --set stream.shards=photos.tar".into()
        });
        checks.require(stream.shards.iter().all(|shard| !shard.trim().is_empty()), &["stream.shards"], || {
            "stream.shards holds an empty name".into()
        });
        checks.require(i64::try_from(stream.seed).is_ok(), &["stream.seed"], || {
            format!("stream.seed = {} must be at most {}", stream.seed, i64::MAX)
        });
        checks.count("stream.lanes", stream.lanes, 1, 1_024);
        checks.at_least("stream.max_member_mib", stream.max_member_mib, 1);
        checks.at_least("stream.buffer_mib", stream.buffer_mib, 1);
        checks.above("stream.max_megapixels", stream.max_megapixels, 0.0);
        checks.above_up_to("stream.max_loss_rate", stream.max_loss_rate, 0.0, 1.0);
        checks.at_least("stream.loss_window", stream.loss_window, 1);
        checks.above_up_to("stream.max_shard_loss", stream.max_shard_loss, 0.0, 1.0);
        let (weights, entries) = (&stream.weights, stream.shards.len());
        checks.require(weights.is_empty() || weights.len() == entries, &["stream.weights", "stream.shards"], || {
            format!(
                "stream.weights has {} numbers, stream.shards {entries} entries: give one weight for each",
                weights.len()
            )
        });
        let are_weights = weights.iter().all(|weight| *weight > 0.0 && weight.is_finite());
        checks.require(are_weights, &["stream.weights"], || {
            format!("stream.weights = {weights:?} must be numbers above 0: leave out an entry that should not come")
        });
        checks.require(!stream.follow || weights.is_empty(), &["stream.follow", "stream.weights"], || {
            "stream.follow = true is for one list: stream.weights would wait for the list that has nothing new".into()
        });
        checks.above("stream.follow_every_s", stream.follow_every_s, 0.0);
        checks.zero_or_above("stream.follow_settle_s", stream.follow_settle_s);
    }

    fn check_fetch(&self, checks: &mut Checks) {
        let fetch = &self.fetch;
        checks.above("fetch.timeout_s", fetch.timeout_s, 0.0);
        checks.above("fetch.max_pause_s", fetch.max_pause_s, 0.0);
        checks.zero_or_above("fetch.outage_minutes", fetch.outage_minutes);
        checks.zero_or_above("fetch.min_kib_per_s", fetch.min_kib_per_s);
        checks.above_up_to("fetch.range_mib", fetch.range_mib, 0.0, 1_024.0);
        checks.count("fetch.ranges", fetch.ranges, 1, 64);
        checks.count("fetch.connections", fetch.connections, 1, 1_024);
        let is_web = ["http://", "https://"].iter().any(|scheme| fetch.endpoint.starts_with(scheme));
        checks.require(fetch.endpoint.is_empty() || is_web, &["fetch.endpoint"], || {
            "fetch.endpoint must begin with http:// or https://".into()
        });
        checks.require(!fetch.endpoint.contains(['@', '?']), &["fetch.endpoint"], || {
            "fetch.endpoint must be without credentials: they come from the environment".into()
        });
        checks.above("fetch.cache_gib", fetch.cache_gib, 0.0);
    }

    fn check_views(&self, checks: &mut Checks) {
        let views = &self.views;
        let smallest = smallest_view(self.model.arch);
        checks.require(views.size >= smallest, &["views.size", "model.arch"], || {
            let arch = self.model.arch.name();
            format!(
                "views.size = {} must be at least {smallest}: less does not pass the strides of `{arch}`",
                views.size
            )
        });
        checks.require(views.resize >= views.size, &["views.resize", "views.size"], || {
            let (resize, size) = (views.resize, views.size);
            format!("views.resize = {resize} must be at least views.size = {size}: the center crop is cut from it")
        });
        checks.require(views.resize <= 4_096, &["views.resize"], || {
            format!("views.resize = {} must be at most 4096", views.resize)
        });

        let [area_low, area_high] = views.area;
        checks.require(0.0 < area_low && area_low <= area_high && area_high <= 1.0, &["views.area"], || {
            format!("views.area = {:?} must be two shares above 0 and up to 1, the smaller first", views.area)
        });
        let [aspect_low, aspect_high] = views.aspect;
        let aspect_is_ordered = 0.0 < aspect_low && aspect_low <= aspect_high && aspect_high.is_finite();
        checks.require(aspect_is_ordered, &["views.aspect"], || {
            format!("views.aspect = {:?} must be two ratios above 0, the smaller first", views.aspect)
        });
        checks.share("views.flip", views.flip);
        checks.require(views.mean.iter().all(|mean| (0.0..=1.0).contains(mean)), &["views.mean"], || {
            format!("views.mean = {:?} must be from 0 to 1: means are of pixels divided by 255", views.mean)
        });
        checks.require(views.std.iter().all(|std| *std > 0.0 && *std <= 1.0), &["views.std"], || {
            format!("views.std = {:?} must be above 0 and up to 1: deviations are of pixels divided by 255", views.std)
        });
        checks.require((0.0..1.0).contains(&self.model.dropout), &["model.dropout"], || {
            format!("model.dropout = {} must be from 0 to below 1", self.model.dropout)
        });
    }

    fn check_train(&self, checks: &mut Checks) {
        let train = &self.train;
        checks.above("train.temperature", train.temperature, 0.0);
        checks.require(train.batch_size >= 2, &["train.batch_size"], || {
            format!(
                "train.batch_size = {} must be at least 2: batch norm takes the variance of a batch",
                train.batch_size
            )
        });
        checks.above("train.lr", train.lr, 0.0);
        checks.require((0.0..1.0).contains(&train.momentum), &["train.momentum"], || {
            format!("train.momentum = {} must be from 0 to below 1", train.momentum)
        });
        checks.zero_or_above("train.weight_decay", train.weight_decay);
        checks.require(
            train.schedule != Schedule::Cosine || train.steps > 0,
            &["train.schedule", "train.steps"],
            || "train.schedule = \"cosine\" needs train.steps above 0: it comes down to zero there".into(),
        );
        checks.require(
            train.steps == 0 || train.warmup_steps < train.steps,
            &["train.warmup_steps", "train.steps"],
            || format!("train.warmup_steps = {} must be below train.steps = {}", train.warmup_steps, train.steps),
        );
        if train.schedule == Schedule::Step {
            checks.above_up_to("train.lr_gamma", train.lr_gamma, 0.0, 1.0);
            checks.require(train.lr_step_size >= 1, &["train.lr_step_size"], || {
                format!("train.lr_step_size = {} must be at least 1", train.lr_step_size)
            });
        }
        if train.balance == Balance::Weight {
            checks.require(
                train.balance_limit >= 1.0 && train.balance_limit.is_finite(),
                &["train.balance_limit"],
                || format!("train.balance_limit = {} must be a number from 1 up", train.balance_limit),
            );
        }
        checks.count("train.balance_window", train.balance_window, 1, 4_096);
    }

    fn check_rest(&self, checks: &mut Checks) {
        checks.zero_or_above("snapshot.every_minutes", self.snapshot.every_minutes);
        checks.at_least("snapshot.keep_last", self.snapshot.keep_last, 1);
        checks.require(self.observe.every_steps >= 1, &["observe.every_steps"], || {
            "observe.every_steps = 0 must be at least 1".into()
        });
        let page = &self.observe.page;
        checks.require(page.is_empty() || page.parse::<SocketAddr>().is_ok(), &["observe.page"], || {
            format!("observe.page = {page:?} must be an address of numbers with a port: 127.0.0.1:7878, or [::1]:7878")
        });
        checks.above_up_to("observe.collapse_share", self.observe.collapse_share, 0.0, 1.0);
        checks.count("device.threads", self.device.threads, 0, 1_024);
        checks.count("device.decode_threads", self.device.decode_threads, 0, 1_024);
        checks.above("ranks.timeout_s", self.ranks.timeout_s, 0.0);
        checks.count("ranks.bucket_mib", self.ranks.bucket_mib, 1, 4_096);
    }

    fn check_filter(&self, checks: &mut Checks) {
        let filter = &self.filter;
        let aspect = filter.max_aspect;
        checks.require(aspect == 0.0 || (aspect >= 1.0 && aspect.is_finite()), &["filter.max_aspect"], || {
            format!("filter.max_aspect = {aspect} must be 0, or a number from 1 up: the longer side over the shorter")
        });
        checks.zero_or_above("filter.uniform", filter.uniform);
        checks.count("filter.near_bits", filter.near_bits as usize, 0, 8);
        checks.count("filter.remember", filter.remember, 1, 1_000_000_000);
        for name in &filter.licences {
            checks.require(LICENCES.contains(&name.as_str()), &["filter.licences"], || {
                format!("filter.licences: \"{name}\" is not one of {}", LICENCES.join(", "))
            });
        }
        let has_metadata = !filter.metadata.trim().is_empty();
        checks.require(filter.licences.is_empty() || has_metadata, &["filter.metadata", "filter.licences"], || {
            "filter.licences needs filter.metadata, the file that knows the licences".into()
        });
    }
}

/// The smallest view whose last feature map has a pixel left.
fn smallest_view(arch: Arch) -> u32 {
    match arch {
        // 11x11 by 4 with padding 2, then three poolings of 3x3 by 2: 63 -> 15 -> 7 -> 3 -> 1
        Arch::AlexNet => 63,
        Arch::Vgg16 | Arch::ResNet18 | Arch::ResNet50 => 32,
        Arch::Small => 9,
    }
}

#[derive(Default)]
struct Checks {
    problems: Vec<Problem>,
}

impl Checks {
    fn require(&mut self, holds: bool, keys: &[&'static str], what: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(Problem { keys: keys.to_vec(), what: what() });
        }
    }

    fn at_least(&mut self, key: &'static str, value: usize, least: usize) {
        self.require(value >= least, &[key], || format!("{key} = {value} must be at least {least}"));
    }

    fn count(&mut self, key: &'static str, value: usize, least: usize, most: usize) {
        let holds = (least..=most).contains(&value);
        self.require(holds, &[key], || format!("{key} = {value} must be from {least} to {most}"));
    }

    fn above(&mut self, key: &'static str, value: f64, floor: f64) {
        let holds = value > floor && value.is_finite();
        self.require(holds, &[key], || format!("{key} = {value} must be a number above {floor}"));
    }

    fn above_up_to(&mut self, key: &'static str, value: f64, floor: f64, most: f64) {
        let holds = value > floor && value <= most;
        self.require(holds, &[key], || format!("{key} = {value} must be above {floor} and up to {most}"));
    }

    fn zero_or_above(&mut self, key: &'static str, value: f64) {
        let holds = value >= 0.0 && value.is_finite();
        self.require(holds, &[key], || format!("{key} = {value} must be a number from 0 up"));
    }

    fn share(&mut self, key: &'static str, value: f64) {
        let holds = (0.0..=1.0).contains(&value);
        self.require(holds, &[key], || format!("{key} = {value} must be from 0 to 1"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    fn sound() -> Plan {
        let mut plan = Plan::default();
        plan.stream.shards = vec!["photos.tar".into()];
        plan
    }

    /// The only problem of a sound plan after `change`, as its keys and text.
    fn only_problem(change: impl FnOnce(&mut Plan)) -> (String, String) {
        let mut plan = sound();
        change(&mut plan);
        let problems = plan.check();
        assert_eq!(problems.len(), 1, "{problems:?}");
        (problems[0].keys.join(" "), problems[0].what.clone())
    }

    #[test]
    fn the_defaults_lack_nothing_but_shards() {
        assert_eq!(sound().check(), []);
        let problems = Plan::default().check();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].keys, ["stream.shards"]);
    }

    #[test]
    fn single_values_have_ranges() {
        type Harm = fn(&mut Plan);
        let cases: &[(&str, Harm)] = &[
            ("stream.shards", |plan| plan.stream.shards.push(" ".into())),
            ("stream.seed", |plan| plan.stream.seed = u64::MAX),
            ("stream.lanes", |plan| plan.stream.lanes = 0),
            ("fetch.timeout_s", |plan| plan.fetch.timeout_s = 0.0),
            ("fetch.max_pause_s", |plan| plan.fetch.max_pause_s = 0.0),
            ("fetch.outage_minutes", |plan| plan.fetch.outage_minutes = -1.0),
            ("fetch.min_kib_per_s", |plan| plan.fetch.min_kib_per_s = f64::NAN),
            ("fetch.range_mib", |plan| plan.fetch.range_mib = 0.0),
            ("fetch.ranges", |plan| plan.fetch.ranges = 0),
            ("fetch.connections", |plan| plan.fetch.connections = 0),
            ("stream.max_member_mib", |plan| plan.stream.max_member_mib = 0),
            ("stream.max_megapixels", |plan| plan.stream.max_megapixels = f64::NAN),
            ("stream.max_loss_rate", |plan| plan.stream.max_loss_rate = 1.1),
            ("stream.loss_window", |plan| plan.stream.loss_window = 0),
            ("filter.licences", |plan| {
                (plan.filter.licences, plan.filter.metadata) = (vec!["gpl".into()], "photos.tsv".into());
            }),
            ("filter.max_aspect", |plan| plan.filter.max_aspect = 0.5),
            ("filter.uniform", |plan| plan.filter.uniform = -1.0),
            ("filter.near_bits", |plan| plan.filter.near_bits = 9),
            ("filter.remember", |plan| plan.filter.remember = 0),
            ("fetch.endpoint", |plan| plan.fetch.endpoint = "host:9000".into()),
            ("fetch.endpoint", |plan| plan.fetch.endpoint = "http://key:secret@host".into()),
            ("fetch.cache_gib", |plan| plan.fetch.cache_gib = 0.0),
            ("stream.weights", |plan| plan.stream.weights = vec![0.0]),
            ("stream.follow_every_s", |plan| plan.stream.follow_every_s = 0.0),
            ("stream.follow_settle_s", |plan| plan.stream.follow_settle_s = -1.0),
            ("views.area", |plan| plan.views.area = [0.5, 0.4]),
            ("views.area", |plan| plan.views.area = [f64::NAN, 1.0]),
            ("views.aspect", |plan| plan.views.aspect = [0.0, 1.0]),
            ("views.flip", |plan| plan.views.flip = 1.5),
            ("views.mean", |plan| plan.views.mean[2] = 128.0),
            ("views.std", |plan| plan.views.std[0] = 0.0),
            ("model.dropout", |plan| plan.model.dropout = 1.0),
            ("cluster.k", |plan| plan.cluster.k = 1),
            ("cluster.iterations", |plan| plan.cluster.iterations = 0),
            ("train.lr", |plan| plan.train.lr = f64::INFINITY),
            ("train.batch_size", |plan| plan.train.batch_size = 1),
            ("train.momentum", |plan| plan.train.momentum = 1.0),
            ("train.weight_decay", |plan| plan.train.weight_decay = -1e-5),
            ("train.balance_limit", |plan| plan.train.balance_limit = 0.5),
            ("train.balance_window", |plan| plan.train.balance_window = 0),
            ("snapshot.every_minutes", |plan| plan.snapshot.every_minutes = -1.0),
            ("snapshot.keep_last", |plan| plan.snapshot.keep_last = 0),
            ("observe.every_steps", |plan| plan.observe.every_steps = 0),
            ("observe.page", |plan| plan.observe.page = "localhost:7878".into()),
            ("observe.collapse_share", |plan| plan.observe.collapse_share = 0.0),
        ];
        for (key, harm) in cases {
            let (keys, what) = only_problem(harm);
            assert_eq!(keys, *key);
            assert!(what.starts_with(key), "{what}");
        }
    }

    #[test]
    fn values_must_agree() {
        let too_small = only_problem(|plan| plan.bank.capacity = 9_999);
        assert_eq!(too_small.0, "bank.capacity cluster.k");
        assert_eq!(
            too_small.1,
            "bank.capacity = 9999 must be at least cluster.k = 10000: each cluster needs a row to start from"
        );
        for (every_steps, overlap_steps) in [(100, 100), (1, 0)] {
            let never_alone = only_problem(|plan| {
                (plan.cluster.overlap, plan.cluster.every_steps, plan.cluster.overlap_steps) =
                    (true, every_steps, overlap_steps);
            });
            assert_eq!(never_alone.0, "cluster.overlap_steps cluster.every_steps");
        }
        let follows_a_mix = only_problem(|plan| {
            plan.stream.follow = true;
            plan.stream.weights = vec![1.0];
        });
        assert_eq!(follows_a_mix.0, "stream.follow stream.weights");
        assert_eq!(only_problem(|plan| plan.stream.weights = vec![1.0, 2.0]).0, "stream.weights stream.shards");
        let endless_pass = only_problem(|plan| {
            plan.stream.follow = true;
            plan.cluster.every_steps = 0;
            plan.cluster.refresh = Refresh::Full;
        });
        assert!(endless_pass.0.starts_with("cluster.every_steps"), "{endless_pass:?}");
        let unknown = only_problem(|plan| plan.filter.licences = vec!["by".into()]);
        assert_eq!(unknown.0, "filter.metadata filter.licences");
        assert_eq!(only_problem(|plan| plan.views.size = 257).0, "views.resize views.size");
        assert_eq!(only_problem(|plan| plan.stream.buffer_mib = 0).0, "stream.buffer_mib");
        assert_eq!(only_problem(|plan| plan.train.schedule = Schedule::Cosine).0, "train.schedule train.steps");
        let late_warmup = |plan: &mut Plan| (plan.train.steps, plan.train.warmup_steps) = (10, 10);
        assert_eq!(only_problem(late_warmup).0, "train.warmup_steps train.steps");
        let narrow = |plan: &mut Plan| (plan.model.arch, plan.cluster.pca) = (Arch::ResNet18, 513);
        assert_eq!(only_problem(narrow).0, "cluster.pca bank.capacity");
    }

    #[test]
    fn a_cycle_of_one_pass_needs_the_full_refresh() {
        assert_eq!(only_problem(|plan| plan.cluster.every_steps = 0).0, "cluster.every_steps cluster.refresh");
        let mut epochs = sound();
        (epochs.cluster.every_steps, epochs.cluster.refresh) = (0, Refresh::Full);
        assert_eq!(epochs.check(), []);
    }

    #[test]
    fn views_must_pass_the_strides_of_the_network() {
        assert_eq!(only_problem(|plan| plan.views.size = 62).0, "views.size model.arch");
        let mut small = sound();
        (small.views.size, small.model.arch) = (28, Arch::Small);
        assert_eq!(small.check(), []);
    }

    #[test]
    fn keys_of_other_choices_are_not_looked_at() {
        let mut plan = sound();
        (plan.train.lr_gamma, plan.train.lr_step_size) = (7.0, 0);
        assert_eq!(plan.check(), []);
        plan.train.schedule = Schedule::Step;
        assert_eq!(plan.check().len(), 2);
    }
}
