//! What a trained detector finds on photographs.
//!
//! In: scenes. Out: for each one its detections, from the highest score on: regions are judged, moved by the correction of each
//! class, cut to the photograph, and of those with a score above 0.05 each class keeps what suppression at an overlap of 0.3 leaves,
//! all classes together the best hundred. Difficult objects and all else that is annotated are not looked at.
//!
//! Detections go to a file of JSON lines as they come, where one is given: a line that names what they are of, then one a photograph.
//! Going on with such a file skips what is in it; a last line that was cut short is left aside.

use super::detector::Detector;
use super::scene::{Scene, Sides, View};
use super::{Stage, Watch, boxes};
use crate::error::{Error, Result};
use crate::evaluate::ahead::ahead;
use crate::evaluate::precision::ranked;
use crate::evaluate::voc::devkit::{Bounds, CLASSES, Devkit};
use crate::model::state::Metadata;
use crate::model::{Mode, Normalizer};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use tch::{Kind, Tensor};

/// A detection needs a higher score than this.
const LEAST_SCORE: f32 = 0.05;
/// Overlap with a better detection of its class up to which one is kept.
const MOST_OVERLAP: f32 = 0.3;
/// Detections of a photograph.
const MOST: usize = 100;
/// Regions judged at once: bounds memory.
const BLOCK: usize = 500;

/// A detection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Place in [`CLASSES`].
    pub class: usize,
    /// Probability of the class, in `[0, 1]`.
    pub score: f32,
    /// Where it is.
    pub bounds: Bounds,
}

/// A photograph's line in a file of detections.
#[derive(Serialize, Deserialize)]
struct Line {
    image: String,
    found: Vec<Entry>,
}

/// A detection in a file, counted as the annotations are: from 1, the last pixel included.
#[derive(Serialize, Deserialize)]
struct Entry {
    class: String,
    score: f32,
    /// xmin, ymin, xmax, ymax
    #[serde(rename = "box")]
    sides: [f32; 4],
}

/// A file that detections go to.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// What its detections are of.
    pub origin: &'a Metadata,
    /// Whether those that are in it are taken over; else it is begun anew.
    pub goes_on: bool,
}

/// How detections are made.
#[derive(Debug)]
pub struct Finder<'a> {
    /// The trained network.
    pub detector: &'a Detector<'a>,
    /// What turns pixels into its input.
    pub normalizer: &'a Normalizer,
    /// Where photographs are.
    pub kit: &'a Devkit,
    /// How large it sees them.
    pub sides: Sides,
}

impl Finder<'_> {
    /// Detections of each scene, which also go to `output` if there is one.
    ///
    /// # Errors
    /// A photograph cannot be read, the file holds detections of something else, or [`Error::Interrupted`].
    pub fn run(&self, scenes: &[Scene], output: Option<Output<'_>>, watch: &mut dyn Watch) -> Result<Vec<Vec<Found>>> {
        let _no_grad = tch::no_grad_guard();
        let mut done = match output {
            Some(Output { path, origin, goes_on: true }) => read(path, origin)?,
            _ => HashMap::new(),
        };
        let file = output.map(|Output { path, origin, .. }| Lines::create(path, origin, scenes, &done));
        let mut file = file.transpose()?;
        let left: Vec<&Scene> = scenes.iter().filter(|scene| !done.contains_key(&scene.name)).collect();
        let (kit, sides) = (self.kit, self.sides);
        let make = move |scene| Ok((scene, Scene::view(scene, kit, sides, false)?));
        ahead(left.into_iter(), make, |(scene, view)| {
            if watch.is_stopped() {
                let snapshot = file.as_ref().map(|file| file.path.to_path_buf());
                return Err(Error::Interrupted { snapshot });
            }
            let found = self.detect(scene, &view)?;
            if let Some(file) = &mut file {
                file.add(scene, &found)?;
            }
            done.insert(scene.name.clone(), found);
            watch.told(Stage::Testing, (done.len(), scenes.len()), None);
            Ok(true)
        })?;
        Ok(scenes.iter().map(|scene| done.remove(&scene.name).unwrap_or_default()).collect())
    }

    /// Detections on one photograph.
    fn detect(&self, scene: &Scene, view: &View) -> Result<Vec<Found>> {
        let device = self.detector.backbone().device();
        let image = self.normalizer.prepare(&view.pixels.f_to_device(device)?)?;
        let map = self.detector.map(&image, Mode::Eval)?;
        let mut candidates: Vec<Vec<Found>> = vec![Vec::new(); CLASSES.len()];
        for regions in scene.proposals.chunks(BLOCK) {
            let on_view: Vec<_> = regions.iter().map(|&bounds| scene.region(bounds, view)).collect();
            let (logits, corrections) = self.detector.judge(&self.detector.pool(&map, &on_view)?, Mode::Eval)?;
            let (scores, corrections) = (values(&logits.f_softmax(-1, Kind::Float)?)?, values(&corrections)?);
            let (corrections, _) = corrections.as_chunks::<4>();
            for (row, &region) in regions.iter().enumerate() {
                for (class, candidates) in candidates.iter_mut().enumerate() {
                    let at = row * (CLASSES.len() + 1) + class + 1;
                    if scores[at] > LEAST_SCORE {
                        let bounds = boxes::clip(boxes::decode(region, corrections[at]), scene.size);
                        candidates.push(Found { class, score: scores[at], bounds });
                    }
                }
            }
        }
        Ok(best(candidates))
    }
}

