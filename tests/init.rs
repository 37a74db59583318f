//! `shoal init`: first weights from images (Krähenbühl et al., ICLR 2016), on Fashion-MNIST.

use crate::commands::{ok, output, text};
use serde_json::Value;
use shoal::config::{DeviceKind, DevicePlan, Plan, Precision, ViewsPlan};
use shoal::initialize::{Images, Layer, Method, initialize, rates};
use shoal::model::{Backbone, Mode, Normalizer};
use shoal::pipeline::gather::Gathering;
use shoal::pipeline::start_runtime;
use shoal::pipeline::stop::Stop;
use shoal::shards::ShardList;
use shoal::torch::device::place;
use std::fs;
use tch::{Device, Kind, Tensor};

const TRAIN: &str = "shards/fashion-train.tar.zst";
const TEST: &str = "shards/fashion-test.tar.zst";
const METHODS: [Method; 3] = [Method::Kmeans, Method::Pca, Method::Rescale];

/// Center views, uint8 `[B, 28, 28, 3]`, of the first `count` images that a stream over `shard` gives.
fn views(shard: &str, count: usize) -> Vec<Tensor> {
    let mut plan = Plan::default();
    plan.stream.shards = vec![shard.into()];
    plan.stream.shuffle = 500;
    plan.views = ViewsPlan { size: 28, resize: 28, ..plan.views };
    plan.device = DevicePlan { kind: DeviceKind::Cpu, decode_threads: 1, ..plan.device };
    let placement = place(&plan.device).expect("a CPU");
    let list = ShardList::parse(&plan.stream.shards).expect("a list");
    let runtime = start_runtime().expect("threads");
    let gathering = Gathering { plan: &plan, placement: &placement, count, batch_size: 64 };
    gathering.center_views(list, &runtime, &Stop::default(), |_| {}).expect("images")
}

fn normalizer() -> Normalizer {
    Normalizer::new(&[0.286; 3], &[0.353; 3], Device::Cpu).expect("a normalizer")
}

fn images(chunks: &[Tensor]) -> Images {
    Images::new(chunks.iter().map(Tensor::shallow_clone).collect(), normalizer(), Device::Cpu)
}

/// The same as one batch, `[N, 3, 28, 28]`.
fn batch(chunks: &[Tensor]) -> Tensor {
    normalizer().prepare(&Tensor::cat(chunks, 0)).expect("pixels")
}

fn random(spec: &str, seed: u64) -> Backbone {
    Backbone::random(spec, seed, Device::Cpu, Precision::Fp32).expect("a network")
}

fn fitted(spec: &str, chunks: &[Tensor], method: Method, seed: u64) -> (Backbone, Vec<Layer>) {
    let backbone = random(spec, seed);
    let layers = initialize(&backbone, &images(chunks), method, seed, &mut |_| Ok(())).expect("weights");
    (backbone, layers)
}

/// Largest mean, smallest and largest variance over all channels of the convolutions, after the division by the statistics of
/// batch norm and before its own weights.
fn extremes(backbone: &Backbone, images: &Tensor) -> (f64, f64, f64) {
    let _no_grad = tch::no_grad_guard();
    let (mut mean, mut low, mut high) = (0.0_f64, f64::INFINITY, 0.0_f64);
    for (position, affine) in backbone.affines().expect("no branches").iter().enumerate() {
        let Some((running_mean, running_variance)) = &affine.statistics else { continue };
        let output = affine.forward(&backbone.input_of(images, position).expect("an input")).expect("an output");
        let by_channel = |values: &Tensor| values.to_kind(Kind::Double).view([1, -1, 1, 1]);
        let output = (output.to_kind(Kind::Double) - by_channel(running_mean)) / by_channel(running_variance).sqrt();
        let means = output.mean_dim([0i64, 2, 3].as_slice(), false, Kind::Double);
        let variances = output.var_dim([0i64, 2, 3].as_slice(), false, false);
        mean = mean.max(means.abs().max().double_value(&[]));
        low = low.min(variances.min().double_value(&[]));
        high = high.max(variances.max().double_value(&[]));
    }
    (mean, low, high)
}

