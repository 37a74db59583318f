//! Networks leave for PyTorch and come from it: every format that `shoal export` writes gives in Python what an independent definition
//! gives (`ops/interop/models.py`), and `ops/import.py` brings checkpoints of others in with the same features.
//!
//! `ops/interop/formats.py` makes the networks and judges the exports; without peers its tests are skipped, in one line each.

use crate::commands::{ok, output, text};
use crate::interop::python;
use shoal::config::Precision;
use shoal::model::state::{Metadata, find, read_safetensors, write_safetensors};
use shoal::model::{Backbone, Mode};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tch::{CModule, Device, Kind, Tensor};

const TOLERANCE: f64 = 1e-4;
const NETWORKS: [&str; 5] = ["alexnet", "vgg16", "resnet18", "resnet50", "small"];

/// Runs a script of `ops/` in the peers' environment.
fn script(python: &Path, script: &str, arguments: &[&str]) -> Output {
    Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(script))
        .args(arguments)
        // the wheel brings its own libtorch, and must not find ours
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("PYTHONPATH")
        .output()
        .expect("python starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn formats(python: &Path, command: &str, folder: &Path) {
    let output = script(python, "interop/formats.py", &[command, text(folder)]);
    assert!(output.status.success(), "formats.py {command}: {}", said(&output));
}

/// A folder with a network of each architecture, and what the definitions make of some images; made once.
fn made(python: &Path) -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        formats(python, "make", folder.path());
        folder
    });
    folder.path()
}

/// Links to the networks and their outputs in a folder of the test's own.
fn copies_of(made: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(made).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        std::os::unix::fs::symlink(&path, folder.path().join(name)).expect("a link");
    }
    folder
}

fn export(folder: &Path, network: &str, to: &str, out: &str, more: &[&str]) -> String {
    let (source, out) = (folder.join(format!("{network}.safetensors")), folder.join(out));
    ok(&[&["export", text(&source), "--to", to, "--out", text(&out)], more].concat())
}

/// By how much the features of a file differ from those expected for its images, where these spread by 1.
fn difference(file: &Path, io: &Path, border: i64) -> shoal::Result<f64> {
    let (io, _) = read_safetensors(io)?;
    let named = |name: &str| &io.iter().find(|(candidate, _)| candidate == name).expect("it was written").1;
    let backbone = Backbone::open(file, Device::Cpu, Precision::Fp32)?;
    let _no_grad = tch::no_grad_guard();
    let images = named("images").constant_pad_nd([border; 4]);
    let expected = named("features");
    let spread = expected.std(false).double_value(&[]);
    assert!(spread > 100.0 * TOLERANCE, "a constant proves nothing");
    let difference = (backbone.forward(&images, Mode::Eval)? - expected).abs().max().double_value(&[]);
    Ok(difference / spread.max(1.0))
}

#[test]
fn pytorch_reads_state_dicts_without_running_code() {
    let Some(python) = python("state dicts") else { return };
    let folder = copies_of(made(&python));
    for network in NETWORKS {
        export(folder.path(), network, "pytorch", &format!("{network}.pth"), &[]);
    }
    for network in ["alexnet", "vgg16"] {
        let said = export(folder.path(), network, "pytorch", &format!("{network}.published.pth"), &["--published"]);
        assert!(said.contains("published layout"), "{said}");
    }
    formats(&python, "state-dicts", folder.path());
}

