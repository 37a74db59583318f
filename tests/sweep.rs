//! `shoal sweep` trains and measures every combination, and goes on where it was; `shoal eval report` makes one page of what was
//! measured of a run.

use crate::commands::{ok, output, text};
use crate::probes::lists;
use crate::run::small_pipeline;
use std::fs;

#[test]
fn every_combination_is_trained_and_measured_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let sweep = folder.path().join("sweep");
    let (train, test) = lists();
    let arguments = [
        "sweep",
        text(&pipeline),
        "--run",
        text(&sweep),
        "--set",
        "cluster.k=4,16",
        "--set",
        "stream.seed=1,2",
        "--set",
        "train.steps=12",
        "--train",
        train,
        "--test",
        test,
    ];
    let first = ok(&arguments);
    let table = sweep.join("sweep.tsv");
    let read = || fs::read_to_string(&table).expect("a table");
    let lines = read();
    let runs: Vec<Vec<&str>> = lines.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    let settings: Vec<String> = runs.iter().map(|cells| cells[..3].join(" ")).collect();
    assert_eq!(settings, ["4 1 12", "4 2 12", "16 1 12", "16 2 12"]);
    for cells in &runs {
        let accuracy: f64 = cells[3].parse().expect("a number");
        assert!(accuracy > 30.0 && accuracy < 100.0, "{cells:?}: ten classes, guessing gives 10 %");
    }
    assert!(first.contains("| 4 | 2 |") && first.contains("±"), "{first}");
    assert_eq!(fs::read_to_string(sweep.join("sweep.md")).expect("Markdown").trim_end(), first.trim_end());
    for measure in ["knn", "linear", "nmi_prev"] {
        let svg = fs::read_to_string(sweep.join(format!("sweep-{measure}.svg"))).expect("a plot");
        assert!(svg.contains("cluster.k"), "{measure}");
    }

    // A line that is lost is measured again, from the run that is there; nothing else is done twice.
    let kept: Vec<&str> = lines.lines().take(4).collect();
    fs::write(&table, kept.join("\n") + "\n").expect("a shorter table");
    let (code, _, err) = output(&arguments);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("4 runs, 1 of them to do"), "{err}");
    assert_eq!(read(), lines);
}

#[test]
fn sweeps_that_cannot_be_are_refused_before_they_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let sweep = folder.path().join("sweep");
    for (setting, words) in [
        ("cluster.k=4,none", "cluster.k"),
        ("cluster.q=4", "unknown key `q`"),
        ("cluster.k", "KEY=VALUE"),
        ("train.steps=0", "never ends"),
    ] {
        let (code, _, err) = output(&["sweep", text(&pipeline), "--run", text(&sweep), "--set", setting]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(words), "{err}");
        assert!(!sweep.exists(), "{setting}");
    }
}

#[test]
fn a_run_has_a_page_of_all_that_was_measured_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = small_pipeline(folder.path());
    let run = folder.path().join("run");
    let (train, test) = lists();
    ok(&["pretrain", text(&pipeline), "--run", text(&run), "--no-bar", "--steps", "20"]);
    let lists = ["--snapshot", text(&run), "--train", train, "--test", test];
    ok(&[&["eval", "knn"], &lists[..]].concat());
    ok(&[&["eval", "linear", "--layer", "conv3"], &lists[..]].concat());
    ok(&[&["eval", "probes", "--epochs", "2", "--layers", "conv3,conv4"], &lists[..]].concat());
    ok(&["eval", "report", text(&run)]);
    let page = |name: &str| fs::read_to_string(run.join(name)).expect("a page");
    let (html, markdown) = (page("report.html"), page("report.md"));
    for word in ["k-NN, k = 20", "Linear probes (Table 1)", "conv4", "this run, step 20", "voc07", "every_steps = 9"] {
        assert!(html.contains(word) && markdown.contains(word), "{word}");
    }
    assert!(html.matches("<svg").count() >= 4, "curves are in the page");
    assert!(page("report-loss.svg").contains("cross-entropy"));
    let (code, _, err) = output(&["eval", "report", text(folder.path())]);
    assert_eq!(code, 2, "{err}");
}