fn spread(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max) / rates.iter().copied().fold(f64::INFINITY, f64::min)
}

fn weight(backbone: &Backbone, layer: usize) -> Tensor {
    backbone.affines().expect("no branches")[layer].weight.detach().flatten(1, -1)
}

#[test]
fn every_channel_has_mean_0_and_variance_1_and_every_layer_one_rate_also_on_other_images() {
    let (fit, fresh) = (views(TRAIN, 512), views(TEST, 512));
    let plain = random("small:sobel:28", 3);
    let (mean, low, high) = extremes(&plain, &batch(&fresh));
    assert!(mean > 0.3 && (low < 0.5 || high > 2.0), "a plain network is neither: {mean} {low} {high}");
    let plain_rates = spread(&rates::rates(&plain, &images(&fresh), 1).expect("rates"));
    assert!(plain_rates > 2.0, "{plain_rates}");

    for method in METHODS {
        let (backbone, layers) = fitted("small:sobel:28", &fit, method, 3);
        let (mean, low, high) = extremes(&backbone, &batch(&fit));
        assert!(mean < 1e-3 && low > 0.998 && high < 1.002, "{method:?}, as fitted: {mean} {low} {high}");
        let (mean, low, high) = extremes(&backbone, &batch(&fresh));
        assert!(mean < 0.25 && low > 0.6 && high < 1.6, "{method:?}, other images: {mean} {low} {high}");
        assert!(spread(&layers.iter().map(|layer| layer.rate).collect::<Vec<_>>()) < 1.02, "{layers:?}");
        assert!(layers.iter().all(|layer| layer.constant == 0), "{layers:?}");
        let others = spread(&rates::rates(&backbone, &images(&fresh), 7).expect("rates"));
        assert!(others < 1.5, "{method:?}: {others} by other images and other losses");

        // Features: the scale is free, but the same for all.
        let features = tch::no_grad(|| backbone.forward(&batch(&fit), Mode::Eval)).expect("features");
        let deviations = features.std_dim(0, false, false);
        let deviation = deviations.mean(Kind::Float).double_value(&[]);
        assert!(deviations.allclose(&deviations.full_like(deviation), 1e-2, 0.0, false), "{method:?}: {deviations}");
        let means = features.mean_dim(0, false, Kind::Float).abs().max().double_value(&[]);
        assert!(means < 1e-2 * deviation, "{method:?}: {means} of {deviation}");
    }
}

#[test]
fn layers_without_batch_norm_between_them_change_at_one_rate_too() {
    let pixels = Tensor::arange(8 * 63 * 63 * 3, (Kind::Float, Device::Cpu)).square().sin() * 100.0 + 128.0;
    let chunk = pixels.to_kind(Kind::Uint8).view([8, 63, 63, 3]);
    let (backbone, layers) = fitted("alexnet:rgb:63", std::slice::from_ref(&chunk), Method::Rescale, 5);
    assert_eq!(layers.len(), 7);
    assert!(spread(&layers.iter().map(|layer| layer.rate_before).collect::<Vec<_>>()) > 2.0, "{layers:?}");
    let found = rates::rates(&backbone, &images(&[chunk]), 5).expect("rates");
    assert!(spread(&found) < 1.02, "{found:?}");
}