/// What suppression leaves of each class, and the best of all classes together.
fn best(candidates: Vec<Vec<Found>>) -> Vec<Found> {
    let mut kept: Vec<Found> = Vec::new();
    for class in candidates {
        let (bounds, scores): (Vec<Bounds>, Vec<f32>) = class.iter().map(|found| (found.bounds, found.score)).unzip();
        kept.extend(boxes::suppress(&bounds, &scores, MOST_OVERLAP).into_iter().map(|at| class[at]));
    }
    let scores: Vec<f32> = kept.iter().map(|found| found.score).collect();
    ranked(&scores).into_iter().take(MOST).map(|at| kept[at]).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    Ok(Vec::try_from(&flat)?)
}

/// A file of detections that grows.
struct Lines {
    path: std::path::PathBuf,
    file: File,
}

impl Lines {
    /// Begins the file anew with what is done.
    fn create(path: &Path, origin: &Metadata, scenes: &[Scene], done: &HashMap<String, Vec<Found>>) -> Result<Self> {
        let failed = |error: std::io::Error| Error::file("write", path, &error);
        let aside = path.with_extension("partial");
        let mut lines = Self { path: path.to_path_buf(), file: File::create(&aside).map_err(failed)? };
        lines.write(origin)?;
        for scene in scenes {
            if let Some(found) = done.get(&scene.name) {
                lines.add(scene, found)?;
            }
        }
        std::fs::rename(&aside, path).map_err(failed)?;
        Ok(lines)
    }

    fn add(&mut self, scene: &Scene, found: &[Found]) -> Result<()> {
        let entry = |found: &Found| Entry {
            class: CLASSES[found.class].to_owned(),
            score: found.score,
            sides: [found.bounds.left + 1.0, found.bounds.top + 1.0, found.bounds.right, found.bounds.bottom],
        };
        self.write(&Line { image: scene.name.clone(), found: found.iter().map(entry).collect() })
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line)
            .map_err(|error| Error::data(format!("cannot write {}: {error}", self.path.display())))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|error| Error::file("write", &self.path, &error))
    }
}

/// Detections that are there already; none if there is no file.
fn read(path: &Path, origin: &Metadata) -> Result<HashMap<String, Vec<Found>>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(Error::file("read", path, &error)),
    };
    let mut lines = text.lines();
    let is_same =
        lines.next().and_then(|line| serde_json::from_str::<Metadata>(line).ok()).is_some_and(|of| of == *origin);
    if !is_same {
        return Err(Error::usage(format!("{} holds detections of something else", path.display()))
            .with_hint("give another name, or remove it"));
    }
    let mut done = HashMap::new();
    for line in lines.map_while(|line| serde_json::from_str::<Line>(line).ok()) {
        let found = line.found.iter().map(parse).collect::<Option<Vec<_>>>();
        let found =
            found.ok_or_else(|| Error::data(format!("{}: an unknown class for {}", path.display(), line.image)))?;
        done.insert(line.image, found);
    }
    Ok(done)
}

fn parse(entry: &Entry) -> Option<Found> {
    let class = CLASSES.iter().position(|class| *class == entry.class)?;
    let [left, top, right, bottom] = entry.sides;
    Some(Found { class, score: entry.score, bounds: Bounds { left: left - 1.0, top: top - 1.0, right, bottom } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(class: usize, left: f32, score: f32) -> Found {
        Found { class, score, bounds: Bounds { left, top: 2.0, right: left + 10.0, bottom: 12.0 } }
    }

    #[test]
    fn classes_do_not_suppress_each_other_and_a_hundred_stay() {
        let dogs = vec![found(11, 0.0, 0.5), found(11, 1.0, 0.9), found(11, 50.0, 0.1)];
        let cats = vec![found(7, 0.0, 0.6)];
        assert_eq!(best(vec![dogs.clone(), cats.clone()]), [dogs[1], cats[0], dogs[2]]);
        let many: Vec<Found> = (0..150).map(|at| found(3, 20.0 * at as f32, at as f32 / 150.0)).collect();
        let kept = best(vec![many]);
        assert_eq!((kept.len(), kept[0].score, kept[99].score), (100, 149.0 / 150.0, 50.0 / 150.0));
    }

    #[test]
    fn a_file_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("found.jsonl");
        let origin = Metadata::from([("seed".to_owned(), "1".to_owned())]);
        let scene = |name: &str| Scene { name: name.into(), size: (90, 90), objects: vec![], proposals: vec![] };
        let scenes = [scene("a"), scene("b")];
        let mut file = Lines::create(&path, &origin, &scenes, &HashMap::new()).expect("a file");
        file.add(&scenes[0], &[found(7, 3.5, 0.25)]).expect("a line");
        file.add(&scenes[1], &[]).expect("a line");
        let done = read(&path, &origin).expect("its own");
        assert_eq!((&done["a"], done["b"].len()), (&vec![found(7, 3.5, 0.25)], 0));

        let text = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, &text[..text.len() - 5]).expect("a cut");
        let cut = read(&path, &origin).expect("its own");
        assert_eq!(cut.keys().collect::<Vec<_>>(), ["a"]);
        Lines::create(&path, &origin, &scenes, &cut).expect("a file").add(&scenes[1], &[]).expect("a line");
        assert_eq!(std::fs::read_to_string(&path).expect("text"), text);

        let other = Metadata::from([("seed".to_owned(), "2".to_owned())]);
        let error = read(&path, &other).expect_err("of another run");
        assert!(error.to_string().contains("found.jsonl"), "{error}");
        assert!(read(&folder.path().join("none.jsonl"), &other).expect("none").is_empty());
    }
}
