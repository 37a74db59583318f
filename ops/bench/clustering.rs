//! One k-means of shoal on raw files of f32, for `clustering.py`: times and objectives as JSON on stdout.
//!
//! Arguments: points file, centroids file, dimensions, iterations, threads.

use shoal::cluster::kmeans::{self, Options};
use shoal::config::Empties;
use std::time::Instant;
use tch::{Kind, Tensor};

fn read(path: &str, width: i64) -> Tensor {
    let bytes = std::fs::read(path).expect("a file of f32");
    Tensor::from_data_size(&bytes, &[bytes.len() as i64 / 4 / width, width], Kind::Float)
}

#[allow(clippy::print_stdout)]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [points, centroids, width, iterations, threads] = arguments.as_slice() else {
        return; // `cargo test` starts every bench
    };
    let number = |text: &str| text.parse::<i64>().expect("a number");
    tch::set_num_threads(number(threads) as i32);
    let (points, start) = (read(points, number(width)), read(centroids, number(width)));
    let options = Options {
        k: start.size()[0] as usize,
        iterations: number(iterations) as usize,
        seed: 1,
        empties: Empties::Faiss,
        ..Options::default()
    };
    let started = Instant::now();
    let found = kmeans::cluster(&points, Some(&start), options).expect("a partition");
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds,
            "objectives": found.objectives,
            "objective": found.objective(),
            "iterations": found.iterations(),
        })
    );
}