#[test]
fn rates_are_those_of_gradients_by_finite_differences() {
    // One image, so that the mean of squares is the square of one gradient, of a loss that is linear in the features.
    let chunk = views(TEST, 1);
    let backbone = random("small:rgb:28", 9);
    let found = rates::rates(&backbone, &images(&chunk), 2).expect("rates");
    let _no_grad = tch::no_grad_guard();
    let image = batch(&chunk);
    let last = backbone.affines().expect("no branches").len() - 1;
    let affine = &backbone.affines().expect("no branches")[last];
    // The gradient of η · (W x + b) is η xᵀ: its mean square is that of η times that of x.
    let input = backbone.input_of(&image, last).expect("an input").to_kind(Kind::Double);
    let mean_square = |values: &Tensor| values.square().mean(Kind::Double).double_value(&[]);
    let weights = affine.weight.detach().to_kind(Kind::Double);
    let direction = found[last].powi(2) * mean_square(&weights) / mean_square(&input);
    assert!((direction - 1.0).abs() < 0.4, "the mean square of 256 draws from N(0, 1): {direction}");

    // Ratios between layers do not depend on η's size. Weights ten times as large before batch norm with statistics that follow:
    // a hundredth of the rate.
    let conv = &backbone.affines().expect("no branches")[1];
    let _ = conv.weight.shallow_clone().f_mul_scalar_(10.0).expect("a weight");
    let (mean, variance) = conv.statistics.as_ref().expect("batch norm");
    let _ = mean.shallow_clone().f_mul_scalar_(10.0).expect("a mean");
    let _ = variance.shallow_clone().f_mul_scalar_(100.0).expect("a variance");
    drop(_no_grad);
    let scaled = rates::rates(&backbone, &images(&chunk), 2).expect("rates");
    assert!((scaled[1] / found[1] - 0.01).abs() < 1e-4, "{scaled:?} {found:?}");
    assert!((scaled[0] / found[0] - 1.0).abs() < 1e-3 && (scaled[4] / found[4] - 1.0).abs() < 1e-3);
}

#[test]
fn filters_are_from_the_images_and_the_same_each_time() {
    let fit = views(TRAIN, 300);
    let (pca, layers) = fitted("small:rgb:28", &fit, Method::Pca, 3);
    // gray images: a third of the 75 directions of a patch in colour
    assert_eq!(layers[0].from_images, 25, "{layers:?}");
    assert_eq!((layers[1].from_images, layers[3].from_images), (64, 256));
    assert_eq!(layers[4].from_images, 256, "no more than 256 outputs, and fewer than images");
    let filters = weight(&pca, 0).narrow(0, 0, 25).to_kind(Kind::Double);
    let lengths = filters.square().sum_dim_intlist(1, true, Kind::Double).sqrt();
    let unit = &filters / &lengths;
    let angles = unit.matmul(&unit.tr()) - Tensor::eye(25, (Kind::Double, Device::Cpu));
    assert!(angles.abs().max().double_value(&[]) < 1e-3, "principal components are at right angles");
    // The three channels of a gray image are one.
    let colours = filters.view([25, 3, 25]);
    let apart = (colours.select(1, 0) - colours.select(1, 1)).abs().max().double_value(&[]);
    assert!(apart < 1e-2 * filters.abs().max().double_value(&[]), "{apart}");

    let (centroids, layers) = fitted("small:rgb:28", &fit, Method::Kmeans, 3);
    assert_eq!(layers[..4].iter().map(|layer| layer.from_images).collect::<Vec<_>>(), [32, 64, 128, 256]);
    assert_eq!(layers[4].from_images, 0, "300 images are too few for 256 centroids");
    let cosines =
        |left: &Tensor, right: &Tensor| Tensor::cosine_similarity(left, right, 1, 1e-9).abs().min().double_value(&[]);
    let plain = random("small:rgb:28", 3);
    let (rescaled, layers) = fitted("small:rgb:28", &fit, Method::Rescale, 3);
    assert!(layers.iter().all(|layer| layer.from_images == 0));
    for layer in 0..4 {
        let random = weight(&plain, layer);
        assert!(cosines(&weight(&centroids, layer), &random) < 0.5, "centroids are not what was drawn");
        assert!(cosines(&weight(&rescaled, layer), &random) > 0.999, "only the scale of random filters changes");
    }
    assert!(cosines(&weight(&centroids, 4), &weight(&plain, 4)) > 0.999);

    let again = fitted("small:rgb:28", &fit, Method::Kmeans, 3).0;
    let other = fitted("small:rgb:28", &fit, Method::Kmeans, 4).0;
    for layer in 0..5 {
        assert_eq!(weight(&centroids, layer), weight(&again, layer));
        assert_ne!(weight(&centroids, layer), weight(&other, layer));
    }
}

