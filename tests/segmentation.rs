//! `shoal eval segmentation` on the miniature kit, and its networks against PyTorch where there are peers.

use crate::commands::{ok, output, text};
use crate::interop::python;
use crate::voc07::{kit, peer};
use serde_json::Value;
use shoal::config::{Arch, Input, ModelPlan, Precision};
use shoal::evaluate::voc::classify::{Flow, Trained};
use shoal::evaluate::voc::devkit::Devkit;
use shoal::evaluate::voc::segment::{Fit, Photographs, Segmenter, Settings, Stride, loss};
use shoal::model::state::{find, read_safetensors, write_safetensors};
use shoal::model::{Backbone, Mode, Named, Normalizer};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// Random weights for photographs in colour, in the layout of the published files.
fn random_state(arch: Arch) -> Named {
    let (widths, kernels): (Vec<i64>, Vec<i64>) = match arch {
        Arch::AlexNet => (vec![96, 256, 384, 384, 256], vec![11, 5, 3, 3, 3]),
        _ => (vec![64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512], vec![3; 13]),
    };
    let pools: &[usize] = if arch == Arch::AlexNet { &[0, 1, 4] } else { &[1, 3, 6, 9, 12] };
    tch::manual_seed(3);
    let normal = |shape: &[i64], deviation: f64| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * deviation;
    let (mut state, mut inputs, mut place) = (Named::new(), 3, 0);
    for (at, (&outputs, &kernel)) in widths.iter().zip(&kernels).enumerate() {
        let fan_in = (inputs * kernel * kernel) as f64;
        let conv = format!("features.{place}");
        state.push((format!("{conv}.weight"), normal(&[outputs, inputs, kernel, kernel], (2.0 / fan_in).sqrt())));
        state.push((format!("{conv}.bias"), normal(&[outputs], 0.1)));
        let norm = format!("features.{}", place + 1);
        state.push((format!("{norm}.weight"), normal(&[outputs], 0.1) + 1.0));
        state.push((format!("{norm}.bias"), normal(&[outputs], 0.1)));
        state.push((format!("{norm}.running_mean"), normal(&[outputs], 0.1)));
        state.push((format!("{norm}.running_var"), normal(&[outputs], 0.1).abs() + 0.5));
        (inputs, place) = (outputs, place + 3 + i32::from(pools.contains(&at)));
    }
    let first = i32::from(arch == Arch::AlexNet);
    let flat = inputs * if arch == Arch::AlexNet { 36 } else { 49 };
    for (layer, width) in [(first, flat), (first + 3, 4096)] {
        state.push((format!("classifier.{layer}.weight"), normal(&[4096, width], (2.0 / width as f64).sqrt())));
        state.push((format!("classifier.{layer}.bias"), normal(&[4096], 0.1)));
    }
    state
}

/// A file with random weights of AlexNet, made once.
fn alexnet() -> &'static Path {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("alexnet.safetensors");
        // Said in the header, so that weights for gray or for gradients cannot be meant.
        let plan = ModelPlan { arch: Arch::AlexNet, input: Input::Rgb, dropout: 0.0 };
        let header = [("arch", "alexnet"), ("input", plan.input.name()), ("size", "224"), ("dropout", "0")];
        let header = header.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
        write_safetensors(&path, &random_state(Arch::AlexNet), &header).expect("a file");
        (folder, path)
    });
    path
}

fn open(path: &Path) -> Backbone {
    Backbone::open(path, Device::Cpu, Precision::Fp32).expect("a network")
}

fn agrees_with_pytorch(python: &Path, backbone: &Backbone, stride: Stride, (height, width): (i64, i64)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let network = Segmenter::new(backbone, &Settings { stride, ..Settings::default() }).expect("a network");
    tch::manual_seed(4);
    let images = Tensor::randn([1, 3, height, width], (Kind::Float, Device::Cpu));
    let classes = Tensor::randint(22, [1, height, width], (Kind::Uint8, Device::Cpu));
    let classes = classes.where_scalarother(&classes.lt(21), 255.0).to_kind(Kind::Uint8);
    for (name, mut tensor) in network.trained() {
        if name.starts_with("score.") {
            // Off their first values, so that no two of them can be mistaken for each other.
            let _no_grad = tch::no_grad_guard();
            let noise = tensor.randn_like() * if name.starts_with("score.0") { 0.02 } else { 1.0 };
            tensor.copy_(&(&tensor + noise));
        }
    }
    let mut given = network.backbone().state().expect("a state");
    given.extend(network.trained().into_iter().filter(|(name, _)| name.starts_with("score.")));
    given.extend([("images".to_owned(), images.shallow_clone()), ("classes".to_owned(), classes.shallow_clone())]);
    write_safetensors(&folder.path().join("in.safetensors"), &given, &Default::default()).expect("a file");
    drop(given);
    peer(python, &["segment", text(folder.path())]);
    let (found, _) = read_safetensors(&folder.path().join("out.safetensors")).expect("a file");

    let scores = network.scores(&images, Mode::Eval).expect("scores");
    let theirs = find(&found, "scores", &[1, 21, height, width], Kind::Float).expect("scores");
    let spread = theirs.std(false).double_value(&[]);
    let off = (&scores - theirs).abs().max().double_value(&[]);
    assert!(spread > 0.01 && off < 1e-3 * spread, "{stride:?}: off by {off} of {spread}");
    let mine = loss(&scores, &classes).expect("a loss");
    let expected = find(&found, "loss", &[], Kind::Float).expect("a loss").double_value(&[]);
    assert!((mine.double_value(&[]) - expected).abs() < 1e-4 * expected, "{mine} {expected}");
    mine.backward();
    for (name, tensor) in network.trained().into_iter().filter(|(name, _)| name.starts_with("score.")) {
        let theirs = find(&found, &format!("gradient.{name}"), &tensor.size(), Kind::Float).expect("a gradient");
        let off = (tensor.grad() - theirs).abs().max().double_value(&[]);
        assert!(off <= 1e-3 * theirs.abs().max().double_value(&[]), "{name}: off by {off}");
    }
}

