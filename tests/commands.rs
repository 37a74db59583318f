//! The commands, each on the real files of the repository: what they print, what they write, how they end.

use crate::run::{records, shoal, small_pipeline, start};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const PHOTOS: &str = "shards/photos-000000.tar";

/// One finished run for all tests of this module: 48 steps on 225 photographs.
pub fn finished_run() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let run = folder.path().join("run");
        let status = start(&small_pipeline(folder.path()), &run, &[]).wait().expect("a child");
        assert!(status.success(), "{status}");
        (folder, run)
    });
    run
}

pub fn output(arguments: &[&str]) -> (i32, String, String) {
    let output = shoal().args(arguments).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Runs a command that must succeed; its standard output.
pub fn ok(arguments: &[&str]) -> String {
    let (code, out, err) = output(arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    out
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

#[test]
fn a_run_leaves_what_the_design_says() {
    let run = finished_run();
    for name in ["pipeline.toml", "metrics.jsonl", "ledger.jsonl", "tensorboard", "latest/manifest.json"] {
        assert!(run.join(name).exists(), "{name}");
    }
    let latest = run.join("latest");
    for name in ["model", "head", "optimizer", "clusters", "assigner"] {
        assert!(latest.join(format!("{name}.safetensors")).is_file(), "{name}");
    }
    assert!(latest.join("bank.arrow").is_file() && latest.join("cursor.json").is_file());
    let cycles = records(run, "cycle");
    assert_eq!(cycles.len(), 6, "one before the first step, then one every nine");
    for (number, cycle) in cycles.iter().enumerate() {
        assert_eq!(cycle["nmi_prev"].is_null(), number == 0);
        let sizes: Vec<u64> = serde_json::from_value(cycle["sizes"].clone()).expect("sizes");
        assert_eq!(sizes.len(), 8);
        assert_eq!(sizes.iter().sum::<u64>(), cycle["rows"].as_u64().expect("rows"));
        assert!(run.join(format!("clusters/step-{:09}.arrow", cycle["step"].as_u64().expect("a step"))).is_file());
    }
    for step in records(run, "step") {
        for key in ["loss", "images_per_s", "wait_data_s", "label_entropy"] {
            assert!(step[key].is_number(), "{key} of {step}");
        }
    }
}

#[test]
fn a_finished_run_has_nothing_left_to_do_and_a_changed_one_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let run = text(finished_run());
    let before = records(finished_run(), "step").len();
    ok(&["pretrain", text(&pipeline), "--run", run, "--no-bar"]);
    assert_eq!(records(finished_run(), "step").len(), before);
    let (code, _, err) = output(&["pretrain", text(&pipeline), "--run", run, "--set", "cluster.k=9"]);
    assert_eq!(code, 2);
    assert!(err.contains("cluster.k") && err.contains("was 8"), "{err}");
}

#[test]
fn features_of_every_photograph_with_and_without_training() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (snapshot, layer, width) in [(text(finished_run()), None, 256), ("random:small:rgb:32", Some("conv3"), 128)] {
        let out = folder.path().join("features.arrow");
        let mut arguments = vec!["embed", "--snapshot", snapshot, "--shards", PHOTOS, "--out", text(&out)];
        arguments.extend(["--device", "cpu"]);
        arguments.extend(layer.iter().flat_map(|layer| ["--layer", layer]));
        ok(&arguments);
        let found: Value = serde_json::from_str(&ok(&["inspect", text(&out), "--json"])).expect("JSON");
        assert_eq!(found["rows"], 225);
        let feature = found["columns"]["feature"].as_str().expect("a kind");
        let entries: i64 = feature
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .find(|n| *n > 32)
            .expect("a width");
        assert_eq!(entries % width, 0, "{feature}");
    }
}

#[test]
fn probes_of_an_untrained_network_beat_chance_by_far() {
    for probe in ["knn", "linear"] {
        let out = ok(&[
            "eval",
            probe,
            "--snapshot",
            "random:small:sobel:28",
            "--layer",
            "conv4",
            "--device",
            "cpu",
            "--json",
            "--train",
            "shards/fashion-test.tar.zst",
            "--test",
            "shards/fashion-test.tar.zst",
        ]);
        let found: Value = serde_json::from_str(&out).expect("JSON");
        let accuracy = found["accuracy"].as_f64().expect("an accuracy");
        assert!(accuracy > 0.6 && accuracy <= 1.0, "{probe}: {accuracy} of ten classes");
        assert_eq!(found["test_images"], 4_000);
    }
}

#[test]
fn unlabelled_photographs_cannot_be_probed() {
    let list = ["--train", PHOTOS, "--test", PHOTOS];
    let (code, _, err) = output(&[["eval", "knn", "--snapshot", "random:small:rgb:32"].as_slice(), &list].concat());
    assert_eq!(code, 3);
    assert!(err.contains(PHOTOS) && err.contains(".cls"), "{err}");
}

#[test]
fn nmi_is_one_with_itself_and_as_recorded_with_the_cycle_before() {
    let clusters = finished_run().join("clusters");
    let (a, b) = (clusters.join("step-000000036.arrow"), clusters.join("step-000000045.arrow"));
    let nmi = |first: &Path, second: &Path| -> f64 {
        let out = ok(&["eval", "nmi", text(first), text(second), "--json"]);
        serde_json::from_str::<Value>(&out).expect("JSON")["nmi"].as_f64().expect("a number")
    };
    assert!((nmi(&a, &a) - 1.0).abs() < 1e-9);
    let between = nmi(&a, &b);
    assert!(between > 0.0 && between < 1.0, "{between}");
    assert!((between - nmi(&b, &a)).abs() < 1e-9);
    let (code, _, err) = output(&["eval", "nmi", text(&a)]);
    assert_eq!(code, 3, "photographs have no classes");
    assert!(err.contains("no labels"), "{err}");
}

#[test]
fn class_folders_are_read_as_they_lie_with_their_classes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = std::fs::File::open(crate::run::root().join(PHOTOS)).expect("the shard");
    for (number, entry) in tar::Archive::new(file).entries().expect("members").enumerate().take(60) {
        let mut entry = entry.expect("a member");
        let name = entry.path().expect("a name").file_name().expect("a file").to_string_lossy().into_owned();
        let class = folder.path().join(["n01", "n02"][number / 2 % 2]);
        std::fs::create_dir_all(&class).expect("a folder");
        std::io::copy(&mut entry, &mut std::fs::File::create(class.join(name)).expect("a file")).expect("room");
    }
    let spec = format!("classes:{}", folder.path().display());
    let knn = [
        "eval",
        "knn",
        "--snapshot",
        "random:small:rgb:64",
        "--neighbours",
        "1",
        "--json",
        "--train",
        &spec,
        "--test",
        &spec,
    ];
    let report: Value = serde_json::from_str(&ok(&knn)).expect("JSON");
    assert_eq!(report["accuracy"], 1.0, "each image is its own nearest neighbour: {report}");
    assert_eq!(report["train_images"], 30);
}

