//! Pipeline files: those that come with shoal, and how the wrong ones are refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use shoal::config::{Arch, AssignerKind, Balance, Encoder, Labels, Plan, Precision, Refresh, Schedule};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines")
}

fn parse(text: &str, overrides: &[&str]) -> shoal::Result<Plan> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Plan::parse(text, Path::new("x.toml"), &overrides)
}

fn refusal(text: &str, overrides: &[&str]) -> String {
    let error = parse(text, overrides).expect_err("a wrong pipeline is refused");
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

const SHARDS: &str = "[stream]\nshards = ['a.tar']\n";

#[test]
fn every_pipeline_that_comes_with_shoal_loads() {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let overrides = if name == "reference" { vec!["stream.shards=a.tar".to_owned()] } else { Vec::new() };
        Plan::load(&path, &overrides).unwrap_or_else(|error| panic!("{error}"));
        names.insert(name);
    }
    for name in [
        "demo",
        "fashion",
        "fashion-supervised",
        "yfcc100m-alexnet",
        "yfcc100m-vgg16",
        "imagenet-alexnet",
        "imagenet-alexnet-supervised",
        "reference",
    ] {
        assert!(names.contains(name), "{name} is missing");
    }
}

#[test]
fn the_reference_lists_every_key_with_its_default() {
    let text = fs::read_to_string(folder().join("reference.toml")).unwrap();
    let reference: toml::Table = text.parse().unwrap();
    assert_eq!(reference, toml::Table::try_from(Plan::default()).unwrap());
}

#[test]
fn the_papers_pipelines_have_the_papers_numbers() {
    for name in ["yfcc100m-alexnet", "yfcc100m-vgg16", "imagenet-alexnet"] {
        let plan = Plan::load(&folder().join(name).with_extension("toml"), &[]).unwrap();
        assert_eq!((plan.cluster.k, plan.cluster.pca, plan.cluster.iterations), (10_000, 256, 20), "{name}");
        assert_eq!((plan.train.batch_size, plan.train.lr, plan.train.momentum), (256, 0.05, 0.9), "{name}");
        assert_eq!((plan.train.weight_decay, plan.train.schedule), (1e-5, Schedule::Constant), "{name}");
        assert_eq!((plan.views.size, plan.views.area, plan.model.dropout), (224, [0.08, 1.0], 0.5), "{name}");
    }
    let epochs = Plan::load(&folder().join("imagenet-alexnet.toml"), &[]).unwrap();
    assert_eq!((epochs.cluster.refresh, epochs.cluster.every_steps), (Refresh::Full, 0));
    assert_eq!(epochs.bank.capacity, 1_281_167);
}

#[test]
fn supervised_pipelines_differ_from_those_they_are_compared_with_by_their_labels() {
    for (name, classes) in [("fashion", 10), ("imagenet-alexnet", 1_000)] {
        let load = |name: &str| Plan::load(&folder().join(name).with_extension("toml"), &[]).unwrap();
        let (ours, theirs) = (load(name), load(&format!("{name}-supervised")));
        assert_eq!((theirs.train.labels, theirs.train.classes), (Labels::Classes, classes), "{name}");
        assert_eq!((&ours.stream, &ours.views, &ours.model), (&theirs.stream, &theirs.views, &theirs.model), "{name}");
        assert_eq!((ours.train.batch_size, ours.train.lr), (theirs.train.batch_size, theirs.train.lr), "{name}");
    }
}

#[test]
fn a_pipeline_is_found_by_its_bare_name() {
    // Cargo starts tests in the folder of the package.
    let by_name = Plan::load(Path::new("demo"), &[]).unwrap();
    assert_eq!(by_name, Plan::load(&folder().join("demo.toml"), &[]).unwrap());
    assert_eq!(by_name, Plan::load(Path::new("demo.toml"), &[]).unwrap());

    let missing = Plan::load(Path::new("demmo"), &[]).unwrap_err();
    assert_eq!(missing.to_string(), "there is no pipeline file demmo; did you mean `demo`?");
    assert!(missing.hint().unwrap().contains("yfcc100m-vgg16"), "{missing:?}");
    let elsewhere = Plan::load(Path::new("no/demo"), &[]).unwrap_err();
    assert_eq!(elsewhere.exit_code(), 2);
    assert!(Plan::load(Path::new("src"), &[]).unwrap_err().to_string().contains("is a folder"));
}

#[test]
fn overrides_win_over_the_file_and_over_those_before() {
    let text = format!("{SHARDS}[train]\nlr = 0.5\n");
    let plan =
        parse(&text, &["train.lr=0.1", "cluster.assigner=live", "train.lr=0.02", "views.area=[0.3, 1]"]).unwrap();
    assert_eq!(plan.train.lr, 0.02);
    assert_eq!(plan.cluster.assigner, AssignerKind::Live);
    assert_eq!(plan.views.area, [0.3, 1.0]);
    assert_eq!(plan.stream.shards, ["a.tar"]);
    let mixed = parse("", &["stream.shards=['a.tar', 'b.tar']", "stream.weights=[2, 1.5]"]).unwrap();
    assert_eq!(mixed.stream.weights, [2.0, 1.5]);
    assert!(refusal(SHARDS, &["stream.weights=2"]).starts_with("--set: stream.weights = 2 is not a list of numbers"));
    assert_eq!(parse("", &["stream.shards=b.tar"]).unwrap().stream.shards, ["b.tar"]);
    assert_eq!(parse("", &["stream.shards=['b.tar', 'c.tar']"]).unwrap().stream.shards, ["b.tar", "c.tar"]);
}

