//! `shoal eval detection`: its parts against torchvision and scipy, and the whole of it on a miniature of VOC.

use crate::commands::{output, text};
use crate::interop::python;
use crate::run::{binary, root, small_pipeline};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shoal::evaluate::detection::boxes::suppress;
use shoal::evaluate::detection::pooling::{Region, max_pool};
use shoal::evaluate::detection::proposals;
use shoal::evaluate::voc::devkit::Bounds;
use shoal::model::state::{Metadata, read_safetensors, write_safetensors};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

fn peer(python: &Path, script: &str, arguments: &[&str]) {
    let output = Command::new(python)
        .arg(root().join(script))
        .args(arguments)
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("PYTHONPATH")
        .output()
        .expect("python starts");
    assert!(output.status.success(), "{script} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Boxes on an image of `width` by `height` pixels, some of which stick out.
fn random_regions(count: usize, width: f32, height: f32) -> Vec<Region> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut region = || {
        let (left, top) = (rng.random_range(-30.0..width), rng.random_range(-30.0..height));
        let (right, bottom) = (left + rng.random_range(0.0..width), top + rng.random_range(0.0..height));
        Region { left, top, right, bottom }
    };
    (0..count).map(|_| region()).collect()
}

#[test]
fn torchvision_pools_the_same_regions() -> shoal::Result<()> {
    let Some(python) = python("pooled regions") else { return Ok(()) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut regions = random_regions(300, 800.0, 600.0);
    // Sides on which rounding turns: whole cells, halves of cells, single pixels.
    regions.extend((0..40).map(|at| {
        let (left, top) = (8.0 * at as f32, 24.0);
        Region { left, top, right: left + 8.0 * (at % 7) as f32, bottom: top + 4.0 * at as f32 }
    }));
    let flat: Vec<f32> = regions.iter().flat_map(|r| [r.left, r.top, r.right, r.bottom]).collect();
    let mut tensors = vec![("regions".to_owned(), Tensor::from_slice(&flat).reshape([-1, 4]))];
    for (name, side, shape) in [("alexnet", 6, [5, 36, 49]), ("vgg16", 7, [3, 37, 50])] {
        // As after a ReLU: half of it is 0, so that there are ties.
        let map = Tensor::randn(shape, (Kind::Float, Device::Cpu)).relu().set_requires_grad(true);
        let pooled = max_pool(&map, &regions, side, 1.0 / 16.0)?;
        let weights = pooled.randn_like();
        (&pooled * &weights).sum(Kind::Float).backward();
        for (part, tensor) in
            [("map", map.detach()), ("pooled", pooled.detach()), ("weights", weights), ("gradient", map.grad())]
        {
            tensors.push((format!("{name}.{part}"), tensor));
        }
    }
    let io = folder.path().join("io.safetensors");
    write_safetensors(&io, &tensors, &Metadata::new())?;
    peer(&python, "ops/interop/detection.py", &["pool", text(&io)]);
    Ok(())
}

#[test]
fn torchvision_suppresses_the_same_boxes() -> shoal::Result<()> {
    let Some(python) = python("suppressed boxes") else { return Ok(()) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let boxes: Vec<Bounds> = random_regions(1000, 300.0, 200.0)
        .into_iter()
        .map(|r| Bounds { left: r.left, top: r.top, right: r.right + 1.0, bottom: r.bottom + 1.0 })
        .collect();
    let scores: Vec<f32> = (0..1000).map(|at| ((at * 379) % 1000) as f32 / 1000.0).collect();
    let kept: Vec<i64> = suppress(&boxes, &scores, 0.3).into_iter().map(|at| at as i64).collect();
    let flat: Vec<f32> = boxes.iter().flat_map(|b| [b.left, b.top, b.right, b.bottom]).collect();
    let tensors = [
        ("boxes".to_owned(), Tensor::from_slice(&flat).reshape([-1, 4])),
        ("scores".to_owned(), Tensor::from_slice(&scores)),
        ("kept".to_owned(), Tensor::from_slice(&kept)),
    ];
    let io = folder.path().join("io.safetensors");
    write_safetensors(&io, &tensors, &Metadata::new())?;
    peer(&python, "ops/interop/detection.py", &["nms", text(&io)]);
    Ok(())
}

#[test]
fn files_of_scipy_are_read() -> shoal::Result<()> {
    let Some(python) = python("MATLAB files") else { return Ok(()) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    peer(&python, "ops/interop/detection.py", &["mat", text(folder.path())]);
    let boxes = fs::read_to_string(folder.path().join("boxes.json")).expect("the boxes");
    let boxes: HashMap<String, Vec<[f32; 4]>> = serde_json::from_str(&boxes).expect("JSON");
    assert_eq!(boxes["000005"].len(), 2000);
    for name in ["packed", "plain", "single", "words", "integers"] {
        let found = proposals::read(&folder.path().join(name).with_extension("mat"), "val")?;
        let sides =
            |found: &[Bounds]| -> Vec<[f32; 4]> { found.iter().map(|b| [b.left, b.top, b.right, b.bottom]).collect() };
        let found: HashMap<String, Vec<[f32; 4]>> =
            found.into_iter().map(|(image, found)| (image, sides(&found))).collect();
        assert!(found == boxes, "{name}");
    }
    let lacking = folder.path().join("lacking.mat");
    let error = proposals::read(&lacking, "val").expect_err("no images").to_string();
    assert!(error.contains("`images`") && error.contains("lacking.mat"), "{error}");
    let packed = fs::read(folder.path().join("packed.mat")).expect("the file");
    for length in [packed.len() / 3, packed.len() - 1] {
        fs::write(&lacking, &packed[..length]).expect("a shorter file");
        let error = proposals::read(&lacking, "val").expect_err("cut short").to_string();
        assert!(error.contains("lacking.mat"), "{error}");
    }
    Ok(())
}

/// The miniature of VOC, made once.
fn kit() -> Option<&'static Path> {
    static KIT: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let made = KIT.get_or_init(|| {
        let python = python("detection on a miniature of VOC")?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        peer(&python, "ops/data/miniature_voc.py", &[text(folder.path())]);
        let kit = folder.path().join("VOCdevkit");
        Some((folder, kit))
    });
    made.as_ref().map(|(_, kit)| kit.as_path())
}

/// An evaluation of seconds on one thread, with a state in `folder`.
fn arguments<'a>(kit: &'a Path, pipeline: &'a Path, state: &'a Path) -> Vec<&'a str> {
    let network = ["eval", "detection", "--snapshot", "random:small", "--pipeline", text(pipeline)];
    let data = ["--voc", text(kit), "--split", "train", "--windows", "150", "--side", "60", "--max-side", "100"];
    let training = ["--iterations", "40", "--regions", "32", "--lr", "0.02", "--state", text(state), "--json"];
    [&network[..], &data, &training].concat()
}

fn report(out: &str) -> Value {
    serde_json::from_str(out).expect("JSON")
}

#[test]
fn a_network_learns_and_a_stopped_training_is_the_one_that_was_not() {
    let Some(kit) = kit() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let (straight, stopped) = (folder.path().join("straight.safetensors"), folder.path().join("stopped.safetensors"));

    let (code, out, err) = output(&arguments(kit, &pipeline, &straight));
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("train: 25 photographs") && err.contains("windows of shoal's own"), "{err}");
    let expected = report(&out);
    let losses: Vec<f64> = serde_json::from_value(expected["losses"].clone()).expect("losses");
    assert_eq!(losses.len(), 10);
    assert!(losses[9] < 0.8 * losses[0], "{losses:?}");
    let classes = expected["classes"].as_array().expect("classes");
    let objects: u64 = classes.iter().filter_map(|class| class["objects"].as_u64()).sum();
    assert_eq!((classes.len(), &expected["splits"]["test"]["objects"]), (20, &objects.into()));
    assert!(expected["map"].as_f64().is_some_and(|map| (0.0..=1.0).contains(&map)), "{expected}");
    assert!(expected["splits"]["test"]["recall"].as_f64().is_some_and(|recall| recall > 0.5), "{expected}");

    // Interrupted once its training has begun.
    let mut child = Command::new(binary())
        .current_dir(root())
        .args(arguments(kit, &pipeline, &stopped))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut lines = lines.map(|line| line.expect("text"));
    assert!(lines.any(|line| line.contains("iterations")), "training begins");
    kill_process(Pid::from_child(&child), Signal::INT).expect("Ctrl-C");
    let last = lines.last().expect("a last word");
    assert_eq!(child.wait().expect("a child").code(), Some(130), "{last}");
    let (_, metadata) = read_safetensors(&stopped).expect("a state");
    let iteration: u64 = metadata["iteration"].parse().expect("a number");
    assert!((1..40).contains(&iteration), "{iteration}");

    let (code, out, err) = output(&arguments(kit, &pipeline, &stopped));
    assert_eq!(code, 0, "{err}");
    assert!(err.contains(&format!("going on after iteration {iteration} of 40")), "{err}");
    assert_eq!(report(&out), expected);
    let found =
        [&straight, &stopped].map(|path| fs::read(path.with_extension("detections.jsonl")).expect("detections"));
    assert!(found[0] == found[1]);
    assert_eq!(found[0].split(|byte| *byte == b'\n').count(), 1 + 16 + 1, "a head, a line a photograph, and the end");

    let other = [arguments(kit, &pipeline, &straight), vec!["--lr-step", "5"]].concat();
    let (code, _, err) = output(&other);
    assert!(code == 2 && err.contains("lr-step was 30000, now it is 5"), "{err}");
}

