//! The pictures of a run, by the program.

use crate::commands::{finished_run, ok, output, text};
use image::RgbImage;
use std::collections::HashSet;
use std::path::Path;

fn picture(path: &Path) -> RgbImage {
    image::open(path).expect("a PNG").to_rgb8()
}

fn colours(picture: &RgbImage) -> usize {
    picture.pixels().collect::<HashSet<_>>().len()
}

#[test]
fn filters_of_colours_and_of_gradients_stand_side_by_side() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("filters.png");
    let said = ok(&[
        "show",
        "filters",
        "--snapshot",
        text(finished_run()),
        "--snapshot",
        "random:alexnet:sobel:64",
        "--out",
        text(&out),
    ]);
    // 96 of AlexNet, 32 of `small`
    assert!(said.starts_with("128 filters"), "{said}");
    assert!(colours(&picture(&out)) > 200);
    let (code, _, err) = output(&["show", "filters", "--snapshot", "random:small", "--out", "/nowhere/filters.png"]);
    assert!(code == 3 && err.contains("/nowhere/filters.png") && err.contains("folder that exists"), "{err}");
}

#[test]
fn what_filters_look_for_stands_before_what_they_answer_most() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (ideal, both, top) =
        (folder.path().join("ideal.png"), folder.path().join("both.png"), folder.path().join("top.png"));
    let run = text(finished_run());
    let shards = ["--shards", "shards/photos-000000.tar"];
    let common = ["--snapshot", run, "--layer", "conv2", "--filters", "3,0"];
    let climb = [&["show", "activations"][..], &common, &["--steps", "4"]].concat();
    let said = ok(&[&climb[..], &["--out", text(&ideal)]].concat());
    assert!(said.starts_with("2 filters ->"), "{said}");
    ok(&[&climb[..], &shards, &["--images", "4", "--side", "64", "--out", text(&both)]].concat());
    let said =
        ok(&[&["show", "top"][..], &common, &shards, &["--images", "4", "--side", "64", "--out", text(&top)]].concat());
    assert!(said.starts_with("2 filters, 225 images"), "{said}");
    // the same photographs, one place further to the right
    let (both, top) = (picture(&both), picture(&top));
    assert_eq!(both.width(), top.width() + 70);
    let cut = |from: &RgbImage, left: u32| {
        image::imageops::crop_imm(from, left, 130, 4 * 70 - 6, from.height() - 170).to_image()
    };
    let photographs = |from: &RgbImage| cut(from, from.width() - 40 - (4 * 70 - 6));
    assert!(photographs(&both) == photographs(&top), "the same photographs");
    assert!(colours(&photographs(&top)) > 500);
}

#[test]
fn a_filter_or_a_layer_that_is_not_there_is_named_with_those_that_are() {
    let out = ["--out", "/tmp/none.png", "--shards", "shards/photos-000000.tar"];
    let network = ["show", "top", "--snapshot", "random:small"];
    let (code, _, err) = output(&[&network[..], &["--layer", "conv2", "--filters", "9999"], &out].concat());
    assert!(code == 2 && err.contains("conv2 has no filter 9999") && err.contains("numbered from 0"), "{err}");
    let (code, _, err) = output(&[&network[..], &["--layer", "conv9"], &out].concat());
    assert!(code == 2 && err.contains("conv9") && err.contains("conv1"), "{err}");
}

#[test]
fn curves_of_one_run_and_of_two() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (svg, png) = (folder.path().join("curves.svg"), folder.path().join("curves.png"));
    let run = text(finished_run());
    ok(&["show", "curves", run, "--out", text(&svg)]);
    let drawn = std::fs::read_to_string(&svg).expect("an SVG");
    for title in ["Loss", "Agreement with the cycle before", "Sizes of clusters", "Waiting for data", "Throughput"] {
        assert!(drawn.contains(title), "{title}");
    }
    ok(&["show", "curves", run, run, "--only", "loss,rate", "--out", text(&png)]);
    assert_eq!(picture(&png).dimensions(), (2 * 760, 400));
    let (code, _, err) = output(&["show", "curves", run, "--only", "gloss", "--out", text(&svg)]);
    assert!(code == 2 && err.contains("gloss") && err.contains("loss, "), "{err}");
    let (code, _, err) = output(&["show", "curves", text(folder.path()), "--out", text(&svg)]);
    assert!(code == 3 && err.contains("no records"), "{err}");
}

#[test]
fn images_are_a_map_with_photographs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = text(finished_run());
    for method in ["pca", "tsne"] {
        let out = folder.path().join(format!("{method}.png"));
        let map = ["show", "map", "--snapshot", run, "--method", method, "--points", "90", "--side", "40"];
        let said = ok(&[&map[..], &["--width", "600", "--out", text(&out)]].concat());
        assert!(said.starts_with("90 points, "), "{said}");
        assert!(colours(&picture(&out)) > 500, "photographs have many colours");
    }
    let out = folder.path().join("classes.png");
    let fashion = ["--shards", "shards/fashion-test.tar.zst", "--images", "200", "--out", text(&out)];
    let said = ok(&[&["show", "map", "--snapshot", "random:small:rgb:28"][..], &fashion].concat());
    assert!(said.starts_with("256 points") || said.starts_with("200 points"), "two batches of 128: {said}");
}

#[test]
fn sheets_show_the_farthest_too_and_need_classes_to_sort_by_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = text(finished_run());
    let sheet = |order: &str| {
        let out = folder.path().join(format!("{order}.png"));
        let rest = ["--rows", "2", "--columns", "3", "--side", "48", "--order", order, "--out", text(&out)];
        ok(&[&["show", "sheet", "--run", run][..], &rest].concat());
        picture(&out)
    };
    assert!(sheet("nearest") != sheet("farthest"));
    let (code, _, err) = output(&["show", "sheet", "--run", run, "--sort", "purity", "--out", "/tmp/none.png"]);
    assert!(code == 3 && err.contains("purity") && err.contains(".cls"), "{err}");
}
