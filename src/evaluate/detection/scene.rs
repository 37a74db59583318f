//! Photographs with their objects and proposals, and how they become the input of a detector.
//!
//! In: a VOC folder, a split, and where proposals come from. Out: a [`Scene`] for each photograph, and of it a [`View`]: pixels
//! at the size that the detector takes. A photograph without proposals, or of another size than its annotation says, is an error
//! that names it.

use super::pooling::Region;
use super::proposals::{self, Proposals};
use super::{Stage, Watch, boxes, windows};
use crate::decode::Photograph;
use crate::error::{Error, Result};
use crate::evaluate::voc::devkit::{Bounds, Devkit, Object, Task};
use rayon::prelude::*;
use std::path::PathBuf;
use tch::Tensor;
use xxhash_rust::xxh3::Xxh3;

/// Photographs whose windows are proposed between two looks at whether to stop.
const BLOCK: usize = 32;

/// Where proposals come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files or folders, see [`proposals::read`].
    Files(Vec<PathBuf>),
    /// shoal's own, at most so many a photograph, see [`windows::propose`].
    Windows(usize),
}

/// A photograph, what is on it, and where to look.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Name of the image.
    pub name: String,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// As annotated, difficult ones too.
    pub objects: Vec<Object>,
    /// On the photograph, none twice.
    pub proposals: Vec<Bounds>,
}

/// What a split holds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Photographs.
    pub images: usize,
    /// Objects that are not difficult.
    pub objects: usize,
    /// Objects that are.
    pub difficult: usize,
    /// Mean number of a photograph.
    pub proposals: f64,
    /// Share of the objects, without difficult ones, that a proposal overlaps by half or more.
    pub recall: f64,
}

/// Sides of a photograph as the detector sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sides {
    /// What the shorter side becomes, in pixels,
    pub shorter: u32,
    /// unless the longer one would become more than this.
    pub longest: u32,
}

impl Sides {
    /// Pixels that the detector sees for one of the photograph.
    pub fn scale(self, (width, height): (u32, u32)) -> f32 {
        let (short, long) = (width.min(height).max(1) as f32, width.max(height).max(1) as f32);
        let scale = self.shorter as f32 / short;
        if (scale * long).round() > self.longest as f32 { self.longest as f32 / long } else { scale }
    }
}

/// What a detector sees of a photograph.
#[derive(Debug)]
pub struct View {
    /// `[1, height, width, 3]` uint8.
    pub pixels: Tensor,
    /// Pixels of it for one of the photograph.
    pub scale: f32,
    /// Whether left and right are exchanged.
    pub is_mirrored: bool,
}

impl Scene {
    /// Its pixels.
    ///
    /// # Errors
    /// The photograph cannot be read, or is of another size than annotated.
    pub fn view(&self, kit: &Devkit, sides: Sides, is_mirrored: bool) -> Result<View> {
        let photograph = self.photograph(kit)?;
        let scale = sides.scale(self.size);
        let side = |length: u32| ((length as f32 * scale).round() as u32).max(1);
        let mut pixels = photograph.resized((side(self.size.0), side(self.size.1)))?.f_unsqueeze(0)?;
        if is_mirrored {
            pixels = pixels.f_flip([2])?;
        }
        Ok(View { pixels, scale, is_mirrored })
    }

    /// Where a box is on a view.
    pub fn region(&self, bounds: Bounds, view: &View) -> Region {
        let bounds = if view.is_mirrored { boxes::mirror(bounds, self.size.0) } else { bounds };
        Region {
            left: bounds.left * view.scale,
            top: bounds.top * view.scale,
            right: (bounds.right - 1.0) * view.scale,
            bottom: (bounds.bottom - 1.0) * view.scale,
        }
    }

    /// Objects that are not difficult.
    pub fn plain_objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| !object.difficult)
    }

    fn photograph(&self, kit: &Devkit) -> Result<Photograph> {
        let photograph = kit.photograph(&self.name)?;
        let (found, (width, height)) = ((photograph.width, photograph.height), self.size);
        if found == self.size {
            return Ok(photograph);
        }
        let path = kit.image(&self.name);
        let what =
            format!("{} is {} x {} pixels, its annotation says {width} x {height}", path.display(), found.0, found.1);
        Err(Error::data(what).with_hint("boxes count in pixels of the photograph: take it as it comes with the kit"))
    }
}

