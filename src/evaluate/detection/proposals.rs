//! Object proposals: the boxes among which a detector looks for objects.
//!
//! In: files of boxes by image. Out: boxes on each photograph, none twice, none smaller than two pixels, all within it. Known
//! forms: the selective search that was published with Fast R-CNN (`voc_2007_trainval.mat`: cells `images` and `boxes`, the
//! latter counted from 1 as y1, x1, y2, x2), JSON lines, and text with one box a line; the last two count as the annotations
//! of VOC do, from 1, as xmin, ymin, xmax, ymax, the last pixel included. A file that makes no sense is named, with its image.

use super::matlab::{self, Value};
use crate::error::{Error, Result};
use crate::evaluate::voc::devkit::Bounds;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Shortest side of a box that is kept, in pixels.
const SMALLEST: f32 = 2.0;

/// Boxes by the names of images.
pub type Proposals = HashMap<String, Vec<Bounds>>;

/// One line of a file of JSON lines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    image: String,
    boxes: Vec<[f64; 4]>,
}

/// Reads a file, or of a folder the one of a split: `voc_2007_SPLIT.mat`, `.jsonl` or `.txt`.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn read(path: &Path, split: &str) -> Result<Proposals> {
    let file = if path.is_dir() { find(path, split)? } else { path.to_path_buf() };
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("mat") => from_matlab(&file),
        Some("jsonl" | "json") => from_lines(&file, json_line),
        Some("txt") => from_lines(&file, text_line),
        _ => Err(Error::usage(format!("{} is no file of proposals", file.display()))
            .with_hint("its name ends in .mat (selective search), .jsonl or .txt")),
    }
}

fn find(folder: &Path, split: &str) -> Result<PathBuf> {
    let names = ["mat", "jsonl", "txt"].map(|extension| format!("voc_2007_{split}.{extension}"));
    let mut paths = names.iter().flat_map(|name| [folder.join(name), folder.join("selective_search_data").join(name)]);
    paths.find(|path| path.is_file()).ok_or_else(|| {
        Error::data(format!("{} has no proposals for {split}: none of {}", folder.display(), names.join(", ")))
            .with_hint("without --proposals shoal takes windows of its own")
    })
}

/// What is left of the boxes of a photograph of `width` by `height` pixels: the part within it, once each.
pub fn tidy(boxes: &[Bounds], size: (u32, u32)) -> Vec<Bounds> {
    let mut seen = HashSet::with_capacity(boxes.len());
    let mut tidied = Vec::with_capacity(boxes.len());
    for &bounds in boxes {
        let Bounds { left, top, right, bottom } = super::boxes::clip(bounds, size);
        let is_large = right - left >= SMALLEST && bottom - top >= SMALLEST;
        if is_large && seen.insert([left, top, right, bottom].map(f32::to_bits)) {
            tidied.push(Bounds { left, top, right, bottom });
        }
    }
    tidied
}

/// From the first to the last pixel, counted from 1, both included.
fn bounds([x1, y1, x2, y2]: [f64; 4]) -> Result<Bounds, String> {
    if !(x1 <= x2 && y1 <= y2 && (x2 - x1).is_finite() && (y2 - y1).is_finite()) {
        return Err(format!("a box from ({x1}, {y1}) to ({x2}, {y2}) is none"));
    }
    Ok(Bounds { left: (x1 - 1.0) as f32, top: (y1 - 1.0) as f32, right: x2 as f32, bottom: y2 as f32 })
}

fn from_matlab(path: &Path) -> Result<Proposals> {
    let mut variables = matlab::read(path)?;
    let mut cells = |name: &str| match variables.remove(name) {
        Some(Value::Cells(cells)) => Ok(cells),
        Some(_) => Err(Error::data(format!("{}: `{name}` holds no cells", path.display()))),
        None => Err(Error::data(format!("{} lacks the cells `{name}`", path.display()))
            .with_hint("a file of selective search has `boxes` and `images`, one cell each for every image")),
    };
    let (boxes, images) = (cells("boxes")?, cells("images")?);
    if boxes.len() != images.len() {
        let what = format!("{}: {} cells of boxes for {} images", path.display(), boxes.len(), images.len());
        return Err(Error::data(what));
    }
    let mut proposals = Proposals::with_capacity(images.len());
    for (at, (image, boxes)) in images.into_iter().zip(boxes).enumerate() {
        let Value::Text(name) = image else {
            return Err(Error::data(format!("{}: cell {} of `images` holds no name", path.display(), at + 1)));
        };
        let boxes = rows(&boxes).and_then(|rows| rows.into_iter().map(bounds).collect());
        let boxes: Vec<Bounds> =
            boxes.map_err(|why: String| Error::data(format!("{}: image {name}: {why}", path.display())))?;
        proposals.insert(plain(&name), boxes);
    }
    Ok(proposals)
}

