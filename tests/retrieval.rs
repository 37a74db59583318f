//! `shoal eval retrieval` on two small sets in the layout of Oxford 5k and Paris 6k (`ops/data/miniature_oxford.py`), and against numpy
//! where there are peers.

use crate::commands::{ok, output, text};
use crate::interop::python;
use crate::run::{binary, root};
use serde_json::Value;
use shoal::config::{Precision, ViewsPlan};
use shoal::decode::{Orient, Photograph};
use shoal::evaluate::retrieval::regions::regions;
use shoal::model::state::{Metadata, write_safetensors};
use shoal::model::{Backbone, Normalizer};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// The two sets, made once.
fn sets() -> &'static Path {
    static SETS: OnceLock<tempfile::TempDir> = OnceLock::new();
    let sets = SETS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = root().join("ops/data/miniature_oxford.py");
        let made = Command::new("python3").arg(script).arg(folder.path()).env_remove("LD_LIBRARY_PATH").output();
        let made = made.expect("python3, which set-up needs too");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        folder
    });
    sets.path()
}

/// Arguments that rank Oxford, whitened by Paris, unless `more` says otherwise.
fn arguments(sets: &Path, snapshot: &str, more: &[&str]) -> Vec<String> {
    let folder = |name: &str| sets.join(name).to_str().expect("temporary folders have plain names").to_owned();
    let mut arguments: Vec<String> =
        ["eval", "retrieval", "--snapshot", snapshot, "--device", "cpu"].map(str::to_owned).to_vec();
    arguments.extend(["--images".into(), folder("oxford/images"), "--truth".into(), folder("oxford/truth")]);
    if !more.contains(&"--no-whiten") {
        arguments.extend(["--whiten-images".into(), folder("paris/images")]);
    }
    if !more.contains(&"--side") {
        arguments.extend(["--side".into(), "96".into()]);
    }
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    arguments
}

fn evaluate(arguments: &[String]) -> (i32, String, String) {
    output(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

const NETWORK: &str = "random:small:rgb:32";

fn json(arguments: &[String]) -> Value {
    let (code, out, err) = evaluate(arguments);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).expect("JSON")
}

fn peer(python: &Path, command: &str, folder: &Path) {
    let output = Command::new(python)
        .arg(root().join("ops/interop/retrieval.py"))
        .arg(command)
        .arg(folder)
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("PYTHONPATH")
        .output()
        .expect("python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn numpy_has_the_same_regions_for_maps_of_every_size() {
    let Some(python) = python("regions") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut tensors = Vec::new();
    for (height, width) in (1..=40).flat_map(|height| (1..=64).map(move |width| (height, width))) {
        let levels = 1 + (height + width) % 4;
        let found = regions(height, width, levels);
        let numbers: Vec<i64> = found.iter().flat_map(|region| [region.top, region.left, region.side]).collect();
        let rows = Tensor::from_slice(&numbers).view([found.len() as i64, 3]);
        tensors.push((format!("{levels}:{height}:{width}"), rows));
    }
    write_safetensors(&folder.path().join("regions.safetensors"), &tensors, &Metadata::new()).expect("a file");
    peer(&python, "regions", folder.path());
}

/// Maps of a network, found without the code under test: resizing and cutting are done here.
struct Maps<'a> {
    backbone: &'a Backbone,
    layer: &'a str,
    side: u32,
    tensors: Vec<(String, Tensor)>,
}

impl Maps<'_> {
    fn add(&mut self, name: String, path: &Path, part: Option<[f64; 4]>) {
        let photograph = Photograph::open(path, Orient::AsStored).expect("a photograph");
        let scale = f64::from(self.side) / f64::from(photograph.width.max(photograph.height));
        let scaled = |length: f64| (length * scale).round_ties_even() as i64;
        let (width, height) = (scaled(photograph.width.into()), scaled(photograph.height.into()));
        let mut pixels = photograph.resized((width as u32, height as u32)).expect("pixels");
        if let Some(edges) = part {
            let [left, top, right, bottom] = edges.map(scaled);
            pixels = pixels.slice(0, top, bottom, 1).slice(1, left, right, 1);
        }
        let views = ViewsPlan::default();
        let normalizer = Normalizer::new(&views.mean, &views.std, Device::Cpu).expect("a normaliser");
        let images = normalizer.prepare(&pixels.unsqueeze(0)).expect("images");
        let map = self.backbone.forward_to(&images, self.layer).expect("a map");
        self.tensors.push((name, map.squeeze_dim(0)));
    }

    fn add_all(&mut self, kind: &str, folder: &Path) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
                self.add(format!("{kind}:{name}"), &path, None);
                found.insert(name, path);
            }
        }
        found
    }
}