/// The photographs of a split, with their proposals.
///
/// # Errors
/// Something cannot be read; a photograph has no entry among the proposals; [`Error::Interrupted`].
pub fn read(kit: &Devkit, split: &str, source: &Source, watch: &mut dyn Watch) -> Result<Vec<Scene>> {
    let names = kit.names(Task::Main, split)?;
    let mut scenes = Vec::with_capacity(names.len());
    for name in names {
        let annotation = kit.annotation(&name)?;
        scenes.push(Scene { name, size: annotation.size, objects: annotation.objects, proposals: Vec::new() });
    }
    match source {
        Source::Files(paths) => {
            let found = paths.iter().map(|path| proposals::read(path, split)).collect::<Result<Vec<_>>>()?;
            for scene in &mut scenes {
                scene.proposals = proposals::tidy(boxes_of(&scene.name, &found, paths)?, scene.size);
            }
        }
        Source::Windows(most) => {
            let total = scenes.len();
            for (at, block) in scenes.chunks_mut(BLOCK).enumerate() {
                if watch.is_stopped() {
                    return Err(Error::Interrupted { snapshot: None });
                }
                block.par_iter_mut().try_for_each(|scene| {
                    scene.proposals = proposals::tidy(&windows::propose(&scene.photograph(kit)?, *most), scene.size);
                    Ok::<_, Error>(())
                })?;
                watch.told(Stage::Proposing, (at * BLOCK + block.len(), total), None);
            }
        }
    }
    Ok(scenes)
}

fn boxes_of<'a>(name: &str, found: &'a [Proposals], paths: &[PathBuf]) -> Result<&'a [Bounds]> {
    found.iter().find_map(|proposals| proposals.get(name)).map(Vec::as_slice).ok_or_else(|| {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Error::data(format!("there are no proposals for the image {name} in {}", paths.join(", ")))
            .with_hint("give the files of both splits: --proposals may be repeated, or be a folder with one for each")
    })
}

/// What the scenes hold.
pub fn summary(scenes: &[Scene]) -> Summary {
    let objects: usize = scenes.iter().map(|scene| scene.plain_objects().count()).sum();
    let all: usize = scenes.iter().map(|scene| scene.objects.len()).sum();
    let proposals: usize = scenes.iter().map(|scene| scene.proposals.len()).sum();
    let is_found = |scene: &Scene, object: &Object| scene.proposals.iter().any(|p| p.overlap(object.bounds) >= 0.5);
    let found: usize =
        scenes.par_iter().map(|scene| scene.plain_objects().filter(|object| is_found(scene, object)).count()).sum();
    Summary {
        images: scenes.len(),
        objects,
        difficult: all - objects,
        proposals: proposals as f64 / scenes.len().max(1) as f64,
        recall: found as f64 / objects.max(1) as f64,
    }
}

/// A number that changes with names, objects and proposals: what a state was trained on.
pub fn digest(scenes: &[Scene]) -> String {
    let mut hash = Xxh3::new();
    let mut add = |bounds: &Bounds| {
        for side in [bounds.left, bounds.top, bounds.right, bounds.bottom] {
            hash.update(&side.to_le_bytes());
        }
    };
    let mut names = String::new();
    for scene in scenes {
        names.push_str(&format!("{} {:?} {:?}\n", scene.name, scene.size, scene.objects));
        scene.proposals.iter().for_each(&mut add);
    }
    hash.update(names.as_bytes());
    format!("{:016x}", hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_follow_the_shorter_one_up_to_a_limit() {
        let sides = Sides { shorter: 600, longest: 1000 };
        assert_eq!(sides.scale((500, 375)), 1.6);
        assert_eq!(sides.scale((375, 500)), 1.6);
        assert_eq!(sides.scale((500, 250)), 2.0, "2.4 would make 1,200 of 500");
    }

    #[test]
    fn recall_counts_plain_objects_that_a_proposal_half_covers() {
        let bounds = |left: f32, right: f32| Bounds { left, top: 0.0, right, bottom: 10.0 };
        let object = |left, right, difficult| Object { class: 0, bounds: bounds(left, right), difficult };
        let objects = vec![object(0.0, 10.0, false), object(20.0, 30.0, false), object(40.0, 50.0, true)];
        let proposals = vec![bounds(0.0, 5.0), bounds(20.0, 24.0), bounds(40.0, 50.0)];
        let scene = Scene { name: "1".into(), size: (60, 10), objects, proposals };
        let empty = Scene { proposals: vec![], objects: vec![], ..scene.clone() };
        let found = summary(&[scene.clone(), empty.clone()]);
        assert_eq!(found, Summary { images: 2, objects: 2, difficult: 1, proposals: 1.5, recall: 0.5 });
        let bare = [Scene { proposals: vec![], ..scene.clone() }];
        assert_ne!(digest(&[scene]), digest(&bare));
    }

    #[test]
    fn a_mirrored_region_is_that_of_the_mirrored_box() {
        let scene = Scene { name: "1".into(), size: (100, 50), objects: vec![], proposals: vec![] };
        let pixels = Tensor::zeros([1, 1, 1, 3], (tch::Kind::Uint8, tch::Device::Cpu));
        let view = View { pixels, scale: 2.0, is_mirrored: true };
        // Columns 10 to 29 become 70 to 89.
        let region = scene.region(Bounds { left: 10.0, top: 5.0, right: 30.0, bottom: 6.0 }, &view);
        assert_eq!(region, Region { left: 140.0, top: 10.0, right: 178.0, bottom: 10.0 });
    }
}
