//! Whole networks: shapes, sizes, first weights, gradients, precision, states.

use super::*;

fn plan(arch: Arch, input: Input, dropout: f64) -> ModelPlan {
    ModelPlan { arch, input, dropout }
}

fn network(arch: Arch, size: u32, seed: u64) -> Result<Backbone> {
    Backbone::new(&plan(arch, Input::Sobel, 0.0), size, seed, Device::Cpu, Precision::Fp32)
}

/// Some images with structure, the same each time.
fn images(count: i64, size: i64) -> Tensor {
    let ramp = Tensor::arange(count * 3 * size * size, (Kind::Float, Device::Cpu));
    ((&ramp * 0.37).sin() * 1.5 + (&ramp * 0.0071).cos()).reshape([count, 3, size, size])
}

fn count(parameters: &[(String, Tensor)], chosen: impl Fn(&str, &Tensor) -> bool) -> usize {
    parameters.iter().filter(|(name, tensor)| chosen(name, tensor)).map(|(_, tensor)| tensor.numel()).sum()
}

#[test]
fn sizes_are_those_of_the_paper_s_networks() -> Result<()> {
    let build = |arch, input| Backbone::build(&plan(arch, input, 0.5), 224, None, Device::Cpu, Precision::Fp32);
    let is_conv = |name: &str, numel: &Tensor, norms: &[String]| {
        numel.dim() == 4
            || (name.starts_with("features.") && name.ends_with(".bias") && !norms.contains(&name.to_owned()))
    };
    for (arch, convs, norms, fcs) in
        [(Arch::AlexNet, 3_735_584, 2_752, 54_534_144), (Arch::Vgg16, 14_714_112, 8_448, 119_545_856)]
    {
        let network = build(arch, Input::Sobel)?;
        let parameters = network.parameters();
        // a norm is what has running statistics
        let prefixes =
            network.buffers().into_iter().filter_map(|(name, _)| Some(name.strip_suffix("running_mean")?.to_owned()));
        let norm_biases: Vec<String> = prefixes.map(|prefix| prefix + "bias").collect();
        assert_eq!(count(&parameters, |name, tensor| is_conv(name, tensor, &norm_biases)), convs);
        assert_eq!(count(&parameters, |name, _| name.starts_with("classifier.")), fcs);
        assert_eq!(count(&parameters, |_, _| true), convs + norms + fcs);
        assert_eq!(network.feature_dim(), 4096);
    }
    // torchvision's totals for three channels, less its classifier of 1,000 classes
    for (arch, total, classes_input) in [(Arch::ResNet18, 11_689_512, 512), (Arch::ResNet50, 25_557_032, 2048)] {
        let network = build(arch, Input::Rgb)?;
        assert_eq!(count(&network.parameters(), |_, _| true), total - 1000 * (classes_input + 1));
        assert_eq!(network.feature_dim(), classes_input as i64);
    }
    Ok(())
}

#[test]
fn names_on_disk_are_those_of_published_files() -> Result<()> {
    let names = |arch| -> Result<Vec<String>> {
        Ok(network(arch, 64, 1)?.state()?.into_iter().map(|(name, _)| name).collect())
    };
    let alexnet = names(Arch::AlexNet)?;
    for expected in
        ["sobel.0.weight", "sobel.0.bias", "sobel.1.weight", "sobel.1.bias", "classifier.1.weight", "classifier.4.bias"]
    {
        assert!(alexnet.iter().any(|name| name == expected), "{expected}");
    }
    let convs = |names: &[String]| -> Vec<i64> {
        let prefixes = names.iter().filter_map(|name| name.strip_prefix("features.")?.strip_suffix(".running_var"));
        prefixes.map(|place| place.parse::<i64>().expect("a number") - 1).collect()
    };
    assert_eq!(convs(&alexnet), [0, 4, 8, 11, 14]);
    assert_eq!(alexnet.len(), 4 + 5 * 6 + 2 * 2);
    let vgg = names(Arch::Vgg16)?;
    assert_eq!(convs(&vgg), [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]);
    assert!(
        vgg.iter().any(|name| name == "classifier.0.weight") && vgg.iter().any(|name| name == "classifier.3.weight")
    );
    assert!(names(Arch::ResNet50)?.iter().any(|name| name == "layer3.0.downsample.1.running_mean"));
    Ok(())
}