/// Descriptors, rankings and precisions of numpy from the same maps are those of the command.
fn numpy_agrees(test: &str, spec: &str, layer: &str, side: u32, more: &[&str]) {
    let Some(python) = python(test) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backbone = Backbone::random(spec, 3, Device::Cpu, Precision::Fp32).expect("a network");
    let model = folder.path().join("model.safetensors");
    write_safetensors(&model, &backbone.state().expect("weights"), &backbone.metadata()).expect("a file");

    let _no_grad = tch::no_grad_guard();
    let mut maps = Maps { backbone: &backbone, layer, side, tensors: Vec::new() };
    if !more.contains(&"--no-whiten") {
        assert_eq!(maps.add_all("whiten", &sets().join("paris/images")).len(), 72);
    }
    let images = maps.add_all("image", &sets().join("oxford/images"));
    let truth = folder.path().join("truth");
    fs::create_dir(&truth).expect("a folder");
    for entry in fs::read_dir(sets().join("oxford/truth")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().and_then(|name| name.to_str()).expect("a name");
        fs::copy(&path, truth.join(file)).expect("a copy");
        if let Some(query) = file.strip_suffix("_query.txt") {
            let line = fs::read_to_string(&path).expect("a line");
            let (image, edges) = line.trim().split_once(' ').expect("a name and edges");
            let edges: Vec<f64> = edges.split(' ').map(|edge| edge.parse().expect("a number")).collect();
            let path = &images[image.strip_prefix("oxc1_").expect("the prefix of Oxford")];
            maps.add(format!("query:{query}"), path, Some(edges.try_into().expect("four edges")));
        }
    }
    write_safetensors(&folder.path().join("maps.safetensors"), &maps.tensors, &Metadata::new()).expect("a file");

    let rankings = folder.path().join("rankings.tsv");
    let side = side.to_string();
    let given = [&["--side", &side, "--rankings", text(&rankings), "--json"], more].concat();
    let found = json(&arguments(sets(), text(&model), &given));
    assert_eq!((&found["layer"], &found["photographs"]), (&layer.into(), &72.into()), "{found}");
    assert_eq!(found["queries"].as_array().map(Vec::len), Some(8), "{found}");
    fs::write(folder.path().join("found.json"), found.to_string()).expect("a file");
    peer(&python, "evaluate", folder.path());
}

#[test]
fn numpy_finds_the_same_rankings_and_precisions() {
    numpy_agrees("retrieval", "small:rgb:32", "conv4", 128, &[]);
}

#[test]
fn numpy_finds_the_same_with_few_dimensions_another_layer_and_two_levels_behind_a_sobel_filter() {
    let more = ["--dims", "20", "--layer", "conv2", "--levels", "2"];
    numpy_agrees("retrieval, other settings", "small:sobel:32", "conv2", 64, &more);
}

#[test]
fn numpy_finds_the_same_without_whitening() {
    numpy_agrees("retrieval without whitening", "small:rgb:32", "conv4", 96, &["--no-whiten"]);
}

#[test]
fn the_table_says_what_was_found_and_on_what() {
    let (code, out, err) = evaluate(&arguments(sets(), NETWORK, &[]));
    assert_eq!(code, 0, "{err}");
    for words in ["72 photographs in ", "8 queries in ", "72 photographs in "] {
        assert!(err.contains(words), "{err}");
    }
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 10, "{out}");
    let last = lines[9];
    for words in [
        "mAP ",
        "8 queries among 72 photographs",
        "conv4 of random:small",
        "3 levels",
        "longest side 96",
        "256 dimensions",
    ] {
        assert!(last.contains(words), "{words}: {last}");
    }
    let precision = |line: &str| line.split_whitespace().last().and_then(|word| word.parse::<f64>().ok());
    let precisions: Vec<f64> = lines[1..9].iter().filter_map(|line| precision(line)).collect();
    assert!(precisions.len() == 8 && precisions.iter().all(|precision| (0.0..=100.0).contains(precision)), "{out}");
    let mean = precisions.iter().sum::<f64>() / 8.0;
    let told: f64 = last.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    assert!((mean - told).abs() < 0.01, "{out}");
    // A tenth of the photographs are positives: crops of one photograph are found better than by chance, even without training.
    assert!(mean > 25.0, "{out}");
}