/// Rows of (y1, x1, y2, x2), turned to (x1, y1, x2, y2).
fn rows(boxes: &Value) -> Result<Vec<[f64; 4]>, String> {
    let Value::Numbers { shape, values } = boxes else { return Err("its boxes are no numbers".into()) };
    match shape.as_slice() {
        _ if values.is_empty() => Ok(Vec::new()),
        &[count, 4] => {
            let at = |row: usize, column: usize| values[column * count + row];
            Ok((0..count).map(|row| [at(row, 1), at(row, 0), at(row, 3), at(row, 2)]).collect())
        }
        shape => Err(format!("its boxes have the shape {shape:?}, not N x 4")),
    }
}

fn from_lines(path: &Path, parse: fn(&str) -> Result<Line, String>) -> Result<Proposals> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file("read", path, &error))?;
    let mut proposals = Proposals::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let read = parse(line).and_then(|line| {
            let boxes = line.boxes.into_iter().map(bounds).collect::<Result<Vec<_>, _>>()?;
            proposals.entry(plain(&line.image)).or_default().extend(boxes);
            Ok(())
        });
        read.map_err(|why| Error::data(format!("{}, line {}: {why}", path.display(), at + 1)))?;
    }
    Ok(proposals)
}

fn json_line(line: &str) -> Result<Line, String> {
    serde_json::from_str(line).map_err(|error| error.to_string())
}

/// Name and four numbers; what follows them, a score for instance, is left aside.
fn text_line(line: &str) -> Result<Line, String> {
    let mut words = line.split_whitespace();
    let image = words.next().unwrap_or_default().to_owned();
    let mut sides = [0.0; 4];
    for side in &mut sides {
        let word = words.next().ok_or("a name and four numbers are expected")?;
        *side = word.parse().map_err(|_| format!("{word:?} is no number"))?;
    }
    Ok(Line { image, boxes: vec![sides] })
}

/// The name of an image without its ending.
fn plain(name: &str) -> String {
    name.trim().trim_end_matches(".jpg").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        (folder, path)
    }

    #[test]
    fn text_and_json_lines_say_the_same() -> Result<()> {
        let lines = "{\"image\": \"000005\", \"boxes\": [[1, 2, 10, 20], [3, 3, 3, 4.5]]}\n\n{\"image\": \"7\", \"boxes\": []}\n";
        let (folder, path) = file("voc_2007_val.jsonl", lines);
        let found = read(&path, "val")?;
        let first = Bounds { left: 0.0, top: 1.0, right: 10.0, bottom: 20.0 };
        let second = Bounds { left: 2.0, top: 2.0, right: 3.0, bottom: 4.5 };
        assert_eq!((found["000005"].as_slice(), found["7"].len()), (&[first, second][..], 0));
        assert_eq!(read(folder.path(), "val")?, found, "a folder stands for the file of the split");
        let (_folder, path) = file("boxes.txt", "000005.jpg 1 2 10 20 0.9\n000005 3 3 3 4.5\n");
        assert_eq!(read(&path, "val")?["000005"], found["000005"]);
        Ok(())
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_line() {
        for (name, text, words) in [
            ("a.jsonl", "{\"image\": \"5\", \"boxes\": [[1, 2, 3]]}", "line 1"),
            ("a.jsonl", "{\"image\": \"5\", \"box\": []}", "`box`"),
            ("a.txt", "5 1 2 3 4\n5 1 2 3\n", "line 2"),
            ("a.txt", "5 1 2 3 x\n", "\"x\" is no number"),
            ("a.txt", "5 9 2 3 4\n", "(9, 2) to (3, 4)"),
            ("a.txt", "5 1 2 NaN 4\n", "is none"),
            ("a.csv", "", "a.csv is no file of proposals"),
        ] {
            let (_folder, path) = file(name, text);
            let error = read(&path, "test").expect_err(words).to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
        let (folder, _) = file("voc_2007_val.jsonl", "");
        let error = read(folder.path(), "test").expect_err("no file").to_string();
        assert!(error.contains("voc_2007_test.mat"), "{error}");
    }

    #[test]
    fn boxes_are_cut_to_the_photograph_and_kept_once() {
        let bounds = |left: f32, top: f32, right: f32, bottom: f32| Bounds { left, top, right, bottom };
        let boxes = [
            bounds(-5.0, 2.0, 10.0, 90.0),
            bounds(0.0, 2.0, 10.0, 60.0),
            bounds(4.0, 4.0, 5.0, 50.0),
            bounds(200.0, 2.0, 300.0, 60.0),
        ];
        assert_eq!(tidy(&boxes, (100, 60)), [bounds(0.0, 2.0, 10.0, 60.0)]);
    }
}