#[test]
fn maps_have_the_sides_of_the_published_networks() -> Result<()> {
    let alexnet = Backbone::build(&plan(Arch::AlexNet, Input::Rgb, 0.5), 224, None, Device::Cpu, Precision::Fp32)?;
    let input = images(1, 224);
    for (layer, shape) in [("conv1", [1, 96, 55, 55]), ("conv2", [1, 256, 27, 27]), ("conv5", [1, 256, 13, 13])] {
        assert_eq!(alexnet.forward_to(&input, layer)?.size(), shape);
    }
    assert_eq!(alexnet.forward_to(&input, "fc6")?.size(), [1, 4096]);
    assert_eq!(alexnet.forward(&input, Mode::Eval)?.size(), [1, 4096]);

    let small = network(Arch::Small, 28, 1)?;
    for (size, side) in [(28, 4), (64, 8), (96, 12)] {
        assert_eq!(small.forward_to(&images(2, size), "conv4")?.size(), [2, 256, side, side]);
        assert_eq!(small.forward(&images(2, size), Mode::Eval)?.size(), [2, 256]);
    }
    let resnet = network(Arch::ResNet18, 64, 1)?;
    assert_eq!(resnet.map_layers(), ["conv1", "layer1", "layer2", "layer3", "layer4"]);
    assert_eq!(resnet.forward_to(&images(1, 64), "conv1")?.size(), [1, 64, 32, 32]);
    assert_eq!(resnet.forward_to(&images(1, 64), "layer4")?.size(), [1, 512, 2, 2]);
    Ok(())
}

#[test]
fn one_pass_gives_many_layers_and_linear_layers_go_alone() -> Result<()> {
    let alexnet = network(Arch::AlexNet, 63, 1)?;
    let input = images(2, 63);
    let layers = ["fc6", "conv1", "conv5"];
    let found = alexnet.activations(&input, &layers, Mode::Eval)?;
    for (layer, found) in layers.iter().zip(&found) {
        assert_eq!(found, &alexnet.forward_to(&input, layer)?, "{layer}");
    }
    let flat = found[2].max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false).flatten(1, -1);
    assert_eq!(alexnet.connect(&flat, Mode::Eval)?, alexnet.forward(&input, Mode::Eval)?);
    let error = network(Arch::ResNet18, 64, 1)?.connect(&flat, Mode::Eval).expect_err("no linear layers");
    assert!(error.to_string().contains("resnet18"), "{error}");
    assert!(alexnet.activations(&input, &["conv1", "conv6"], Mode::Eval).is_err());
    Ok(())
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_the_way_out() -> Result<()> {
    let error = network(Arch::AlexNet, 62, 1).expect_err("the last pool leaves nothing");
    assert!(error.to_string().contains("views.size = 62"), "{error}");
    assert_eq!(error.hint(), Some("its strides need at least 63 pixels"));
    let alexnet = network(Arch::AlexNet, 63, 1)?;
    assert_eq!(alexnet.forward_to(&images(1, 96), "conv5")?.size(), [1, 256, 5, 5], "convolutions take any size");
    let error = alexnet.forward(&images(1, 96), Mode::Eval).expect_err("fc6 takes one size");
    assert!(error.to_string().contains("96 x 96 pixels"), "{error}");
    let error = alexnet.forward(&images(1, 63).narrow(1, 0, 2), Mode::Eval).expect_err("two channels");
    assert!(error.to_string().contains("[1, 2, 63, 63]"), "{error}");
    let error = alexnet.forward_to(&images(1, 63), "conv6").expect_err("there are five");
    assert!(error.hint().is_some_and(|hint| hint.contains("conv5")));
    Ok(())
}