/// A copy of Oxford that a test may spoil.
fn copied() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for part in ["oxford/images", "oxford/truth"] {
        fs::create_dir_all(folder.path().join(part)).expect("a folder");
        for entry in fs::read_dir(sets().join(part)).expect("a folder") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, folder.path().join(part).join(path.file_name().expect("a name"))).expect("a copy");
        }
    }
    folder
}

#[test]
fn photographs_that_are_broken_or_missing_are_named_and_left_out() {
    let copy = copied();
    let images = copy.path().join("oxford/images");
    let queries = fs::read_to_string(copy.path().join("oxford/truth/eiffel_tower_1_query.txt")).expect("a query")
        + &fs::read_to_string(copy.path().join("oxford/truth/eiffel_tower_2_query.txt")).expect("a query");
    let positives = fs::read_to_string(copy.path().join("oxford/truth/eiffel_tower_1_good.txt")).expect("a list");
    let free: Vec<&str> = positives.lines().filter(|name| !queries.contains(name)).collect();
    let others = fs::read_dir(&images).expect("a folder").filter_map(|entry| {
        entry.expect("an entry").path().file_stem().and_then(|name| name.to_str()).map(str::to_owned)
    });
    let mut general: Vec<String> = others.filter(|name| name.starts_with("general_")).collect();
    general.sort();
    let file = |name: &str| images.join(format!("{name}.jpg"));
    fs::remove_file(file(free[0])).expect("removed");
    let bytes = fs::read(file(&general[0])).expect("a photograph");
    fs::write(file(&general[0]), &bytes[..bytes.len() / 2]).expect("half of it");
    fs::write(file(&general[1]), "").expect("nothing");
    fs::write(file(&general[2]), "<html>gone</html>").expect("no photograph");

    let (code, out, err) = evaluate(&arguments(copy.path(), NETWORK, &["--no-whiten", "--json"]));
    assert_eq!(code, 0, "{err}");
    let found: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(found["photographs"], 68, "one is gone and three are broken");
    assert_eq!(found["left_out"], serde_json::json!(general[..3]));
    assert!(err.contains("cut short: 3 (") && general[..3].iter().all(|name| err.contains(name)), "{err}");
    assert!(err.contains(&format!("not found: 1 ({})", free[0])), "{err}");
    let whole = json(&arguments(sets(), NETWORK, &["--no-whiten", "--json"]));
    let precision = |found: &Value| {
        let query =
            found["queries"].as_array().expect("queries").iter().find(|query| query["query"] == "eiffel_tower_1");
        let query = query.expect("the query").clone();
        (query["positives"].as_u64(), query["average_precision"].as_f64().expect("a number"))
    };
    assert_eq!(precision(&found).0, precision(&whole).0, "what is missing counts as not found");
}

