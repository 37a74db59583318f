//! The parts of a clustering of shoal, timed: for `clustering.py` and `cycle.py`, as JSON on stdout.
//!
//! kmeans POINTS START DIMENSIONS ITERATIONS THREADS    one k-means on raw files of f32
//! cycle ROWS WIDTH K ITERATIONS THREADS                the parts of a cycle on made-up features in f16: covariance and its
//!                                                      eigenvectors, projection, k-means from random rows, and from its own outcome
//! whiten POINTS DIMENSIONS KEPT THREADS                PCA and whitening of a raw file of f16
//! bank ROWS WIDTH FOLDER THREADS                       memory of a full bank, and pushes of 256 rows while it is written to FOLDER

use serde_json::{Value, json};
use shoal::bank::{Bank, Entries};
use shoal::cluster::kmeans::{self, Options};
use shoal::cluster::whiten::Whitening;
use shoal::config::Empties;
use shoal::shards::SampleId;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

fn read(path: &str, width: i64, kind: Kind) -> Tensor {
    let bytes = std::fs::read(path).expect("a file");
    let rows = bytes.len() / kind.elt_size_in_bytes() / width as usize;
    Tensor::from_data_size(&bytes, &[rows as i64, width], kind)
}

/// Makes [`peak`] forget what was; what is in memory now.
fn forget_peak() -> f64 {
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
    peak()
}

/// MiB that the process has had in memory at most.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn timed<T>(work: impl FnOnce() -> shoal::Result<T>) -> (T, f64) {
    let started = Instant::now();
    let found = work().expect("no error");
    (found, started.elapsed().as_secs_f64())
}

fn kmeans(points: &str, start: &str, width: i64, iterations: usize) -> Value {
    let (points, start) = (read(points, width, Kind::Float), read(start, width, Kind::Float));
    let k = start.size()[0] as usize;
    let options = Options { k, iterations, seed: 1, empties: Empties::Faiss, ..Options::default() };
    let before = forget_peak();
    let (found, seconds) = timed(|| kmeans::cluster(&points, Some(&start), options));
    json!({
        "seconds": seconds,
        "objectives": found.objectives,
        "objective": found.objective(),
        "iterations": found.iterations(),
        "mib": peak() - before,
    })
}

/// Features of low rank with noise on top, as those of networks are.
fn made_up(rows: i64, width: i64) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let (rank, block) = (512, 8_192);
    let mixing =
        Tensor::randn([rank, width], options) * Tensor::logspace(0.0, -2.0, rank, 10.0, options).view([rank, 1]);
    let features = Tensor::empty([rows, width], (Kind::Half, Device::Cpu));
    for start in (0..rows).step_by(block as usize) {
        let len = block.min(rows - start);
        let made = Tensor::randn([len, rank], options).matmul(&mixing) + Tensor::randn([len, width], options) * 0.01;
        features.narrow(0, start, len).copy_(&made);
    }
    features
}

fn cycle(rows: i64, width: i64, k: usize, iterations: usize) -> Value {
    tch::manual_seed(1);
    let features = made_up(rows, width);
    let before = forget_peak();
    let (whitening, fit) = timed(|| Whitening::fit(&features, 256, Device::Cpu));
    let (points, project) = timed(|| whitening.apply_all(&features));
    let options = Options { k, iterations, seed: 1, ..Options::default() };
    let (cold, cold_seconds) = timed(|| kmeans::cluster(&points, None, options));
    let warm = Options { tolerance: 1e-3, ..options };
    let (again, warm_seconds) = timed(|| kmeans::cluster(&points, Some(&cold.centroids), warm));
    json!({
        "whiten_s": fit,
        "project_s": project,
        "kmeans_s": cold_seconds,
        "kmeans_iterations": cold.iterations(),
        "warm_s": warm_seconds,
        "warm_iterations": again.iterations(),
        "mib": peak() - before,
    })
}

fn whiten(points: &str, width: i64, kept: usize) -> Value {
    let rows = read(points, width, Kind::Half);
    let before = forget_peak();
    let (whitening, seconds) = timed(|| Whitening::fit(&rows, kept, Device::Cpu));
    let mib = peak() - before;
    let (_, project) = timed(|| whitening.apply_all(&rows));
    // What the projected rows vary by along each direction, and along two of them together: 1 and 0.
    let centred = rows.to_kind(Kind::Double) - whitening.mean();
    let projected = centred.matmul(&whitening.projection().to_kind(Kind::Double).tr());
    let covariance = projected.tr().matmul(&projected) / rows.size()[0];
    let off = (covariance - Tensor::eye(whitening.output_dim(), (Kind::Double, Device::Cpu))).abs().max();
    json!({ "seconds": seconds, "project_s": project, "mib": mib, "off": off.double_value(&[]) })
}

fn bank(rows: usize, width: i64, folder: &str) -> Value {
    tch::manual_seed(1);
    let before = forget_peak();
    let mut bank = Bank::new(rows, width as usize).expect("a bank");
    let mut step = 0;
    let mut push = |bank: &mut Bank, first: u64, count: usize| {
        let features = Tensor::randn([count as i64, width], (Kind::Float, Device::Cpu));
        let ids: Vec<SampleId> = (first..first + count as u64).map(SampleId).collect();
        step += 1;
        let entries = Entries::of_one(ids, vec![None; count]);
        timed(|| bank.push(&entries, &features, step)).1
    };
    for first in (0..rows).step_by(4_096) {
        push(&mut bank, first as u64, 4_096.min(rows - first));
    }
    let mib = peak() - before;
    let usual: Vec<f64> = (0..20).map(|_| push(&mut bank, 0, 256)).collect();
    let (capture, stood) = timed(|| bank.capture());
    let path = std::path::Path::new(folder).join("bank.arrow");
    let writer = std::thread::spawn(move || timed(|| capture.write(&path)).1);
    let mut beside: Vec<f64> = Vec::new();
    while !writer.is_finished() {
        beside.push(push(&mut bank, (rows + 256 * beside.len()) as u64, 256));
        std::thread::sleep(std::time::Duration::from_millis(200)); // a step of the network
    }
    let written = writer.join().expect("a thread");
    let most = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    json!({
        "mib": mib,
        "push_s": most(&usual),
        "stood_s": stood,
        "written_s": written,
        "pushes_beside": beside.len(),
        "push_beside_s": most(&beside),
        "mib_beside": peak() - before - mib,
    })
}

#[allow(clippy::print_stdout)]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |at: usize| arguments[at].parse::<i64>().expect("a number");
    let Some(threads) = arguments.last().and_then(|last| last.parse().ok()) else {
        return; // `cargo test` starts every bench
    };
    tch::set_num_threads(threads);
    let found = match arguments[0].as_str() {
        "kmeans" => kmeans(&arguments[1], &arguments[2], number(3), number(4) as usize),
        "cycle" => cycle(number(1), number(2), number(3) as usize, number(4) as usize),
        "bank" => bank(number(1) as usize, number(2), &arguments[3]),
        "whiten" => whiten(&arguments[1], number(2), number(3) as usize),
        other => panic!("no part is called {other}"),
    };
    println!("{found}");
}