#[test]
fn all_problems_are_told_at_once_each_with_its_place() {
    let text = "[stream]\nshards = 'a.tar'\n\n[train]\nlr = 'fast'\nbatchsize = 8\nsteps = -1\n\n[views]\narea = [1]\n";
    let told = refusal(text, &["train.balance=wieght", "model.arc=small", "device.kind=3", "observe.tensorboard=1"]);
    let lines: Vec<&str> = told.lines().collect();
    let expected = [
        "x.toml:6: unknown key `batchsize` in [train]; did you mean `batch_size`?",
        "--set: unknown key `arc` in [model]; did you mean `arch`?",
        "x.toml:5: train.lr = \"fast\" is not a number",
        "x.toml:7: train.steps = -1 is not a whole number from 0 up",
        "x.toml:10: views.area = [1] is not a list of 2 numbers",
        "--set: train.balance = \"wieght\" is not one of weight, sample, none; did you mean `weight`?",
        "--set: device.kind = \"3\" is not one of auto, cpu, cuda",
        "--set: observe.tensorboard = 1 is neither true nor false",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn values_out_of_range_are_told_with_the_place_that_set_them() {
    let text = format!("{SHARDS}[cluster]\nk = 100\n[bank]\ncapacity = 50\n[train]\nbatch_size = 1\n");
    assert_eq!(
        refusal(&text, &["train.lr=0", "cluster.pca=10"]).lines().collect::<Vec<_>>(),
        [
            "x.toml:6: bank.capacity = 50 must be at least cluster.k = 100: each cluster needs a row to start from",
            "x.toml:8: train.batch_size = 1 must be at least 2: batch norm takes the variance of a batch",
            "--set: train.lr = 0 must be a number above 0",
        ]
    );
    // Where only the other key of a pair was set, that is the place; where none was, the file is.
    assert!(
        refusal(&format!("{SHARDS}[cluster]\nk = 600_000\n"), &[]).starts_with("x.toml:4: bank.capacity = 500000 ")
    );
    assert!(refusal("", &[]).starts_with("x.toml: stream.shards is empty"));
}

#[test]
fn a_changed_pipeline_is_refused_only_where_it_breaks_the_run() {
    let old = parse(SHARDS, &[]).unwrap();
    let longer = parse(SHARDS, &["train.steps=10", "snapshot.keep_last=9"]).unwrap();
    assert!(old.ensure_run_can_go_on(&longer, Path::new("runs/a")).is_ok());
    let other = parse(SHARDS, &["model.input=rgb"]).unwrap();
    let error = old.ensure_run_can_go_on(&other, Path::new("runs/a")).unwrap_err();
    assert!(error.to_string().contains("model.input = \"rgb\", was \"sobel\""), "{error}");
}

fn plans() -> impl Strategy<Value = Plan> {
    let counts =
        (0..=i64::MAX as u64, 2_usize..10_000, 10_000_usize..2_000_000, 2_usize..1_000, 0_u64..u64::from(u32::MAX));
    let reals = (1e-9..1e3, 0.0..0.99, 1e-12..1.0, 0.01..0.5, 0.5..=1.0);
    let names = (0_usize..5, any::<bool>(), any::<bool>(), 0_usize..3);
    let shards = prop::collection::vec("[a-zA-Z0-9 {}.:/\"'\\\\#\u{e9}\u{1f41f}\n\t=-]{1,20}x", 1..4);
    (counts, reals, names, shards).prop_map(|(counts, reals, names, shards)| {
        let mut plan = Plan::default();
        plan.stream.shards = shards;
        (plan.stream.seed, plan.cluster.k, plan.bank.capacity, plan.train.batch_size, plan.snapshot.keep_every) =
            counts;
        (plan.train.lr, plan.train.momentum, plan.train.weight_decay, plan.views.area[0], plan.views.area[1]) = reals;
        plan.model.arch = [Arch::AlexNet, Arch::Vgg16, Arch::ResNet18, Arch::ResNet50, Arch::Small][names.0];
        plan.device.precision = if names.1 { Precision::Bf16 } else { Precision::Fp32 };
        plan.observe.collapse_stop = names.2;
        plan.train.balance = [Balance::Weight, Balance::Sample, Balance::None][names.3];
        plan.cluster.refresh = Refresh::Rolling;
        plan.bank.encoder = [Encoder::Assigner, Encoder::Student, Encoder::Train][names.3];
        plan
    })
}

proptest! {
    #[test]
    fn a_plan_written_and_read_again_is_the_same(plan in plans()) {
        let text = plan.to_toml().unwrap();
        prop_assert_eq!(parse(&text, &[]).unwrap(), plan);
    }

    #[test]
    fn no_text_panics(text in "(\\[[a-z]{0,6}\\]|[a-z_.]{0,10}=?|[0-9.e\\-\\[\\]\"'{}, ]{0,8}|\n){0,12}") {
        let _ = parse(&text, &[]);
        let _ = parse("", &[&text]);
    }
}
