//! `shoal eval voc07` on the miniature kit, and its pieces against PyTorch, scikit-learn and torchvision where there are peers.

use crate::commands::{ok, output, text};
use crate::interop::python;
use crate::run::{root, small_pipeline};
use serde_json::Value;
use shoal::evaluate::voc::classify::{Split, average_precisions, clip_gradients, loss};
use shoal::evaluate::voc::devkit::{CLASSES, Devkit, Task};
use shoal::model::state::{Metadata, find, read_safetensors, write_safetensors};
use shoal::train::optimizer::Sgd;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// The miniature kit, made once; the folder that holds VOCdevkit.
pub fn kit() -> &'static Path {
    static KIT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = KIT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = root().join("ops/data/miniature_voc.py");
        let status = Command::new("python3").arg(script).arg(folder.path()).status().expect("python3 starts");
        assert!(status.success(), "{status}");
        let path = folder.path().to_path_buf();
        (folder, path)
    });
    path
}

/// What `ops/interop/voc.py` prints.
pub fn peer(python: &Path, arguments: &[&str]) -> String {
    let output = Command::new(python)
        .arg(root().join("ops/interop/voc.py"))
        .args(arguments)
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("PYTHONPATH")
        .output()
        .expect("python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_miniature_kit_is_what_torchvision_reads() {
    let Some(python) = python("the_miniature_kit_is_what_torchvision_reads") else { return };
    let found: Value = serde_json::from_str(&peer(&python, &["kit", text(kit())])).expect("JSON");
    let devkit = Devkit::open(kit(), "VOC2007").expect("a kit");
    let mut images = 0;
    for split in ["trainval", "test"] {
        for name in devkit.names(Task::Main, split).expect("a list") {
            images += 1;
            let (mine, theirs) = (devkit.annotation(&name).expect("an annotation"), &found["images"][&name]);
            assert_eq!(theirs["split"], split, "{name}");
            assert_eq!(theirs["size"], serde_json::json!([mine.size.0, mine.size.1]));
            let objects: Vec<Value> = mine
                .objects
                .iter()
                .map(|object| {
                    let edges =
                        [object.bounds.left + 1.0, object.bounds.top + 1.0, object.bounds.right, object.bounds.bottom];
                    let [left, top, right, bottom] = edges.map(|edge| edge as i64);
                    serde_json::json!([CLASSES[object.class], object.difficult, left, top, right, bottom])
                })
                .collect();
            assert_eq!(theirs["objects"], Value::from(objects), "{name}");
            let photograph = devkit.photograph(&name).expect("a photograph");
            assert_eq!((photograph.width, photograph.height), mine.size);
        }
    }
    assert_eq!(found["images"].as_object().expect("images").len(), images);

    // What a mask shows is annotated, and is not difficult alone.
    for year in ["VOC2007", "VOC2012"] {
        let devkit = Devkit::open(kit(), year).expect("a kit");
        for split in ["train", "val"] {
            for name in devkit.names(Task::Segmentation, split).expect("a list") {
                let mask = &found["masks"][format!("{}/{name}", &year[3..])];
                assert_eq!(mask["split"], split, "{name}");
                let annotation = devkit.annotation(&name).expect("an annotation");
                let mut classes: Vec<usize> = annotation
                    .objects
                    .iter()
                    .filter(|object| !object.difficult)
                    .map(|object| object.class + 1)
                    .collect();
                classes.sort_unstable();
                classes.dedup();
                assert_eq!(mask["classes"], serde_json::json!(classes), "{name}");
            }
        }
    }
}

#[test]
fn loss_and_precision_are_those_of_pytorch_and_scikit_learn() {
    let Some(python) = python("loss_and_precision_are_those_of_pytorch_and_scikit_learn") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let devkit = Devkit::open(kit(), "VOC2007").expect("a kit");
    let split = Split::read(&devkit, "trainval").expect("a split");
    let rows: Vec<usize> = (0..split.len()).collect();
    let (targets, counts) = split.targets(&rows).expect("targets");
    assert!(counts.min().double_value(&[]) == 0.0, "a difficult object is among them");
    tch::manual_seed(1);
    // Rounded to halves, so that many are equal.
    let logits = ((Tensor::randn([rows.len() as i64, 20], (Kind::Float, Device::Cpu)) + &targets) * 2.0).round() / 2.0;
    let given = [("logits", &logits), ("targets", &targets), ("counts", &counts)];
    let given = given.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    write_safetensors(&folder.path().join("in.safetensors"), &given, &Metadata::new()).expect("a file");
    peer(&python, &["measure", text(folder.path())]);
    let (found, _) = read_safetensors(&folder.path().join("out.safetensors")).expect("a file");

    let variable = logits.copy().set_requires_grad(true);
    let mine = loss(&variable, &targets, &counts).expect("a loss");
    mine.backward();
    let theirs = find(&found, "loss", &[], Kind::Double).expect("a loss").double_value(&[]);
    assert!((mine.double_value(&[]) - theirs).abs() < 1e-5 * theirs, "{mine} {theirs}");
    let gradient = find(&found, "gradient", &logits.size(), Kind::Double).expect("a gradient");
    assert!(variable.grad().to_kind(Kind::Double).allclose(gradient, 1e-5, 1e-7, false));

    let values = Vec::<f32>::try_from(logits.flatten(0, -1)).expect("floats");
    let (scores, _) = values.as_chunks::<20>();
    let theirs = find(&found, "precision", &[20], Kind::Double).expect("precisions");
    let mut measured = 0;
    for (class, mine) in average_precisions(scores, &split).into_iter().enumerate() {
        let theirs = theirs.double_value(&[class as i64]);
        measured += i32::from(mine.is_some());
        assert!((mine.unwrap_or(-1.0) - theirs).abs() < 1e-9, "{}: {mine:?} {theirs}", CLASSES[class]);
    }
    assert_eq!(measured, 10, "classes that trainval shows");
}

/// As they stand in `ops/interop/voc.py`.
const LR: f64 = 0.05;
const CLIP: f64 = 0.7;

#[test]
fn steps_with_clipped_gradients_are_those_of_pytorch() {
    let Some(python) = python("steps_with_clipped_gradients_are_those_of_pytorch") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    tch::manual_seed(2);
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let (weight, bias, inputs) = (normal(&[20, 8]), normal(&[20]), normal(&[6, 16, 8]));
    let targets = normal(&[6, 16, 20]).gt(0.5).to_kind(Kind::Float);
    let counts = normal(&[6, 16, 20]).gt(-1.0).to_kind(Kind::Float);
    let given = [("weight", &weight), ("bias", &bias), ("inputs", &inputs), ("targets", &targets), ("counts", &counts)];
    let given = given.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    write_safetensors(&folder.path().join("in.safetensors"), &given, &Metadata::new()).expect("a file");
    peer(&python, &["train", text(folder.path())]);
    let (found, _) = read_safetensors(&folder.path().join("out.safetensors")).expect("a file");

    let variable = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
    let weights = vec![("weight".to_owned(), variable(&weight)), ("bias".to_owned(), variable(&bias))];
    let share = || weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    let mut optimizer = Sgd::new(share(), 0.9, 1e-2).expect("an optimiser");
    let mut clipped = 0;
    for step in 0..6 {
        optimizer.zero_grad().expect("gradients");
        let logits = inputs.get(step).linear(&weights[0].1, Some(&weights[1].1));
        loss(&logits, &targets.get(step), &counts.get(step)).expect("a loss").backward();
        clipped += i32::from(clip_gradients(&weights, CLIP).expect("a norm").double_value(&[]) > CLIP);
        optimizer.step(LR).expect("a step");
    }
    assert!(clipped > 0, "some gradient is longer than the limit");
    for (name, mine) in &weights {
        let theirs = find(&found, name, &mine.size(), Kind::Float).expect("a weight");
        assert!(mine.detach().allclose(theirs, 1e-5, 1e-6, false), "{name}");
    }
}

/// A tiny evaluation on one thread.
fn arguments<'a>(pipeline: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let basic = ["eval", "voc07", "--snapshot", "random:small", "--pipeline", text(pipeline), "--voc", text(kit())];
    let small = ["--device", "cpu", "--train-batch", "4", "--crops", "2", "--json"];
    [&basic[..], &small, more].concat()
}