#[test]
fn a_sheet_is_a_picture_of_clusters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("sheet.png");
    ok(&[
        "show",
        "sheet",
        "--run",
        text(finished_run()),
        "--out",
        text(&out),
        "--rows",
        "3",
        "--columns",
        "4",
        "--side",
        "48",
    ]);
    let picture = image::open(&out).expect("a PNG").to_rgb8();
    assert!(picture.width() > 4 * 48 && picture.height() > 3 * 48, "{:?}", picture.dimensions());
    let colours: std::collections::HashSet<_> = picture.pixels().collect();
    assert!(colours.len() > 500, "photographs have many colours, found {}", colours.len());
}

#[test]
fn an_export_holds_the_trained_weights_and_embeds_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("weights.safetensors");
    ok(&["export", text(finished_run()), "--to", "safetensors", "--out", text(&out)]);
    let from_run = ok(&["inspect", text(&finished_run().join("latest/model.safetensors"))]);
    let exported = ok(&["inspect", text(&out)]);
    assert_eq!(exported, from_run);
    assert!(exported.contains("arch") && exported.contains("small"), "{exported}");
    let features = ["a.arrow", "b.arrow"].map(|name| folder.path().join(name));
    // The pipeline of the run says how many threads: sums over other numbers of them round otherwise.
    let pipeline = finished_run().join("pipeline.toml");
    for (snapshot, features) in [text(finished_run()), text(&out)].into_iter().zip(&features) {
        let rest = ["--pipeline", text(&pipeline), "--out", text(features), "--device", "cpu"];
        ok(&[&["embed", "--snapshot", snapshot, "--shards", PHOTOS], &rest[..]].concat());
    }
    let [of_run, of_export] = features.map(|path| fs::read(path).expect("features"));
    assert!(of_run == of_export, "the same features to the last bit");
}

#[test]
fn inspect_says_how_far_a_run_is() {
    let found: Value = serde_json::from_str(&ok(&["inspect", text(finished_run()), "--json"])).expect("JSON");
    assert_eq!(found["step"]["step"], 48);
    assert_eq!(found["cycle"]["cycle"], 6);
    assert_eq!(found["resumes_at"], 48);
    assert_eq!(found["snapshots"].as_array().expect("a list").len(), 3, "keep_last = 3");
}

