//! Training on the classes of the stream, as the top line of the paper's tables: through the same loop, as exactly resumed.

use crate::commands::{ok, output, text};
use crate::resume::{steps_done, wait_for};
use crate::run::{records, start, steps};
use serde_json::Value;
use shoal::config::Precision;
use shoal::model::{Head, state::read_safetensors};
use shoal::pipeline::used::UsedByRun;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// A pipeline for one CPU thread that takes seconds: a pass every 15 steps.
const PIPELINE: &str = r#"
[stream]
shards = ["SHARD"]
lanes = 1
shuffle = 40
[views]
size = 28
resize = 28
area = [0.5, 1.0]
[model]
arch = "small"
dropout = 0.1
[train]
labels = "classes"
batch_size = 16
steps = 48
lr = 0.02
[snapshot]
every_steps = 7
every_minutes = 0
[observe]
every_steps = 1
[device]
kind = "cpu"
threads = 1
decode_threads = 1
"#;

/// The first `count` images of Fashion-MNIST's test shard as a tar of its own, with the classes that `class` makes of theirs.
fn shard(folder: &Path, count: usize, class: impl Fn(usize, i64) -> Option<i64>) -> PathBuf {
    let path = folder.join("fashion.tar");
    let packed = fs::File::open(crate::run::root().join("shards/fashion-test.tar.zst")).expect("the shard");
    let mut archive = tar::Archive::new(zstd::Decoder::new(packed).expect("zstd"));
    let mut new = tar::Builder::new(fs::File::create(&path).expect("room"));
    let mut numbers = std::collections::BTreeMap::new();
    for entry in archive.entries().expect("members") {
        let mut entry = entry.expect("a member");
        let name = entry.path().expect("a name").display().to_string();
        let (key, extension) = name.rsplit_once('.').expect("an extension");
        let next = numbers.len();
        let number = *numbers.entry(key.to_owned()).or_insert(next);
        if number >= count {
            break;
        }
        let mut bytes = Vec::new();
        std::io::copy(&mut entry, &mut bytes).expect("its data");
        if extension == "cls" {
            let old = String::from_utf8_lossy(&bytes).trim().parse().expect("an integer");
            let Some(class) = class(number, old) else { continue };
            bytes = class.to_string().into_bytes();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        new.append_data(&mut header, &name, bytes.as_slice()).expect("room");
    }
    new.finish().expect("room");
    path
}

fn pipeline(folder: &Path, shard: &Path) -> PathBuf {
    let path = folder.join("supervised.toml");
    fs::write(&path, PIPELINE.replace("SHARD", text(shard))).expect("written");
    path
}

fn file(run: &Path, step: u64, name: &str) -> PathBuf {
    run.join(format!("snapshots/step-{step:09}/{name}.safetensors"))
}

fn tensor(run: &Path, step: u64, name: &str, tensor: &str) -> Tensor {
    let (tensors, _) = read_safetensors(&file(run, step, name)).expect("a snapshot");
    tensors.into_iter().find(|(name, _)| name == tensor).expect(tensor).1
}

#[test]
fn classes_are_learnt_and_records_say_how_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = shard(folder.path(), 240, |_, class| Some(class));
    let (pipeline, run) = (pipeline(folder.path(), &shard), folder.path().join("run"));
    let (code, out, err) =
        output(&["pretrain", text(&pipeline), "--run", text(&run), "--no-bar", "--set", "train.steps=90"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("train.classes = 10: 10 classes met in 240 samples"), "{err}");
    assert!(out.contains("accuracy") && !out.contains("cycles"), "{out}");

    assert!(records(&run, "cycle").is_empty() && !run.join("clusters").exists());
    let accuracies: Vec<f64> =
        records(&run, "step").iter().map(|step| step["accuracy"].as_f64().expect("an accuracy")).collect();
    assert!(accuracies.iter().all(|accuracy| (accuracy * 16.0).fract() == 0.0), "sixteenths: {accuracies:?}");
    let last = accuracies[70..].iter().sum::<f64>() / 20.0;
    assert!(last > 0.3, "{last} of ten classes after six passes");

    let latest = run.join("latest");
    for name in ["model", "head", "optimizer"] {
        assert!(latest.join(name).with_extension("safetensors").is_file(), "{name}");
    }
    for name in ["assigner.safetensors", "clusters.safetensors", "bank.arrow"] {
        assert!(!latest.join(name).exists(), "{name}");
    }
    assert_eq!(tensor(&run, 90, "head", "top_layer.weight").size(), [10, 256]);
    assert!(fs::read_to_string(run.join("pipeline.toml")).expect("a plan").contains("classes = 10"));
    assert!(ok(&["inspect", text(&run)]).contains("accuracy"));
    let found: Value = serde_json::from_str(&ok(&["inspect", text(&run), "--json"])).expect("JSON");
    assert_eq!(found["step"]["accuracy"].as_f64(), accuracies.last().copied());
    let exported = folder.path().join("supervised.safetensors");
    ok(&["export", text(&run), "--to", "safetensors", "--out", text(&exported)]);
    assert!(ok(&["inspect", text(&exported)]).contains(r#""arch":"small""#));
}

#[test]
fn killed_it_goes_on_bit_for_bit_with_the_momentum_of_its_head() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = shard(folder.path(), 240, |_, class| Some(class));
    let pipeline = pipeline(folder.path(), &shard);
    let (straight, broken) = (folder.path().join("straight"), folder.path().join("broken"));
    assert!(start(&pipeline, &straight, &[]).wait().expect("a child").success());
    for step in [3, 17, 38] {
        let mut child = start(&pipeline, &broken, &[]);
        assert!(wait_for(&mut child, || steps_done(&broken) >= step), "step {step} did not come");
        child.kill().expect("kill -9");
        child.wait().expect("a child");
    }
    // what the list has become in the meantime does not change the head
    assert!(start(&pipeline, &broken, &["--set", "train.classes=10"]).wait().expect("a child").success());
    assert_eq!(steps(&straight), steps(&broken));
    let accuracies =
        |run: &Path| -> Vec<Value> { records(run, "step").into_iter().map(|step| step["accuracy"].clone()).collect() };
    assert_eq!(accuracies(&straight), accuracies(&broken));
    for name in ["model", "head", "optimizer"] {
        let bytes = |run: &Path| fs::read(file(run, 48, name)).expect("a snapshot");
        assert!(bytes(&straight) == bytes(&broken), "{name}");
    }
    let (code, _, err) = output(&["pretrain", text(&pipeline), "--run", text(&broken), "--set", "train.classes=11"]);
    assert_eq!(code, 2);
    assert!(err.contains("train.classes = 11, was 10"), "{err}");
}

#[test]
fn the_head_is_trained_with_momentum_and_weight_decay_from_its_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = shard(folder.path(), 240, |_, class| Some(class));
    let (pipeline, run) = (pipeline(folder.path(), &shard), folder.path().join("run"));
    let more = ["--steps", "2", "--set", "snapshot.every_steps=1", "--set", "train.weight_decay=0.5"];
    let settings = [&more[..], &["--set", "train.classes=10", "--set", "train.momentum=0.9"]].concat();
    assert!(start(&pipeline, &run, &settings).wait().expect("a child").success());
    let double = |tensor: Tensor| tensor.detach().to_kind(Kind::Double);
    let seed = shoal::seed::of(31, "head", 0);
    let head = Head::new(256, 10, seed, Device::Cpu, Precision::Fp32).expect("a head");
    let first = double(head.parameters()[0].1.shallow_clone());
    let weight = |step| double(tensor(&run, step, "head", "top_layer.weight"));
    let momentum = |step| double(tensor(&run, step, "optimizer", "top_layer.weight"));
    // A step goes along the momentum, which is nine tenths of the last, the gradient, and the decay.
    for (before, step) in [(first, 1), (weight(1), 2)] {
        let moved = (&before - weight(step)) / 0.02;
        assert!(moved.allclose(&momentum(step), 1e-4, 1e-5, false), "step {step}");
    }
    // Rows of the gradient of a cross-entropy sum to 0 over classes: what is left of the momentum is decay alone.
    let start = double(head.parameters()[0].1.shallow_clone());
    let decayed = (&start * 0.9 + weight(1)) * 0.5;
    let decay = decayed.sum_dim_intlist(0, false, Kind::Double);
    let left = momentum(2).sum_dim_intlist(0, false, Kind::Double);
    assert!(left.allclose(&decay, 1e-3, 1e-4, false), "{left} {decay}");
}

#[test]
fn samples_without_a_class_are_lost_by_name_and_not_trained_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let class = |number, class| match number % 12 {
        3 => None,
        5 => Some(class + 10),
        7 => Some(-1),
        _ => Some(class),
    };
    let shard = shard(folder.path(), 240, class);
    let (pipeline, run) = (pipeline(folder.path(), &shard), folder.path().join("run"));
    // Two passes: 60 of 240 are lost in each.
    let settings = ["--steps", "20", "--set", "train.classes=10", "--set", "stream.max_loss_rate=0.5"];
    assert!(start(&pipeline, &run, &settings).wait().expect("a child").success());
    let last = records(&run, "step").pop().expect("a step");
    assert!(last["losses"]["unlabelled"].as_u64() >= Some(60), "{last}");
    let ledger = fs::read_to_string(run.join("ledger.jsonl")).expect("a ledger");
    assert!(ledger.contains("no class") && ledger.contains("class -1, where train.classes = 10"), "{ledger}");
    let mut used = 0;
    let each = |sample: &shoal::ingest::SampleMeta| {
        used += 1;
        assert!(sample.class.is_some_and(|class| (0..10).contains(&class)), "{sample:?}");
        Ok(())
    };
    UsedByRun::open(&run).expect("a run").each(each).expect("its list");
    assert_eq!(used, 180, "the labelled samples of a pass");

    // An index and a replay know nothing of classes that are not there.
    let (code, out, _) =
        output(&["shards", "check", text(&shard), "--replay", text(&run.join("ledger.jsonl")), "--json"]);
    assert_eq!(code, 3);
    let retried: Value = serde_json::from_str(&out).expect("JSON");
    let lost = retried.as_array().expect("a list").iter().filter(|one| one["outcome"] == "still_lost").count();
    assert!(lost >= 20, "those without a class: {retried}");
}