fn json(arguments: &[&str]) -> Value {
    let mut found: Value = serde_json::from_str(&ok(arguments)).expect("JSON");
    assert!(found["seconds"].take().is_number());
    found
}

#[test]
fn a_network_is_measured_on_the_classes_that_are_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let usual = ["--iterations", "3", "--skip-empty-classes"];
    let found = json(&arguments(&pipeline, &usual));
    assert_eq!(found["photographs"], serde_json::json!([41, 16]));
    assert_eq!((&found["arch"], &found["settings"]["train"]), (&"small".into(), &"fc6-8".into()));
    let classes = found["classes"].as_array().expect("classes");
    let precisions: Vec<f64> = classes.iter().filter_map(|class| class["average_precision"].as_f64()).collect();
    // Trainval shows no bottle, test no sheep, chair or plant.
    assert_eq!((classes.len(), precisions.len()), (20, 7), "{classes:?}");
    let mean = precisions.iter().sum::<f64>() / 7.0;
    assert!((found["mean_average_precision"].as_f64().expect("a mean") - mean).abs() < 1e-12);
    assert_eq!(found, json(&arguments(&pipeline, &usual)), "the same seed gives the same numbers");
    assert_ne!(found["classes"], json(&arguments(&pipeline, &[&usual[..], &["--seed", "4"]].concat()))["classes"]);

    let all = json(&arguments(&pipeline, &[&usual[..], &["--train", "all"]].concat()));
    assert_ne!(found["classes"], all["classes"]);
    let affine = json(&arguments(&pipeline, &[&usual[..], &["--bn", "affine"]].concat()));
    assert_eq!((&found["settings"]["norm_affine"], &affine["settings"]["norm_affine"]), (&false.into(), &true.into()));
    let plain: Vec<&str> = arguments(&pipeline, &usual).into_iter().filter(|argument| *argument != "--json").collect();
    assert!(ok(&plain).contains("7 classes only, of 20"), "{}", ok(&plain));
}

