//! `shoal eval probes`: every layer in one pass, settings chosen on images held out, interrupted and gone on with.

use crate::commands::{ok, output, text};
use crate::run::shoal;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const NETWORK: &str = "random:small:rgb:28";

/// The first images of Fashion-MNIST's test set: 500 to fit on and the 200 after them to test on, made once.
pub fn lists() -> (&'static str, &'static str) {
    static LISTS: OnceLock<(tempfile::TempDir, PathBuf, PathBuf)> = OnceLock::new();
    let (_, train, test) = LISTS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (train, test) = (folder.path().join("train.tar"), folder.path().join("test.tar"));
        cut(&train, 0..500);
        cut(&test, 500..700);
        (folder, train, test)
    });
    (text(train), text(test))
}

/// Writes some samples of the test set to a shard of their own.
fn cut(out: &Path, samples: std::ops::Range<usize>) {
    let source = File::open("shards/fashion-test.tar.zst").expect("the shard");
    let mut source = tar::Archive::new(zstd::Decoder::new(source).expect("zstd"));
    let mut shard = tar::Builder::new(File::create(out).expect("a file"));
    let (mut number, mut last) = (0, String::new());
    for member in source.entries().expect("a tar") {
        let mut member = member.expect("a member");
        let name = member.path().expect("a name").display().to_string();
        let key = name.split('.').next().unwrap_or_default().to_owned();
        if key != last {
            number += usize::from(!last.is_empty());
            last = key;
        }
        if number >= samples.end {
            break;
        }
        if !samples.contains(&number) {
            continue;
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).expect("its bytes");
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        shard.append_data(&mut header, &name, bytes.as_slice()).expect("appended");
    }
    shard.finish().expect("a whole shard");
}

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let (train, test) = lists();
    let basic = ["eval", "probes", "--snapshot", NETWORK, "--train", train, "--test", test];
    [&basic, more, &["--json"]].concat()
}

fn probes(more: &[&str]) -> Value {
    serde_json::from_str(&ok(&arguments(more))).expect("JSON")
}

#[test]
fn every_layer_is_probed_in_one_pass() {
    for crops in [&[][..], &["--ten-crops"]] {
        let report = probes(&[&["--epochs", "8", "--probe-batch", "50"], crops].concat());
        assert_eq!((&report["classes"], &report["train_images"]), (&Value::from(10), &Value::from(500)));
        let layers = report["layers"].as_array().expect("layers");
        let names: Vec<_> = layers.iter().map(|layer| layer["layer"].as_str().expect("a name")).collect();
        assert_eq!(names, ["conv1", "conv2", "conv3", "conv4"]);
        for layer in layers {
            let share = |key: &str| layer[key].as_f64().expect("a share");
            assert_eq!(layer["test_images"], 200, "{layer}");
            assert!(share("top1") > 0.5 && share("top5") > 0.9 && share("top5") <= 1.0, "{layer}");
            assert!(share("best_top1") >= share("top1"), "{layer}");
        }
    }
}

#[test]
fn settings_are_chosen_on_images_held_out_and_perceptrons_fit_too() {
    let more = ["--layers", "conv4,conv2", "--epochs", "10", "--probe-batch", "20", "--lr", "1e-7,0.01"];
    let report = probes(&[&more[..], &["--hidden", "64"]].concat());
    for (number, layer) in ["conv4", "conv2"].into_iter().enumerate() {
        let row = &report["layers"][number];
        assert_eq!((&row["layer"], &row["lr"]), (&Value::from(layer), &Value::from(0.01)), "{row}");
        assert!(row["top1"].as_f64().is_some_and(|share| share > 0.3), "{row}");
    }
}

#[test]
fn an_interrupted_run_goes_on_as_if_nothing_had_been() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("state");
    let settings = ["--epochs", "12", "--probe-batch", "40", "--hidden", "32", "--layers", "conv1,conv4"];
    let straight = probes(&settings);

    let with_state = [&settings[..], &["--state", text(&state)]].concat();
    let mut child = Command::new(shoal().get_program())
        .args(arguments(&with_state))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("epoch 2/12")), "an epoch has been tested");
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.expect("kill runs").success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{rest:?}");
    assert!(state.join("probes.safetensors").is_file());

    let (code, _, err) = output(&arguments(&[&with_state[..], &["--lr", "0.5"]].concat()));
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("other settings"), "{err}");
    assert_eq!(probes(&with_state), straight);
    assert!(!state.join("probes.safetensors").exists(), "a finished run needs its state no longer");
}

#[test]
fn what_cannot_be_probed_is_said_at_once() {
    let (train, _) = lists();
    let photos = "shards/photos-000000.tar";
    for (train, more, code, words) in [
        (photos, &[][..], 3, ".cls"),
        (train, &["--layers", "conv9"], 2, "conv9"),
        (train, &["--lr=-1"], 2, "learning rate"),
        (train, &["--epochs", "0"], 2, "--epochs"),
    ] {
        let basic = ["eval", "probes", "--snapshot", NETWORK, "--train", train, "--test", photos, "--epochs", "1"];
        let basic = if more.contains(&"--epochs") { &basic[..8] } else { &basic[..] };
        let (found, _, err) = output(&[basic, more].concat());
        assert_eq!(found, code, "{err}");
        assert!(err.contains(words), "{err}");
    }
    let (code, _, err) = output(&[
        "eval",
        "probes",
        "--snapshot",
        NETWORK,
        "--train",
        train,
        "--test",
        photos,
        "--epochs",
        "1",
        "--layers",
        "conv4",
    ]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("no test image has a label"), "{err}");
}
