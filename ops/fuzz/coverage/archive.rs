//! Any bytes as a shard: tar, zip, gzip or zstd, whole or not.
#![no_main]

// each target uses a part of what both share
#[path = "../judge.rs"]
#[allow(dead_code)]
mod judge;
#[path = "../../../tests/strict.rs"]
#[allow(dead_code)]
mod strict;

use judge::Judge;
use libfuzzer_sys::fuzz_target;
use std::cell::OnceCell;
use std::path::PathBuf;

thread_local! {
    static JUDGE: OnceCell<(PathBuf, Judge)> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    JUDGE.with(|judge| {
        let (file, judge) = judge.get_or_init(|| {
            let file = std::env::temp_dir().join(format!("shoal-fuzz-{}", std::process::id()));
            let judge = Judge::new(&file).expect("a temporary folder");
            (file, judge)
        });
        std::fs::write(file, bytes).expect("room for the input");
        assert_eq!(judge.read(bytes), None);
    });
});