#[test]
fn a_choice_is_made_on_val_and_tested_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let grid =
        ["--select", "--lr", "0.001,0.02", "--weight-decay", "0,0.1", "--iterations", "2", "--skip-empty-classes"];
    let found = json(&arguments(&pipeline, &grid));
    let trials = found["trials"].as_array().expect("trials");
    assert_eq!(trials.len(), 4);
    let mean = |trial: &Value| trial["mean_average_precision"].as_f64().expect("a mean");
    let best = trials.iter().map(mean).fold(0.0, f64::max);
    let first = trials.iter().find(|trial| mean(trial) == best).expect("the best");
    assert_eq!(first["settings"], found["settings"]);
    assert_eq!(found["splits"], serde_json::json!(["trainval", "test"]));
}

#[test]
fn an_interrupted_evaluation_ends_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let state = folder.path().join("voc.state");
    let usual = ["--iterations", "90", "--skip-empty-classes"];
    let straight = json(&arguments(&pipeline, &usual));
    let kept = arguments(&pipeline, &[&usual[..], &["--state", text(&state)]].concat());

    let mut child = Command::new(crate::run::binary())
        .args(&kept)
        .current_dir(root())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    assert!(lines.any(|line| line.expect("text").contains("training on trainval")), "it trains");
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    assert!(interrupted.success());
    // The rest is read, so that writing it cannot fail.
    lines.for_each(drop);
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    assert!(state.is_file());

    let (code, _, err) = output(&[&kept[..], &["--seed", "5"]].concat());
    assert!(code == 2 && err.contains("voc.state") && err.contains("settings"), "{err}");
    let (code, out, err) = output(&kept);
    assert!(code == 0 && err.contains("goes on after"), "{err}");
    let mut resumed: Value = serde_json::from_str(&out).expect("JSON");
    resumed["seconds"].take();
    assert_eq!(straight, resumed);
    assert!(!state.exists(), "nothing is left to go on with");
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let refused = |more: &[&str], code: i32, words: &[&str]| {
        let (found, _, err) = output(&arguments(&pipeline, more));
        assert_eq!(found, code, "{err}");
        words.iter().for_each(|word| assert!(err.contains(word), "{word}: {err}"));
    };
    refused(&[], 3, &["trainval", "aeroplane, bicycle, bottle", "--skip-empty-classes"]);
    refused(&["--skip-empty-classes", "--lr", "0.1,0.2"], 2, &["--select"]);
    refused(&["--skip-empty-classes", "--lr", "0"], 2, &["learning rate"]);
    refused(&["--skip-empty-classes", "--test-on", "private"], 3, &["private.txt"]);
    refused(&["--layer", "conv3"], 2, &["--layer"]);
    refused(&["--train", "all", "--bn", "affine"], 2, &["--bn"]);
    refused(&["--area", "0.5"], 2, &["--area"]);
    refused(&["--area", "0.5,0.1"], 2, &["area"]);

    let broken = folder.path().join("VOC2007");
    let copied = Command::new("cp").arg("-r").arg(kit().join("VOCdevkit/VOC2007")).arg(&broken).status();
    assert!(copied.expect("cp starts").success());
    fs::write(broken.join("JPEGImages/000010.jpg"), "no pixels").expect("a file");
    let mut arguments = arguments(&pipeline, &["--skip-empty-classes", "--iterations", "30"]);
    let place = arguments.iter().position(|argument| *argument == text(kit())).expect("the kit");
    arguments[place] = text(&broken);
    let (code, _, err) = output(&arguments);
    assert!(code == 3 && err.contains("000010.jpg"), "{err}");
    fs::remove_file(broken.join("Annotations/000010.xml")).expect("removed");
    let (code, _, err) = output(&arguments);
    assert!(code == 3 && err.contains("000010.xml"), "{err}");
}