#[test]
fn torchscript_runs_alone_and_gives_the_same_features() {
    let Some(python) = python("TorchScript") else { return };
    let folder = copies_of(made(&python));
    for network in NETWORKS {
        export(folder.path(), network, "torchscript", &format!("{network}.pt"), &[]);
    }
    for (network, layer) in
        [("alexnet", "conv5"), ("alexnet", "fc6"), ("vgg16", "conv3_3"), ("resnet18", "layer1"), ("small", "conv4")]
    {
        // layers of convolutions take any size, also one that the whole network does not
        let more: &[&str] = if layer.starts_with("fc") { &[] } else { &["--size", "101"] };
        let more = [&["--layer", layer], more].concat();
        export(folder.path(), network, "torchscript", &format!("{network}.{layer}.pt"), &more);
    }
    let (source, out) = (folder.path().join("vgg16.safetensors"), folder.path().join("other.pt"));
    let (code, _, err) = output(&["export", text(&source), "--to", "torchscript", "--size", "64", "--out", text(&out)]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--size 64") && err.contains("--layer") && !out.exists(), "{err}");
    formats(&python, "scripts", folder.path());
}

#[test]
fn torchvision_loads_a_resnet_but_for_its_classifier() {
    let Some(python) = python("torchvision") else { return };
    let folder = copies_of(made(&python));
    for library in ["torchvision", "timm"] {
        for ending in ["pth", "safetensors"] {
            export(folder.path(), "resnet18", library, &format!("resnet18.{library}.{ending}"), &[]);
        }
    }
    formats(&python, "libraries", folder.path());
}

#[test]
fn checkpoints_of_others_come_in_with_the_same_features() -> shoal::Result<()> {
    let Some(python) = python("imports") else { return Ok(()) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    formats(&python, "legacy", folder.path());
    let at = |name: &str| folder.path().join(name);
    let import = |checkpoint: &str, more: &[&str]| {
        let (checkpoint, out) = (at(checkpoint), at("imported.safetensors"));
        let output = script(&python, "import.py", &[&[text(&checkpoint), text(&out)], more].concat());
        (output.status.code(), said(&output))
    };
    let imported = at("imported.safetensors");

    let (code, words) = import("deepcluster.pth.tar", &["--size", "96"]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("alexnet, sobel input, 96 pixels, k 10, epoch 500"), "{words}");
    assert!(!words.contains("warning"), "{words}");
    assert!(difference(&imported, &at("deepcluster.io.safetensors"), 0)? <= TOLERANCE);
    let (tensors, metadata) = read_safetensors(&imported)?;
    assert_eq!((metadata["epoch"].as_str(), metadata["k"].as_str()), ("500", "10"));
    assert!(!tensors.iter().any(|(name, _)| name.starts_with("top_layer")), "left aside");
    let (code, words) = import("deepcluster.pth.tar", &["--size", "96", "--keep-top-layer"]);
    assert_eq!(code, Some(0), "{words}");
    find(&read_safetensors(&imported)?.0, "top_layer.weight", &[10, 4096], Kind::Float)?;

    // in images with the border that it lacks here, DeeperCluster's network gives what it gave there
    let (code, words) = import("deeper.pth", &["--size", "34"]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("warning: DeeperCluster puts a border"), "{words}");
    assert!(difference(&imported, &at("deeper.io.safetensors"), 1)? <= TOLERANCE);

    let (code, words) = import("torchvision.pth", &[]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("resnet18, rgb input") && words.contains("left aside: fc, 20 counters"), "{words}");
    assert!(difference(&imported, &at("torchvision.io.safetensors"), 0)? <= TOLERANCE);

    for (checkpoint, named) in [
        ("short.pth", "features.9.running_var is missing"),
        ("odd.pth", "features.0.weight [64, 3, 11, 11]"),
        ("objects.pth", "--trust"),
    ] {
        let (code, words) = import(checkpoint, &[]);
        assert_eq!(code, Some(3), "{checkpoint}: {words}");
        assert!(words.contains(named) && !words.contains("Traceback"), "{checkpoint}: {words}");
    }
    let (code, words) = import("objects.pth", &["--size", "96", "--trust"]);
    assert_eq!(code, Some(0), "{words}");
    assert!(difference(&imported, &at("deepcluster.io.safetensors"), 0)? <= TOLERANCE);
    Ok(())
}

#[test]
fn exports_come_back_whole() -> shoal::Result<()> {
    let Some(python) = python("round trips") else { return Ok(()) };
    let folder = copies_of(made(&python));
    let imported = folder.path().join("imported.safetensors");
    for (network, to, out, more) in [
        ("small", "pytorch", "back.pth", &[][..]),
        ("alexnet", "pytorch", "back.pth.tar", &["--published"][..]),
        ("resnet18", "torchvision", "back.pth", &[][..]),
    ] {
        export(folder.path(), network, to, out, more);
        let output = script(&python, "import.py", &[text(&folder.path().join(out)), text(&imported)]);
        assert!(output.status.success(), "{}", said(&output));
        let (expected, about) = read_safetensors(&folder.path().join(format!("{network}.safetensors")))?;
        let (found, about_found) = read_safetensors(&imported)?;
        let kept: Metadata = about_found.into_iter().filter(|(key, _)| key != "epoch").collect();
        assert_eq!(kept, about, "{network}");
        assert_eq!(found.len(), expected.len(), "{network}");
        for (name, tensor) in &expected {
            assert_eq!(find(&found, name, &tensor.size(), Kind::Float)?, tensor, "{network}: {name}");
        }
    }
    Ok(())
}

/// `small` for 28 pixels with random weights, in a file.
fn small_network(folder: &Path) -> shoal::Result<(Backbone, PathBuf)> {
    let backbone = Backbone::random("small:sobel:28", 3, Device::Cpu, Precision::Fp32)?;
    let path = folder.join("small.safetensors");
    write_safetensors(&path, &backbone.state()?, &backbone.metadata())?;
    Ok((backbone, path))
}

#[test]
fn libtorch_runs_a_torchscript_and_finds_its_metadata() -> shoal::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (backbone, source) = small_network(folder.path())?;
    let out = folder.path().join("small.pt");
    let line = ok(&["export", text(&source), "--to", "torchscript", "--size", "40", "--out", text(&out)]);
    assert!(line.contains("on 40 x 40 pixels"), "{line}");
    let _no_grad = tch::no_grad_guard();
    let module = CModule::load(&out)?;
    for (batch, side) in [(1, 28), (3, 61)] {
        let images = Tensor::randn([batch, 3, side, side], (Kind::Float, Device::Cpu));
        let (found, expected) = (module.forward_ts(&[&images])?, backbone.forward(&images, Mode::Eval)?);
        assert_eq!(found.size(), expected.size());
        assert!((found - &expected).abs().max().double_value(&[]) <= TOLERANCE);
        assert!(expected.std(false).double_value(&[]) > 1e-3 * TOLERANCE, "a constant proves nothing");
    }
    assert_eq!(module.named_parameters()?.len(), backbone.parameters().len());
    let bytes = fs::read(&out).expect("the file");
    let about = br#"{"arch":"small","dropout":"0.5","input":"sobel","size":"40"}"#;
    assert!(bytes.windows(about.len()).any(|window| window == about), "stored as it is, for unzip to find");
    Ok(())
}

#[test]
fn the_same_network_gives_the_same_bytes() -> shoal::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_, source) = small_network(folder.path())?;
    for to in ["pytorch", "torchscript"] {
        let [first, second] = ["a.pt", "b.pt"].map(|name| {
            let out = folder.path().join(name);
            ok(&["export", text(&source), "--to", to, "--out", text(&out)]);
            fs::read(out).expect("the file")
        });
        assert!(first == second, "{to}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_exported_is_refused_with_a_way_out() -> shoal::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_, source) = small_network(folder.path())?;
    let out = folder.path().join("out.pt");
    let refused = |arguments: &[&str], code: i32, named: &[&str]| {
        let rest = ["export", text(&source), "--out", text(&out)];
        let (found, _, err) = output(&[&rest, arguments].concat());
        assert_eq!(found, code, "{arguments:?}: {err}");
        assert!(named.iter().all(|word| err.contains(word)), "{arguments:?}: {err}");
    };
    refused(&["--to", "pytorch", "--layer", "conv1"], 2, &["--layer", "torchscript"]);
    refused(&["--to", "timm", "--size", "64"], 2, &["--size", "torchscript"]);
    refused(&["--to", "torchscript", "--published"], 2, &["--published", "pytorch"]);
    refused(&["--to", "pytorch", "--published"], 2, &["small", "alexnet and vgg16"]);
    refused(&["--to", "torchscript", "--layer", "conv9"], 2, &["conv9", "conv4"]);
    refused(&["--to", "torchvision"], 2, &["torchvision", "small", "torchscript"]);
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "nothing but the network: {left:?}");

    let out = folder.path().join("out.safetensors");
    let (code, _, err) = output(&["export", text(&source), "--to", "pytorch", "--out", text(&out)]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains(".pth"), "{err}");
    Ok(())
}

#[test]
fn a_checkpoint_of_python_s_is_sent_to_the_importer() {
    for name in ["net.pth", "net.pth.tar", "net.pt"] {
        let (code, _, err) = output(&["export", name, "--to", "safetensors", "--out", "x.safetensors"]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(&format!("ops/import.py {name} net.safetensors")), "{err}");
        let (code, _, err) = output(&["embed", "--snapshot", name, "--shards", "x.tar", "--out", "x.arrow"]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("ops/import.py"), "{err}");
    }
}