#[test]
fn blank_or_missing_images_and_networks_with_branches_are_refused_by_name() {
    let fails = |spec: &str, chunks: Vec<Tensor>, method: Method| {
        let normalizer = Normalizer::new(&[0.0; 3], &[1.0; 3], Device::Cpu).expect("a normalizer");
        let images = Images::new(chunks, normalizer, Device::Cpu);
        initialize(&random(spec, 1), &images, method, 1, &mut |_| Ok(())).expect_err("refused").to_string()
    };
    let black = |count: i64| vec![Tensor::zeros([count, 28, 28, 3], (Kind::Uint8, Device::Cpu))];
    for method in [Method::Pca, Method::Kmeans] {
        let told = fails("small:sobel:28", black(6), method);
        assert!(told.contains("conv1") && told.contains("all the same"), "{told}");
    }
    let told = fails("small:sobel:28", black(6), Method::Rescale);
    assert!(told.contains("conv1") && told.contains("rate of 0"), "{told}");
    assert!(fails("small:rgb:28", Vec::new(), Method::Pca).contains("0 images"));
    assert!(fails("small:rgb:28", black(1), Method::Pca).contains("1 images"));
    assert!(fails("resnet18:rgb:28", black(6), Method::Pca).contains("resnet18"));
}

#[test]
fn the_command_writes_a_network_that_evaluations_take() {
    let folder = tempfile::tempdir().expect("a folder");
    let [out, again] = ["a", "b"].map(|name| folder.path().join(name).with_extension("safetensors"));
    let pipeline = ["--pipeline", "fashion", "--set", "device.threads=1", "--device", "cpu", "--images", "200"];
    for out in [&out, &again] {
        let told = ok(&[&["init", "--method", "pca", "--json", "--out", text(out)], &pipeline[..]].concat());
        let told: Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!((&told["images"], &told["method"]), (&200.into(), &"pca".into()));
        let layers = told["layers"].as_array().expect("layers");
        assert_eq!(
            layers.iter().map(|layer| layer["name"].as_str().expect("a name")).collect::<Vec<_>>(),
            ["conv1", "conv2", "conv3", "conv4", "fc5"]
        );
        assert_eq!(layers[4]["from_images"], 199, "a direction fewer than images");
    }
    assert!(fs::read(&out).expect("a file") == fs::read(&again).expect("a file"), "byte for byte");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2, "nothing else is left");
    let found = ok(&["inspect", text(&out)]);
    assert!(found.contains(r#""init":"pca""#) && found.contains(r#""images":"200""#), "{found}");

    let knn = ["eval", "knn", "--snapshot", text(&out), "--layer", "conv4", "--device", "cpu", "--json"];
    let told = ok(&[&knn[..], &["--train", TEST, "--test", TEST]].concat());
    let accuracy = serde_json::from_str::<Value>(&told).expect("JSON")["accuracy"].as_f64().expect("a number");
    assert!(accuracy > 0.6, "{accuracy} of ten classes");

    let out = text(&out);
    for (arguments, code, word) in [
        (&["--network", "resnet18", "--shards", TEST, "--out", out][..], 2, "resnet18"),
        (&["--network", "small:rgb:28", "--shards", TEST, "--out", "a.pth"], 2, ".safetensors"),
        (&["--network", "small:rgb:28", "--shards", "no/such.tar", "--out", out], 3, "no/such.tar"),
        (&["--network", "small:rgb:28", "--out", out], 2, "--shards"),
        (&["--out", out], 2, "--pipeline"),
    ] {
        let (found, _, err) = output(&[&["init"], arguments].concat());
        assert_eq!(found, code, "{err}");
        assert!(err.contains(word), "{word}: {err}");
    }
}
