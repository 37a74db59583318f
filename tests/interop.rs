//! Python sees the same networks: a definition of them in PyTorch, written from the paper and its published files,
//! loads our weights by name and gets our outputs, and the other way round.
//!
//! It runs `ops/interop/models.py` in the environment that `ops/peers.sh` makes (`.peers`, or where `SHOAL_PEERS`
//! points). Without one each test says in one line that it was skipped.

use shoal::config::{Arch, Input, ModelPlan, Precision};
use shoal::model::state::{Metadata, find, read_safetensors, write_safetensors};
use shoal::model::{Backbone, Mode};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 1e-4;

/// The interpreter of the peers' environment, or a line on stderr (past the capture of the test runner) that there is
/// none.
pub fn python(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let environment = std::env::var_os("SHOAL_PEERS").map_or_else(|| root.join(".peers"), PathBuf::from);
    let python = environment.join("bin/python");
    if python.is_file() {
        return Some(python);
    }
    let _ = writeln!(std::io::stderr(), "skipped {test}: no {}, make it with ops/peers.sh", python.display());
    None
}

fn run_models_py(python: &Path, command: &str, folder: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/interop/models.py");
    let output = Command::new(python)
        .arg(script)
        .arg(command)
        .arg(folder)
        // the wheel brings its own libtorch, and must not find ours
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("PYTHONPATH")
        .output()
        .expect("python starts");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "models.py {command}: {}", String::from_utf8_lossy(&text));
}

/// Moves every weight and statistic off its first value, so that no two of them can be mistaken for each other.
fn perturb(backbone: &Backbone) {
    tch::manual_seed(2);
    let _no_grad = tch::no_grad_guard();
    for (name, mut tensor) in backbone.parameters().into_iter().chain(backbone.buffers()) {
        if tensor.dim() == 1 {
            let noise = tensor.rand_like() * 0.2;
            let moved = if name.ends_with("running_var") { noise + 0.3 } else { &tensor + noise };
            tensor.copy_(&moved);
        }
    }
}

/// Random weights of ours give the same outputs in PyTorch.
fn python_agrees(test: &str, arch: Arch, input: Input, size: u32, layers: &[&str]) -> shoal::Result<()> {
    let Some(python) = python(test) else { return Ok(()) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plan = ModelPlan { arch, input, ..ModelPlan::default() };
    let backbone = Backbone::new(&plan, size, 1, Device::Cpu, Precision::Fp32)?;
    perturb(&backbone);
    write_safetensors(&folder.path().join("model.safetensors"), &backbone.state()?, &backbone.metadata())?;

    let _no_grad = tch::no_grad_guard();
    let images = Tensor::randn([2, 3, i64::from(size), i64::from(size)], (Kind::Float, Device::Cpu));
    let mut tensors = vec![("features".to_owned(), backbone.forward(&images, Mode::Eval)?)];
    for layer in layers {
        tensors.push((format!("layer:{layer}"), backbone.forward_to(&images, layer)?));
    }
    tensors.push(("images".to_owned(), images));
    write_safetensors(&folder.path().join("io.safetensors"), &tensors, &Metadata::new())?;
    run_models_py(&python, "check", folder.path());
    Ok(())
}

#[test]
fn pytorch_runs_our_alexnet() -> shoal::Result<()> {
    python_agrees("alexnet", Arch::AlexNet, Input::Sobel, 224, &["conv1", "conv2", "conv5", "fc6"])
}

#[test]
fn pytorch_runs_our_vgg16() -> shoal::Result<()> {
    python_agrees("vgg16", Arch::Vgg16, Input::Sobel, 224, &["conv1_1", "conv3_3", "conv5_3", "fc6"])
}

#[test]
fn torchvision_runs_our_resnet18() -> shoal::Result<()> {
    python_agrees("resnet18", Arch::ResNet18, Input::Rgb, 96, &["conv1", "layer1", "layer4"])
}

#[test]
fn torchvision_runs_our_resnet50_behind_a_sobel_filter() -> shoal::Result<()> {
    python_agrees("resnet50", Arch::ResNet50, Input::Sobel, 96, &["conv1", "layer1", "layer4"])
}

#[test]
fn we_run_a_checkpoint_with_the_published_names() -> shoal::Result<()> {
    let Some(python) = python("published alexnet") else { return Ok(()) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    run_models_py(&python, "publish", folder.path());
    let (io, _) = read_safetensors(&folder.path().join("io.safetensors"))?;
    let images = find(&io, "images", &[2, 3, 224, 224], Kind::Float)?;
    let expected = find(&io, "features", &[2, 4096], Kind::Float)?;

    let path = folder.path().join("published.safetensors");
    let backbone = Backbone::open(&path, Device::Cpu, Precision::Fp32)?;
    assert_eq!((backbone.plan().arch, backbone.plan().input, backbone.size()), (Arch::AlexNet, Input::Sobel, 224));
    let _no_grad = tch::no_grad_guard();
    let difference = (backbone.forward(images, Mode::Eval)? - expected).abs().max().double_value(&[]);
    let spread = expected.std(false).double_value(&[]);
    assert!(spread > 100.0 * TOLERANCE, "a constant proves nothing");
    assert!(
        difference <= TOLERANCE * spread.max(1.0),
        "features differ by {difference}, where they spread by {spread}"
    );
    Ok(())
}