#[test]
fn scores_and_gradients_are_those_of_pytorch() {
    let Some(python) = python("scores_and_gradients_are_those_of_pytorch") else { return };
    agrees_with_pytorch(&python, &open(alexnet()), Stride::ThirtyTwo, (45, 70));
}

#[test]
#[ignore = "VGG-16 takes 3 GB and a minute"]
fn scores_of_several_layers_are_those_of_pytorch() {
    let Some(python) = python("scores_of_several_layers_are_those_of_pytorch") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("vgg16.safetensors");
    write_safetensors(&path, &random_state(Arch::Vgg16), &Default::default()).expect("a file");
    let backbone = open(&path);
    for (stride, size) in [(Stride::ThirtyTwo, (33, 40)), (Stride::Sixteen, (40, 33)), (Stride::Eight, (50, 41))] {
        agrees_with_pytorch(&python, &backbone, stride, size);
    }
}

#[test]
fn a_fit_that_was_left_goes_on_bit_for_bit_and_frozen_weights_stay() {
    let devkit = Devkit::open(kit(), "VOC2012").expect("a kit");
    let photographs = Photographs::list(&devkit, "train").expect("a list");
    let normalizer = Normalizer::new(&[0.5; 3], &[0.25; 3], Device::Cpu).expect("a normaliser");
    let backbone = open(alexnet());
    let settings =
        Settings { train: Trained::LinearLayers, iterations: 2, batch_size: 2, lr: 1e-3, ..Settings::default() };
    let new = || Fit::new(&backbone, &settings).expect("a fit");
    let mut straight = new();
    let mut losses = Vec::new();
    straight
        .run(&photographs, &normalizer, |step| {
            losses.push(step.loss);
            Flow::GoOn
        })
        .expect("it trains");
    assert!((losses[0] - 21f64.ln()).abs() < 1e-5, "scores start at zero: {losses:?}");

    let mut first = new();
    first.run(&photographs, &normalizer, |_| Flow::Pause).expect("it trains");
    assert_eq!(first.done(), 1);
    let mut second = new();
    second.load_state(&first.state(), first.done()).expect("a state");
    drop(first);
    second.run(&photographs, &normalizer, |_| Flow::GoOn).expect("it trains");
    assert!(second.is_complete());
    for ((name, expected), (_, found)) in straight.state().iter().zip(second.state()) {
        assert_eq!(expected, &found, "{name}");
    }
    for ((name, now), (_, then)) in
        straight.network().backbone().state().expect("a state").iter().zip(backbone.state().expect("a state"))
    {
        assert_eq!(now == &then, !name.starts_with("classifier."), "{name}");
    }
}

#[test]
fn a_network_is_measured_pixel_by_pixel() {
    let command = ["eval", "segmentation", "--snapshot", text(alexnet()), "--voc", text(kit()), "--device", "cpu"];
    let small = ["--iterations", "1", "--train-batch", "1", "--lr", "0.01"];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("seg.state");
    let kept = [&command[..], &small, &["--state", text(&state), "--json"]].concat();
    let found: Value = serde_json::from_str(&ok(&kept)).expect("JSON");
    assert_eq!(found["photographs"], serde_json::json!([15, 10]));
    let classes = found["classes"].as_array().expect("classes");
    let shares: Vec<f64> = classes.iter().filter_map(|class| class["iu"].as_f64()).collect();
    assert_eq!(classes.len(), 21);
    // Background, bird, cat, cow, dog, person and sheep are there.
    assert!(shares.len() >= 7, "{classes:?}");
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((found["mean_iu"].as_f64().expect("a mean") - mean).abs() < 1e-12);
    assert!(!state.exists(), "nothing is left to go on with");
}

#[test]
fn what_cannot_be_segmented_is_named() {
    let refused = |snapshot: &str, more: &[&str], code: i32, word: &str| {
        let command = ["eval", "segmentation", "--snapshot", snapshot, "--voc", text(kit()), "--device", "cpu"];
        let (found, _, err) = output(&[&command, more].concat());
        assert!(found == code && err.contains(word), "{found}: {err}");
    };
    refused("random:small:rgb:32", &[], 2, "alexnet and vgg16");
    refused("random:alexnet:rgb:63", &["--fcn", "8s"], 2, "32s");
    refused("random:alexnet:rgb:63", &[], 2, "224");
    refused("random:small:rgb:32", &["--train-on", "trainaug"], 3, "trainaug.txt");
    refused("random:small:rgb:32", &["--year", "VOC2010"], 3, "VOC2010");
    refused("random:small:rgb:32", &["--layer", "conv1"], 2, "--layer");
    refused("random:small:rgb:32", &["--lr", "0"], 2, "learning rate");
}