#[test]
fn lists_without_classes_cannot_be_learnt() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipeline = pipeline(folder.path(), Path::new("shards/photos-000000.tar"));
    let run = folder.path().join("run");
    let (code, _, err) = output(&["pretrain", text(&pipeline), "--run", text(&run), "--no-bar"]);
    assert_eq!(code, 3);
    assert!(err.contains("none of 225 samples") && err.contains(".cls"), "{err}");
    let settings = ["--set", "train.classes=10", "--set", "stream.loss_window=100"];
    let (code, _, err) =
        output(&[&["pretrain", text(&pipeline), "--run", text(&run), "--no-bar"], &settings[..]].concat());
    assert_eq!(code, 3);
    assert!(err.contains("unlabelled"), "{err}");
}

#[test]
fn keys_at_odds_with_classes_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipeline = pipeline(folder.path(), Path::new("shards/fashion-test.tar.zst"));
    for (settings, word) in [
        (&["train.classes=1"][..], "train.classes = 1"),
        (&["stream.follow=true"], "has no end"),
        (&["train.balance=sample"], "draws over clusters"),
        (&["train.head=centroids"], "never renewed"),
        (&["train.labels=clusters", "train.classes=10"], "cluster.k is the number"),
        (&["train.labels=classses"], "did you mean `classes`"),
    ] {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>();
        let (code, _, err) = output(&[&["pretrain", text(&pipeline)], &settings[..]].concat());
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(word), "{word}: {err}");
    }
}
