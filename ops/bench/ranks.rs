//! What ranks pay for being several, timed: for `ranks.py`, which starts one of these for each rank. Rank 0 writes JSON to stdout.
//!
//! reduce BYTES... ROUNDS      seconds of an all-reduce of floats of so many bytes: the median of ROUNDS, for each size
//! small ROUNDS                the same for what every step costs: a vote, and an exchange of the ids of a batch
//! kmeans ROWS WIDTH K ITERATIONS   one k-means over rows that all ranks hold together, of which each has its share

use serde_json::json;
use shoal::bank::Entries;
use shoal::cluster::Points;
use shoal::cluster::kmeans::{self, Options};
use shoal::config::RanksPlan;
use shoal::ingest::SampleMeta;
use shoal::shards::SampleId;
use shoal::torch::c10d::Reduction;
use shoal::world::{Launch, World};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let numbers: Vec<usize> = arguments.iter().skip(1).map(|text| text.parse().expect("a number")).collect();
    let Some(what) = arguments.first() else { return };
    tch::set_num_threads(1);
    let launch = Launch::from_env(&|name| std::env::var(name).ok()).expect("an environment");
    let world = match launch {
        Some(launch) => World::join(&launch, &RanksPlan::default(), Device::Cpu, "bench", |error| panic!("{error}")),
        None => Ok(World::alone()),
    };
    let world = world.expect("ranks");
    let found = match what.as_str() {
        "reduce" => reduce(&world, &numbers),
        "small" => small(&world, numbers[0]),
        "kmeans" => clusters(&world, &numbers),
        other => panic!("no such measurement: {other}"),
    };
    if world.is_first() {
        #[allow(clippy::print_stdout)]
        {
            println!("{found}");
        }
    }
    world.part(Ok(()));
}

/// The median of the seconds that `work` takes, all ranks beginning together.
fn median(world: &World, rounds: usize, mut work: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..rounds + 2)
        .map(|_| {
            world.all(true).expect("a barrier");
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        })
        .skip(2) // the first pay for connections and buffers
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn reduce(world: &World, numbers: &[usize]) -> serde_json::Value {
    let (rounds, sizes) = numbers.split_last().expect("sizes and rounds");
    median(world, 200, || drop(world.largest(&[0_i64]).expect("a reduction"))); // the first seconds of a process are slow
    let times = sizes.iter().map(|&bytes| {
        let values = Tensor::ones([bytes as i64 / 4], (Kind::Float, Device::Cpu));
        json!([bytes, median(world, *rounds, || world.reduce(&values, Reduction::Max).expect("a reduction"))])
    });
    json!(times.collect::<Vec<_>>())
}

fn small(world: &World, rounds: usize) -> serde_json::Value {
    let vote = median(world, rounds, || drop(world.largest(&[0_i64; 8]).expect("a vote")));
    let sample = |id: u64| SampleMeta {
        id: SampleId(id),
        key: String::new(),
        shard: "".into(),
        offset: 0,
        pass: 0,
        class: None,
    };
    let batch: Vec<SampleMeta> = (0..256 / world.size() as u64).map(sample).collect();
    let ids = median(world, rounds, || drop(Entries::gather(world, &batch, None, batch.len()).expect("entries")));
    json!({ "vote": vote, "ids": ids })
}

fn clusters(world: &World, numbers: &[usize]) -> serde_json::Value {
    let [rows, width, k, iterations] = numbers[..] else { panic!("ROWS WIDTH K ITERATIONS") };
    tch::manual_seed(1 + world.rank() as i64);
    let own = (rows - world.rank()).div_ceil(world.size()) as i64;
    let points =
        shoal::torch::unit_rows(&Tensor::randn([own, width as i64], (Kind::Float, Device::Cpu))).expect("rows");
    let points = Points::shared(&points, world, rows as i64).expect("points");
    let options = Options { k, iterations, ..Options::default() };
    let started = Instant::now();
    let found = kmeans::over(&points, None, options, &mut |_| {}).expect("clusters");
    json!({ "seconds": started.elapsed().as_secs_f64(), "objective": found.objective() })
}