#[test]
fn first_weights_are_deepcluster_s_and_follow_the_seed() -> Result<()> {
    let network = network(Arch::AlexNet, 63, 3)?;
    for (name, tensor) in network.parameters() {
        let deviation = tensor.std(false).double_value(&[]);
        let shape = tensor.size();
        let expected = match shape[..] {
            [outputs, _, height, width] => (2.0 / (height * width * outputs) as f64).sqrt(),
            [_, _] => 0.01,
            _ => 0.0,
        };
        let tolerance = 5.0 * expected / (2.0 * tensor.numel() as f64).sqrt();
        assert!((deviation - expected).abs() <= tolerance, "{name}: {deviation} for {expected}");
        let mean = tensor.mean(Kind::Double).double_value(&[]);
        if shape.len() == 1 {
            let is_norm_weight = name.ends_with(".weight");
            assert_eq!(mean, if is_norm_weight { 1.0 } else { 0.0 }, "{name}");
        }
    }
    let small = |seed| -> Result<Tensor> { Ok(self::network(Arch::Small, 28, seed)?.parameters()[0].1.detach()) };
    assert_eq!(small(1)?, small(1)?);
    assert_ne!(small(1)?, small(2)?);
    Ok(())
}

#[test]
fn the_loss_reaches_every_parameter() -> Result<()> {
    let cases = [
        (Arch::AlexNet, 63, Precision::Bf16),
        (Arch::Vgg16, 32, Precision::Fp32),
        (Arch::ResNet18, 32, Precision::Bf16),
        (Arch::ResNet50, 32, Precision::Fp32),
        (Arch::Small, 28, Precision::Fp32),
        (Arch::Small, 28, Precision::Bf16),
    ];
    for (arch, size, precision) in cases {
        let network = Backbone::new(&plan(arch, Input::Sobel, 0.0), size, 1, Device::Cpu, precision)?;
        let head = Head::new(network.feature_dim(), 7, 1, Device::Cpu, precision)?;
        let logits = head.logits(&network.forward(&images(4, i64::from(size)), Mode::Train)?)?;
        assert_eq!(logits.kind(), Kind::Float);
        let labels = Tensor::from_slice(&[0i64, 3, 6, 1]);
        logits.cross_entropy_for_logits(&labels).backward();
        for (name, parameter) in network.parameters().into_iter().chain(head.parameters()) {
            let gradient = parameter.grad();
            assert!(gradient.defined(), "{} {name}", arch.name());
            assert_eq!(gradient.kind(), Kind::Float, "{name}");
            let largest = gradient.abs().max().double_value(&[]);
            assert!(largest > 0.0 && largest.is_finite(), "{} {name}: {largest}", arch.name());
        }
    }
    Ok(())
}

#[test]
fn bf16_stays_close_to_fp32() -> Result<()> {
    for (arch, size) in [(Arch::AlexNet, 63), (Arch::ResNet18, 64), (Arch::Small, 28)] {
        let build = |precision| Backbone::new(&plan(arch, Input::Sobel, 0.0), size, 9, Device::Cpu, precision);
        let input = images(8, i64::from(size));
        let _no_grad = tch::no_grad_guard();
        let exact = build(Precision::Fp32)?.forward(&input, Mode::Train)?;
        let rough = build(Precision::Bf16)?.forward(&input, Mode::Train)?;
        assert_eq!(rough.kind(), Kind::Float);
        let error = (&exact - &rough).norm().double_value(&[]) / exact.norm().double_value(&[]);
        // bf16 keeps 8 bits, 0.4 % a rounding, with a few roundings in each of up to 20 layers
        assert!(error > 1e-5 && error < 0.1, "{}: {error}", arch.name());
    }
    Ok(())
}

#[test]
fn layout_of_the_images_does_not_matter() -> Result<()> {
    let network = network(Arch::Small, 28, 1)?;
    let planes = images(2, 28);
    let channels_last = planes.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let (a, b) = (network.forward(&planes, Mode::Eval)?, network.forward(&channels_last, Mode::Eval)?);
    assert!((a - b).abs().max().double_value(&[]) < 1e-5);
    Ok(())
}

