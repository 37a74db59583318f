//! What a run learnt of its samples is used: by its later passes, by whoever wants single samples, and to say how far a pass is.

use crate::run::{pretrain, records, root, shoal, small_pipeline, steps};
use crate::server::{Answer, Server};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// Two shards of photographs, with an image in each that cannot be decoded.
fn write_shards(folder: &Path) -> String {
    let file = std::fs::File::open(root().join("shards/photos-000000.tar")).unwrap();
    let mut photos = Vec::new();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if bytes.starts_with(b"\xff\xd8\xff") && photos.len() < 50 {
            photos.push(bytes);
        }
    }
    for (shard, photos) in photos.chunks_mut(25).enumerate() {
        // its header is whole: a table of codes that cannot be is met by the decoders alone
        let table = photos[11].windows(2).position(|pair| pair == [0xff, 0xc4]).unwrap();
        photos[11][table + 5..table + 21].fill(0xff);
        let mut builder = tar::Builder::new(Vec::new());
        for (i, photo) in photos.iter().enumerate() {
            let mut header = tar::Header::new_gnu();
            header.set_size(photo.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("{shard}-{i:02}.jpg"), photo.as_slice()).unwrap();
        }
        std::fs::write(folder.join(format!("{shard}.tar")), builder.into_inner().unwrap()).unwrap();
    }
    format!("stream.shards=[\"{}/{{0..1}}.tar\"]", folder.display())
}

/// A short run with these settings besides.
fn run_small(folder: &Path, run: &Path, settings: &[&str]) {
    let all = ["bank.capacity=32", "cluster.every_steps=100", "train.batch_size=8", "train.steps=24"];
    pretrain(&small_pipeline(folder), run, &[&all[..], settings].concat());
}

#[test]
fn an_image_that_cannot_be_decoded_is_not_tried_again_and_nothing_moves_for_that() {
    let folder = tempfile::tempdir().unwrap();
    let shards = write_shards(folder.path());
    let (with, without) = (folder.path().join("with"), folder.path().join("without"));
    run_small(folder.path(), &with, &[&shards]);
    run_small(folder.path(), &without, &[&shards, "stream.index=off"]);
    assert_eq!(steps(&with), steps(&without), "the same losses and ids to the last bit");

    let losses = |run: &Path| -> Vec<Value> {
        let text = std::fs::read_to_string(run.join("ledger.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &Value| line["reason"] == "decode_failed").collect()
    };
    let told =
        |run: &Path| losses(run).iter().map(|line| (line["pass"].as_u64(), line["key"].clone())).collect::<Vec<_>>();
    assert_eq!(told(&with), told(&without), "each is told in each pass");
    // the readers of the second pass may be ahead of the decoders of the first
    let of = |passes: std::ops::Range<u64>| -> Vec<Value> {
        let lines = losses(&with).into_iter();
        lines.filter(|line| passes.contains(&line["pass"].as_u64().unwrap())).collect()
    };
    let (first, later) = (of(0..1), of(2..99));
    assert!(first.len() == 2 && later.len() >= 3, "{} and {}", first.len(), later.len());
    assert!(first.iter().all(|line| line["detail"] != "as when it was read before"));
    assert!(later.iter().all(|line| line["detail"] == "as when it was read before"), "{later:?}");

    // the first pass is of unknown length; in later ones the stream is at times a pass ahead of the trainer
    let shares: Vec<Option<f64>> = records(&with, "step").iter().map(|step| step["pass_share"].as_f64()).collect();
    let known: Vec<f64> = shares.iter().copied().flatten().collect();
    assert!(shares[0].is_none() && !known.is_empty(), "{shares:?}");
    assert!(known.iter().all(|share| (0.0..=1.0).contains(share)));
    assert!(records(&without, "step").iter().all(|step| step["pass_share"].is_null()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_of_clusters_are_drawn_from_what_they_show_alone() {
    let shard = |i: usize| std::fs::read(root().join(format!("shards/photos-{i:06}.tar"))).unwrap();
    let paths: Vec<String> = (0..8).map(|i| format!("/{i}.tar")).collect();
    let answers = paths.iter().enumerate().map(|(i, path)| (path.as_str(), vec![Answer::Whole(shard(i))]));
    let server = Server::start(answers).await;
    let length: usize = (0..8).map(|i| shard(i).len()).sum();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let sheet = |out: &str| {
        let out = folder.path().join(out);
        let mut command = shoal();
        command.args(["show", "sheet", "--rows", "1", "--columns", "2", "--side", "64"]);
        command.arg("--run").arg(&run).arg("--out").arg(&out).assert().success();
        std::fs::read(out).unwrap()
    };
    let list = format!("stream.shards=[\"http://{}/{{0..7}}.tar\"]", server.address);
    tokio::task::block_in_place(|| {
        run_small(folder.path(), &run, &[&list, "train.steps=8", "train.batch_size=300", "bank.capacity=300"]);
        let before = server.bytes_sent();
        let by_index = sheet("by-index.png");
        let sent = server.bytes_sent() - before;
        assert!(sent < length / 3, "{sent} of {length} bytes for two photographs");
        std::fs::remove_dir_all(run.join("index")).unwrap();
        assert!(by_index == sheet("by-list.png"), "the same picture");
    });
}
