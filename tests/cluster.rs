//! `shoal cluster` on files of features, and `shoal eval nmi` on what it writes; both against scikit-learn and numpy where there
//! are peers.

use crate::commands::{ok, output, text};
use crate::interop::python;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Features of the first two shards of photographs by an untrained network, made once.
fn features() -> &'static Path {
    static FEATURES: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FEATURES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("features.arrow");
        let photos = "shards/photos-{000000..000001}.tar";
        ok(&["embed", "--snapshot", "random:small:rgb:32", "--shards", photos, "--out", text(&path)]);
        (folder, path)
    });
    path
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(&[arguments, &["--json"]].concat())).expect("JSON")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {value}"))
}

/// Runs `shoal cluster` on [`features`] in 24 dimensions with `more` into `folder/name.arrow`.
fn cluster(folder: &Path, name: &str, more: &[&str]) -> (PathBuf, Value) {
    cluster_in("24", folder, name, more)
}

fn cluster_in(dims: &str, folder: &Path, name: &str, more: &[&str]) -> (PathBuf, Value) {
    let out = folder.join(name).with_extension("arrow");
    let basic = ["cluster", text(features()), "--pca", dims, "--out", text(&out)];
    let summary = json(&[&basic, more].concat());
    (out, summary)
}

fn peer(python: &Path, arguments: &[&Path]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/interop/clustering.py");
    let output = std::process::Command::new(python)
        .arg(script)
        .args(arguments)
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("PYTHONPATH")
        .output()
        .expect("python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_way_of_clustering_gives_every_row_a_cluster() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ways: [(&str, &[&str], Option<u64>); 8] = [
        ("plain", &["--k", "12"], Some(12)),
        ("spread", &["--k", "12", "--start", "plusplus", "--spherical", "--tolerance", "0.001"], Some(12)),
        ("balanced", &["--k", "12", "--balanced"], Some(12)),
        ("coarse", &["--k", "12", "--coarse", "3"], Some(12)),
        ("odc", &["--k", "12", "--empties", "odc"], Some(12)),
        ("projected", &["--k", "12", "--projection", "64"], Some(12)),
        ("raw", &["--k", "12", "--no-whiten"], Some(12)),
        ("pic", &["--method", "pic"], None),
    ];
    for (name, more, k) in ways {
        let (out, summary) = cluster(folder.path(), name, more);
        assert_eq!(summary["rows"], 450, "{name}: {summary}");
        assert!(k.is_none_or(|k| summary["clusters"] == k), "{name}: {summary}");
        assert_eq!(number(&summary, "empty"), 0.0, "{name}: {summary}");
        assert_eq!(summary["dimensions"], if name == "raw" { 256 } else { 24 });
        let itself = json(&["eval", "nmi", text(&out), text(&out), "--ami"]);
        assert!((number(&itself, "nmi") - 1.0).abs() < 1e-9 && (number(&itself, "ami") - 1.0).abs() < 1e-9, "{itself}");
        assert_eq!(itself["samples"], 450);
        assert_eq!(itself["clusters"][0], summary["clusters"]);
    }
    let (_, plain) = cluster(folder.path(), "again", &["--k", "12"]);
    let largest = |summary: &Value| number(summary, "largest_share");
    let (_, balanced) = cluster(folder.path(), "balanced", &["--k", "12", "--balanced"]);
    assert!(largest(&balanced) < largest(&plain).min(0.13), "{balanced} {plain}");
    let same = [folder.path().join("plain.arrow"), folder.path().join("again.arrow")]
        .map(|path| fs::read(path).expect("a file"));
    assert!(same[0] == same[1], "a seed fixes everything");
}

#[test]
fn a_balanced_subset_is_a_list_of_keys() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (out, summary) = cluster(folder.path(), "levels", &["--levels", "40,5", "--sample", "60"]);
    assert_eq!((&summary["clusters"], &summary["levels"][0], &summary["sample"]), (&40.into(), &5.into(), &60.into()));
    let list = fs::read_to_string(out.with_extension("subset.txt")).expect("the list");
    let keys: BTreeSet<&str> = list.lines().collect();
    assert_eq!((list.lines().count(), keys.len()), (60, 60));
    let named = folder.path().join("keys.txt");
    let (_, _) = cluster(folder.path(), "flat", &["--k", "9", "--sample", "9", "--nearest", "--subset", text(&named)]);
    assert_eq!(fs::read_to_string(&named).expect("the list").lines().count(), 9);
    let columns = ok(&["inspect", text(&out)]);
    assert!(columns.contains("level_2") && columns.contains("distance"), "{columns}");
}

#[test]
fn what_cannot_be_clustered_is_said_in_the_words_of_the_command() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.arrow");
    let refused = |more: &[&str], words: &[&str]| {
        let (code, _, err) = output(&[&["cluster", text(features()), "--out", text(&out)], more].concat());
        assert_eq!(code, 2, "{err}");
        assert!(words.iter().all(|word| err.contains(word)), "{err}");
    };
    refused(&[], &["--k"]);
    refused(&["--k", "451"], &["451", "450 rows", "--k"]);
    refused(&["--levels", "20,20"], &["fewer"]);
    refused(&["--k", "9", "--sample", "451"], &["451"]);
    refused(&["--method", "pic", "--neighbours", "450"], &["450"]);
    refused(&["--k", "9", "--no-whiten", "--save", "x"], &["--no-whiten"]);
    let (out, _) = cluster(folder.path(), "plain", &["--k", "3"]);
    let (code, _, err) = output(&["cluster", text(&out), "--k", "3", "--out", text(&folder.path().join("x.arrow"))]);
    assert!(code == 3 && err.contains("`feature`"), "{err}");
}

#[test]
fn numpy_finds_the_same_projection_and_the_same_nearest_centroids() {
    let Some(python) = python("projection and centroids") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let saved = folder.path().join("clusters.safetensors");
    for dims in ["24", "256"] {
        let (out, _) = cluster_in(dims, folder.path(), "plain", &["--k", "12", "--save", text(&saved)]);
        peer(&python, &["check".as_ref(), features(), &out, &saved]);
    }
}

#[test]
fn scikit_learn_finds_the_same_agreement() {
    let Some(python) = python("NMI and AMI") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (first, _) = cluster(folder.path(), "means", &["--k", "12"]);
    let (second, _) = cluster(folder.path(), "pic", &["--method", "pic"]);
    let theirs: Value = serde_json::from_str(&peer(&python, &["agree".as_ref(), &first, &second])).expect("JSON");
    for mean in ["geometric", "arithmetic"] {
        let ours = json(&["eval", "nmi", text(&first), text(&second), "--ami", "--mean", mean]);
        for measure in ["nmi", "ami"] {
            let (ours, theirs) = (number(&ours, measure), number(&theirs, &format!("{measure}_{mean}")));
            assert!((ours - theirs).abs() < 1e-9, "{measure}, {mean}: {ours} {theirs}");
        }
    }
}