#[test]
fn training_moves_running_statistics_and_drops_out_only_in_training() -> Result<()> {
    let network = Backbone::new(&plan(Arch::Small, Input::Rgb, 0.5), 28, 1, Device::Cpu, Precision::Fp32)?;
    let input = images(4, 28);
    let before = network.forward(&input, Mode::Eval)?;
    assert_eq!(before, network.forward(&input, Mode::Eval)?, "evaluation is deterministic");
    tch::manual_seed(1);
    let first = network.forward(&input, Mode::Train)?;
    assert_ne!(first, network.forward(&input, Mode::Train)?, "dropout draws anew");
    let moved = network.forward(&input, Mode::Eval)?;
    assert_ne!(before, moved, "the running statistics have moved");
    assert_ne!(moved, network.forward(&input, Mode::FineTune)?, "dropout is on");
    assert_eq!(moved, network.forward(&input, Mode::Eval)?, "and the running statistics stay");
    Ok(())
}

#[test]
fn a_state_goes_to_disk_and_back() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    let network = Backbone::new(&plan(Arch::ResNet18, Input::Sobel, 0.25), 64, 4, Device::Cpu, Precision::Fp32)?;
    let _ = network.forward(&images(4, 64), Mode::Train)?;
    state::write_safetensors(&path, &network.state()?, &network.metadata())?;

    let opened = Backbone::open(&path, Device::Cpu, Precision::Fp32)?;
    assert_eq!(opened.plan(), network.plan());
    assert_eq!(opened.size(), 64);
    let input = images(2, 64);
    assert_eq!(network.forward(&input, Mode::Eval)?, opened.forward(&input, Mode::Eval)?);
    Ok(())
}

#[test]
fn a_duplicate_has_weights_of_its_own() -> Result<()> {
    let student = network(Arch::Small, 28, 1)?;
    let assigner = student.duplicate()?;
    let input = images(2, 28);
    let before = assigner.forward(&input, Mode::Eval)?;
    assert_eq!(before, student.forward(&input, Mode::Eval)?);
    {
        let _no_grad = tch::no_grad_guard();
        for (_, mut parameter) in student.parameters() {
            let _ = parameter.f_mul_scalar_(0.5)?;
        }
    }
    assert_ne!(before, student.forward(&input, Mode::Eval)?, "parameters share storage with the network");
    assert_eq!(before, assigner.forward(&input, Mode::Eval)?);
    assigner.copy_from(&student)?;
    assert_eq!(assigner.forward(&input, Mode::Eval)?, student.forward(&input, Mode::Eval)?);
    assert!(assigner.copy_from(&network(Arch::AlexNet, 63, 1)?).is_err());
    Ok(())
}

#[test]
fn one_weight_makes_another_fingerprint() -> Result<()> {
    let (one, other) = (network(Arch::Small, 32, 1)?, network(Arch::Small, 32, 2)?);
    let first = one.fingerprint()?;
    assert_eq!(first, network(Arch::Small, 32, 1)?.fingerprint()?);
    assert_ne!(first, other.fingerprint()?);
    let _no_grad = tch::no_grad_guard();
    let (_, statistics) = one.buffers().swap_remove(0);
    let _ = statistics.narrow(0, 0, 1).fill_(3.0);
    assert_ne!(first, one.fingerprint()?);
    Ok(())
}

#[test]
fn the_first_filters_of_a_file_are_those_of_its_network() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    for arch in [Arch::AlexNet, Arch::Vgg16, Arch::ResNet18, Arch::ResNet50, Arch::Small] {
        let network = network(arch, 64, 3)?;
        state::write_safetensors(&path, &network.state()?, &network.metadata())?;
        assert_eq!(Backbone::first_filters_of(&path)?, network.first_filters()?, "{}", arch.name());
    }
    state::write_safetensors(
        &path,
        &[("other".into(), Tensor::ones([1], (Kind::Float, Device::Cpu)))],
        &Metadata::new(),
    )?;
    let error = Backbone::first_filters_of(&path).expect_err("no filters");
    assert!(error.to_string().contains("has no features.0.weight and no conv1.weight"), "{error}");
    Ok(())
}