#[test]
fn wrong_words_end_with_2_and_missing_data_with_3() {
    let (code, _, err) = output(&["pretrain", "demo", "--set", "train.batchsize=3"]);
    assert_eq!(code, 2);
    assert!(err.contains("batch_size"), "{err}");
    let (code, _, err) = output(&["embed", "--snapshot", "nowhere", "--shards", PHOTOS, "--out", "/dev/null"]);
    assert_eq!(code, 2);
    assert!(err.contains("nowhere"), "{err}");
    let (code, _, err) = output(&["shards", "list", "no/such/*.tar"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("no/such/*.tar"), "{err}");
    assert_eq!(output(&["pretrain"]).0, 2);
}

#[test]
fn cuda_asked_for_and_not_there_ends_with_4() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if shoal::torch::cuda::is_usable() {
        return; // then it is there
    }
    let run = folder.path().join("run");
    let (code, _, err) =
        output(&["pretrain", text(&small_pipeline(folder.path())), "--run", text(&run), "--set", "device.kind=cuda"]);
    assert_eq!(code, 4);
    assert!(err.contains("CUDA cannot be used") && err.contains("hint:"), "{err}");
    assert!(!err.contains(".so:") || err.lines().count() < 5, "one line of the loader is enough: {err}");
}

#[test]
fn check_names_every_loss_of_the_damaged_shard() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ledger = folder.path().join("ledger.jsonl");
    let (code, out, err) = output(&["shards", "check", "shards/damage.tar", "--ledger", text(&ledger), "--json"]);
    assert_eq!(code, 3);
    assert!(err.contains("lost:"), "{err}");
    let shards: Value = serde_json::from_str(&out).expect("JSON");
    let losses = &shards[0]["losses"];
    assert_eq!(shards[0]["verdict"], "complete");
    assert_eq!(shards[0]["samples"], 20);
    for (reason, count) in [("empty_image", 1), ("not_an_image", 2), ("too_many_pixels", 4), ("no_image", 2)] {
        assert_eq!(losses[reason], count, "{reason} in {losses}");
    }
    let lines = fs::read_to_string(&ledger).expect("a ledger");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let (losses, ends): (Vec<_>, Vec<_>) = lines.partition(|line| line["kind"] == "loss");
    assert_eq!((losses.len(), ends.len()), (9, 1));
    assert_eq!((&ends[0]["verdict"], &ends[0]["samples"]), (&"complete".into(), &20.into()));
    for line in losses {
        assert_eq!(line["shard"], "shards/damage.tar");
        assert!(line["key"].is_string() && line["offset"].is_u64() && line["reason"].is_string(), "{line}");
    }
}

#[test]
fn check_tells_where_shards_were_cut() {
    let (code, out, _) = output(&[
        "shards",
        "check",
        "shards/damage-truncated.tar",
        "shards/damage-cut-at-boundary.tar",
        PHOTOS,
        "--json",
    ]);
    assert_eq!(code, 3);
    let shards: Value = serde_json::from_str(&out).expect("JSON");
    for cut in [&shards[0], &shards[1]] {
        assert_eq!(cut["verdict"], "truncated");
        assert!(cut["truncated_at"].as_u64() > Some(0), "{cut}");
        assert_eq!(cut["losses"]["truncated_shard"], 2, "the sample at the cut, and the shard");
    }
    assert_eq!(shards[2]["verdict"], "complete");
    assert_eq!(shards[2]["samples"], 225);
}

/// The largest resident memory of a command, in kB, as the kernel counted it.
fn peak_memory(arguments: &[&str]) -> u64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("status");
    // std gives no resource usage of a child; Python does.
    let script = format!(
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); \
         open({:?}, 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))",
        text(&report)
    );
    let status = std::process::Command::new("python3")
        .current_dir(crate::run::root())
        .args(["-c", &script])
        .arg(crate::run::binary())
        .args(arguments)
        .status()
        .expect("python3, which set-up needs too");
    assert!(status.success());
    fs::read_to_string(report).expect("a number").parse().expect("a number")
}

#[test]
fn bombs_cost_less_than_500_megabytes() {
    let peak = peak_memory(&["shards", "check", "shards/damage.tar"]);
    assert!(peak > 10_000, "the program was measured: {peak} kB");
    assert!(peak < 500_000, "{peak} kB");
}