#[test]
fn what_cannot_be_measured_is_said_with_its_file() {
    let refused = |arguments: &[String], code: i32, words: &[&str]| {
        let (found, _, err) = evaluate(arguments);
        assert_eq!(found, code, "{err}");
        assert!(words.iter().all(|word| err.contains(word)), "{words:?}: {err}");
    };
    refused(&arguments(sets(), NETWORK, &["--layer", "fc5"]), 2, &["fc5", "conv4"]);
    refused(&arguments(sets(), NETWORK, &["--side", "0"]), 2, &["--side"]);
    refused(&arguments(sets(), NETWORK, &["--no-whiten", "--whiten-images", "x"]), 2, &["--no-whiten"]);
    // What is too small for AlexNet's strides is named, with the way out.
    refused(
        &arguments(sets(), "random:alexnet:rgb:63", &["--no-whiten", "--side", "40"]),
        4,
        &["brandenburg_gate_", "--side"],
    );

    let copy = copied();
    let empty = copy.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    let ours = |more: &[&str]| arguments(copy.path(), NETWORK, &[&["--no-whiten"], more].concat());
    let replaced = |key: &str, value: &Path| {
        let mut arguments = ours(&[]);
        let at = arguments.iter().position(|argument| argument == key).expect("it is given");
        arguments[at + 1] = text(value).to_owned();
        arguments
    };
    refused(&replaced("--images", &empty), 3, &["empty", "holds no image"]);
    refused(&replaced("--truth", &empty), 3, &["empty", "holds no query", "_good.txt"]);
    refused(&replaced("--images", &copy.path().join("gone")), 3, &["gone"]);
    let mut lacking = ours(&[]);
    lacking.retain(|argument| argument != "--no-whiten");
    refused(&lacking, 2, &["--whiten-images"]);
    for entry in fs::read_dir(copy.path().join("oxford/images")).expect("a folder").take(3) {
        let path = entry.expect("an entry").path();
        fs::copy(&path, empty.join(path.file_name().expect("a name"))).expect("a copy");
    }
    lacking.extend(["--whiten-images", text(&empty)].map(str::to_owned));
    let (code, _, err) = evaluate(&lacking);
    assert!(code == 0 && err.contains("too few to learn 256 dimensions"), "{err}");

    let truth = copy.path().join("oxford/truth");
    let query = fs::read_to_string(truth.join("eiffel_tower_2_query.txt")).expect("a query");
    let image = query.split(' ').next().and_then(|name| name.strip_prefix("oxc1_")).expect("a name").to_owned();
    let path = copy.path().join("oxford/images").join(format!("{image}.jpg"));
    let bytes = fs::read(&path).expect("a photograph");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("half of it");
    refused(&ours(&[]), 3, &[&image, "eiffel_tower_2", "cut short"]);
    fs::remove_file(&path).expect("removed");
    refused(&ours(&[]), 3, &[&image, "eiffel_tower_2_query.txt"]);
    fs::write(&path, &bytes).expect("it is back");
    for kind in ["good", "ok"] {
        fs::write(truth.join(format!("eiffel_tower_2_{kind}.txt")), "").expect("an empty list");
    }
    refused(&ours(&[]), 3, &["eiffel_tower_2", "nothing to find"]);
}

/// Files of photographs in a cache, with the times at which they were written.
fn kept(cache: &Path) -> BTreeMap<PathBuf, std::time::SystemTime> {
    let folders = fs::read_dir(cache).into_iter().flatten().filter_map(Result::ok);
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().filter_map(Result::ok));
    let kept = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "safetensors"));
    kept.filter_map(|file| Some((file.path(), file.metadata().ok()?.modified().ok()?))).collect()
}

#[test]
fn an_interrupted_evaluation_goes_on_with_what_it_saw() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = folder.path().join("cache");
    let given = ["--side", "160", "--json"];
    let expected = evaluate(&arguments(sets(), NETWORK, &given)).1;
    let given = [&given[..], &["--cache", text(&cache)]].concat();
    let arguments = arguments(sets(), NETWORK, &given);
    let child = Command::new(binary())
        .args(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let started = Instant::now();
    while kept(&cache).len() < 10 {
        assert!(started.elapsed() < Duration::from_secs(120), "nothing is kept");
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("a signal");
    let ended = child.wait_with_output().expect("an end");
    let err = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{err}");
    assert!(err.contains("goes on from here"), "{err}");
    let before = kept(&cache);
    assert!(before.len() < 152, "it was interrupted too late");

    let (code, out, err) = evaluate(&arguments);
    assert_eq!((code, out), (0, expected), "{err}");
    let after = kept(&cache);
    assert_eq!(after.len(), 152, "72 photographs to learn from, 72 to rank, 8 queries");
    assert!(before.iter().all(|(path, time)| after[path] == *time), "what was there is not written again");

    // Other dimensions and the other direction find everything there; another side does not.
    let more: Vec<String> = arguments.iter().map(String::clone).chain(["--dims".into(), "16".into()]).collect();
    assert_eq!(json(&more)["dimensions"], 16);
    assert_eq!(kept(&cache), after);
    ok(&arguments.iter().map(|argument| if argument == "160" { "96" } else { argument }).collect::<Vec<_>>());
    assert_eq!(kept(&cache).len(), 2 * 152);
}