#[test]
fn linear_layers_alone_learn_from_given_proposals() {
    let Some(kit) = kit() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (pipeline, found) = (small_pipeline(folder.path()), folder.path().join("found.jsonl"));
    // Two boxes of each photograph of both splits.
    let mut lines = String::new();
    for split in ["train", "test"] {
        let names = fs::read_to_string(kit.join(format!("VOC2007/ImageSets/Main/{split}.txt"))).expect("a list");
        for name in names.lines() {
            lines.push_str(&format!("{{\"image\": \"{name}\", \"boxes\": [[1, 1, 60, 60], [20, 10, 80, 70]]}}\n"));
        }
    }
    let proposals = folder.path().join("boxes.jsonl");
    fs::write(&proposals, lines).expect("a file");
    let common = ["eval", "detection", "--snapshot", "random:small", "--pipeline", text(&pipeline), "--voc", text(kit)];
    let more = ["--split", "train", "--side", "60", "--max-side", "100", "--iterations", "5", "--train", "fc6-8"];
    let files = ["--proposals", text(&proposals), "--detections", text(&found)];
    let (code, out, err) = output(&[&common[..], &more, &files].concat());
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("mAP") && out.contains("tvmonitor") && err.contains("2 proposals a photograph"), "{out}{err}");
    assert_eq!(fs::read_to_string(&found).expect("detections").lines().count(), 17);

    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let (found, _, err) = output(&[&common[..], &more, arguments].concat());
        assert!(found == code && words.iter().all(|word| err.contains(word)), "{found}: {err}");
    };
    fs::write(&proposals, "{\"image\": \"000010\", \"boxes\": []}\n").expect("a file");
    refused(&["--proposals", text(&proposals)], 3, &["no proposals for the image", "boxes.jsonl"]);
    refused(&["--proposals", text(folder.path())], 3, &["voc_2007_train.mat"]);
    refused(&["--layer", "conv1"], 2, &["--layer"]);
    refused(&["--regions", "4"], 2, &["--regions", "8"]);
    refused(&["--test", "nowhere"], 3, &["nowhere.txt"]);
    let nothing = ["eval", "detection", "--snapshot", "random:resnet18:rgb:64", "--voc", text(kit)];
    let (code, _, err) = output(&nothing);
    assert!(code == 2 && err.contains("resnet18") && err.contains("alexnet"), "{err}");
    let (code, _, err) = output(&["eval", "detection", "--snapshot", "random:small", "--voc", text(folder.path())]);
    assert!(code == 3 && err.contains("no VOC2007 folder"), "{err}");
    let (code, _, err) = output(&[&common[..], &["--side", "90", "--max-side", "60"]].concat());
    assert!(code == 2 && err.contains("--max-side 60 is less than --side 90"), "{err}");
}