#[test]
fn a_live_assigner_raises_the_alarm() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = folder.path().join("live");
    let live = ["--set", "cluster.assigner=live", "--set", "cluster.every_steps=400", "--set", "train.lr=0.1"];
    let more = ["--set", "observe.collapse_stop=true", "--set", "snapshot.every_steps=0", "--steps", "400"];
    let status =
        start(&small_pipeline(folder.path()), &run, &[live.as_slice(), &more].concat()).wait().expect("a child");
    let alarms = records(&run, "alarm");
    assert_eq!(alarms.len(), 1, "{status}");
    assert_eq!(alarms[0]["alarm"], "collapse");
    assert_eq!(status.code(), Some(3), "collapse_stop ends the run");
    let frozen = records(finished_run(), "alarm");
    assert!(frozen.is_empty(), "{frozen:?}");
}

#[test]
fn packed_photographs_train() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = folder.path().join("images");
    for class in ["a", "b"] {
        fs::create_dir_all(images.join(class)).expect("a folder");
    }
    let mut archive = tar::Archive::new(fs::File::open(crate::run::root().join(PHOTOS)).expect("the shard"));
    for (number, entry) in archive.entries().expect("members").enumerate() {
        let mut entry = entry.expect("a member");
        let path = entry.path().expect("a name").into_owned();
        if path.extension().is_some_and(|extension| extension == "jpg") {
            entry
                .unpack(images.join(["a", "b"][number / 2 % 2]).join(path.file_name().expect("a name")))
                .expect("room");
        }
    }
    let shards = folder.path().join("mine.tar.zst");
    ok(&["shards", "pack", text(&images), "--out", text(&shards), "--max-samples", "100"]);
    let run = folder.path().join("run");
    let list = format!("stream.shards=[\"{}/mine-*.tar.zst\"]", text(folder.path()));
    let status =
        start(&small_pipeline(folder.path()), &run, &["--set", &list, "--steps", "4"]).wait().expect("a child");
    assert!(status.success(), "{status}");
    let cycles = records(&run, "cycle");
    assert!(cycles[0]["nmi_labels"].is_number(), "class folders are labels: {}", cycles[0]);
}

#[test]
fn the_doctor_names_a_problem_of_the_list_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipeline = folder.path().join("p.toml");
    std::fs::write(&pipeline, "[stream]\nshards = [\"shards/damage-truncated.tar\"]\n[model]\narch = \"small\"\n")
        .expect("written");
    let (_, out, _) = output(&["doctor", pipeline.to_str().expect("UTF-8"), "--json"]);
    let checks: Value = serde_json::from_str(&out).expect("JSON");
    let list = checks.as_array().and_then(|all| all.iter().find(|check| check["name"] == "list")).expect("the list");
    assert_eq!(list["status"], "warn", "{list}");
    assert!(list["value"].as_str().is_some_and(|value| value.contains("damage-truncated")), "{list}");
}

#[test]
fn the_doctor_and_the_completions_answer() {
    let (code, out, err) = output(&["doctor", "demo", "--json"]);
    assert_eq!(code, 0, "{err}");
    let checks: Value = serde_json::from_str(&out).expect("JSON");
    let names: Vec<_> = checks.as_array().expect("a list").iter().map(|check| check["name"].to_string()).collect();
    assert!(names.len() >= 6, "{names:?}");
    let check = |name: &str| checks.as_array().and_then(|all| all.iter().find(|check| check["name"] == name));
    for name in ["list", "images", "link", "decoding", "network", "memory needed"] {
        assert_eq!(check(name).unwrap_or_else(|| panic!("no {name} in {names:?}"))["status"], "ok", "{name}");
    }
    let samples = check("pass").expect("a forecast")["numbers"]["samples"].as_f64().expect("lengths are known");
    assert!((1500.0..2100.0).contains(&samples), "{samples}: the list holds 1,800");
    let codecs = &check("images").expect("a mix")["numbers"]["codecs"];
    assert!(codecs["progressive JPEG"].as_u64() > Some(0), "the photographs come in several codings: {codecs}");
    assert!(ok(&["completions", "bash"]).contains("shoal"));
    for command in ["pretrain", "embed", "export", "inspect", "doctor", "sweep", "init"] {
        assert!(ok(&[command, "--help"]).contains("Example"), "{command}");
    }
    for command in [
        ["shards", "list"],
        ["shards", "check"],
        ["shards", "pack"],
        ["eval", "knn"],
        ["eval", "nmi"],
        ["eval", "linear"],
        ["eval", "probes"],
        ["eval", "voc07"],
        ["eval", "detection"],
        ["eval", "segmentation"],
        ["eval", "retrieval"],
        ["eval", "report"],
        ["show", "filters"],
        ["show", "activations"],
        ["show", "top"],
        ["show", "sheet"],
        ["show", "map"],
        ["show", "curves"],
    ] {
        assert!(ok(&[command[0], command[1], "--help"]).contains("Example"), "{command:?}");
    }
}
