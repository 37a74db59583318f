//! Any bytes as an image file.
#![no_main]

// each target uses a part of what both share
#[path = "../judge.rs"]
#[allow(dead_code)]
mod judge;
#[path = "../../../tests/strict.rs"]
#[allow(dead_code)]
mod strict;

use judge::{Judge, Outcome};
use libfuzzer_sys::fuzz_target;
use std::cell::OnceCell;

thread_local! {
    static JUDGE: OnceCell<Judge> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    JUDGE.with(|judge| {
        let judge = judge.get_or_init(|| {
            let file = std::env::temp_dir().join(format!("shoal-fuzz-{}", std::process::id()));
            Judge::new(&file).expect("a temporary folder")
        });
        if let Outcome::Wrong(what) = judge.decode(bytes) {
            panic!("{what}");
        }
    });
});
