//! A VOC folder: lists of images, what is annotated on each, and where its files are.
//!
//! In: `VOCdevkit`, or the year's folder in it, with `ImageSets`, `Annotations` and `JPEGImages` (`SegmentationClass` for
//! masks). Out: names of a split, and objects with their classes and boxes. What is missing or makes no sense is an error that names the
//! file and what it should hold.

use crate::decode::{Orient, Photograph};
use crate::error::{Error, Result};
use roxmltree::{Document, Node};
use std::path::{Path, PathBuf};

/// The classes in the order of the kit; their place here is their number.
pub const CLASSES: [&str; 20] = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// The folder of one year.
#[derive(Clone, Debug)]
pub struct Devkit {
    root: PathBuf,
}

/// What lists are there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Classification and detection: `ImageSets/Main`.
    Main,
    /// `ImageSets/Segmentation`.
    Segmentation,
}

impl Task {
    fn folder(self) -> &'static str {
        match self {
            Self::Main => "Main",
            Self::Segmentation => "Segmentation",
        }
    }
}

/// A box in pixels from the top left corner: it covers columns `left..right` and rows `top..bottom`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// First column.
    pub left: f32,
    /// First row.
    pub top: f32,
    /// One past the last column.
    pub right: f32,
    /// One past the last row.
    pub bottom: f32,
}

impl Bounds {
    /// Square pixels.
    pub fn area(self) -> f32 {
        (self.right - self.left).max(0.0) * (self.bottom - self.top).max(0.0)
    }

    /// Intersection over union.
    pub fn overlap(self, other: Self) -> f32 {
        let shared = Self {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        };
        let shared = shared.area();
        if shared == 0.0 { 0.0 } else { shared / (self.area() + other.area() - shared) }
    }
}

/// Something on a photograph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Its place in [`CLASSES`].
    pub class: usize,
    /// Where it is.
    pub bounds: Bounds,
    /// Hard to recognise, even for people: left out of every measure.
    pub difficult: bool,
}

/// Whether a class is on a photograph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// At least one object that is not difficult.
    Present,
    /// Difficult objects only: counts neither way.
    Difficult,
    /// None.
    Absent,
}

/// What is annotated on one photograph.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// In the order of the file.
    pub objects: Vec<Object>,
}

impl Annotation {
    /// Whether `class` is there.
    pub fn presence(&self, class: usize) -> Presence {
        let mut of_class = self.objects.iter().filter(|object| object.class == class).peekable();
        if of_class.peek().is_none() {
            return Presence::Absent;
        }
        if of_class.all(|object| object.difficult) { Presence::Difficult } else { Presence::Present }
    }
}

impl Devkit {
    /// Takes the folder of a year, or the one that holds it: `year` is for example `VOC2007`.
    ///
    /// # Errors
    /// Neither has lists, annotations and images.
    pub fn open(folder: &Path, year: &str) -> Result<Self> {
        let parts = ["ImageSets", "Annotations", "JPEGImages"];
        let lacking = |root: &Path| parts.into_iter().filter(|part| !root.join(part).is_dir()).collect::<Vec<_>>();
        for root in [folder.to_path_buf(), folder.join(year), folder.join("VOCdevkit").join(year)] {
            if lacking(&root).is_empty() {
                return Ok(Self { root });
            }
        }
        let what = format!("{} is no {year} folder: {} missing", folder.display(), lacking(folder).join(", "));
        Err(Error::data(what).with_hint(format!("unpack VOCtrainval and VOCtest there, and give VOCdevkit/{year}")))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names of the images of a split (`train`, `val`, `trainval`, `test`), in the order of its list.
    pub fn names(&self, task: Task, split: &str) -> Result<Vec<String>> {
        let path = self.root.join("ImageSets").join(task.folder()).join(split).with_extension("txt");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Error::file("read", &path, &error).with_hint(format!("the kit has one list for each split, here {split}"))
        })?;
        let names: Vec<String> =
            text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
        if names.is_empty() {
            return Err(Error::data(format!("{} names no image", path.display())));
        }
        Ok(names)
    }

    /// What is annotated on the image called `name`.
    pub fn annotation(&self, name: &str) -> Result<Annotation> {
        let path = self.root.join("Annotations").join(format!("{name}.xml"));
        let text = std::fs::read_to_string(&path).map_err(|error| Error::file("read", &path, &error))?;
        let refuse = |why: String| Error::data(format!("{}: {why}", path.display()));
        let document = Document::parse(&text).map_err(|error| refuse(error.to_string()))?;
        parse(document.root_element()).map_err(refuse)
    }

    /// Where its photograph is.
    pub fn image(&self, name: &str) -> PathBuf {
        self.root.join("JPEGImages").join(format!("{name}.jpg"))
    }

    /// Its photograph, as boxes and masks count its pixels.
    pub fn photograph(&self, name: &str) -> Result<Photograph> {
        Photograph::open(&self.image(name), Orient::AsStored)
    }

    /// Where the mask of its classes is.
    pub fn class_mask(&self, name: &str) -> PathBuf {
        self.root.join("SegmentationClass").join(format!("{name}.png"))
    }
}

fn parse(annotation: Node<'_, '_>) -> Result<Annotation, String> {
    let size = child(annotation, "size")?;
    let side = |name: &str| number(size, name).map(|side| side as u32);
    let size = (side("width")?, side("height")?);
    let objects = annotation.children().filter(|node| node.has_tag_name("object"));
    let objects = objects.map(parse_object).collect::<Result<_, _>>()?;
    Ok(Annotation { size, objects })
}

fn parse_object(object: Node<'_, '_>) -> Result<Object, String> {
    let name = child(object, "name")?.text().unwrap_or_default().trim();
    let Some(class) = CLASSES.iter().position(|class| *class == name) else {
        return Err(format!("an object is a {name:?}, which is none of the classes of VOC"));
    };
    let difficult = match child(object, "difficult") {
        Ok(node) => node.text().unwrap_or_default().trim() == "1",
        Err(_) => false,
    };
    let bounds = child(object, "bndbox")?;
    // The kit counts pixels from 1 and names the last one of each row and column.
    let bounds = Bounds {
        left: number(bounds, "xmin")? as f32 - 1.0,
        top: number(bounds, "ymin")? as f32 - 1.0,
        right: number(bounds, "xmax")? as f32,
        bottom: number(bounds, "ymax")? as f32,
    };
    if bounds.area() <= 0.0 {
        return Err(format!("the box of a {name} is empty: {bounds:?}"));
    }
    Ok(Object { class, bounds, difficult })
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Result<Node<'a, 'input>, String> {
    let found = node.children().find(|child| child.has_tag_name(name));
    found.ok_or_else(|| format!("a {} lacks <{name}>", node.tag_name().name()))
}

fn number(node: Node<'_, '_>, name: &str) -> Result<f64, String> {
    let text = child(node, name)?.text().unwrap_or_default().trim();
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("<{name}> is no number: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit(annotation: &str) -> (tempfile::TempDir, Devkit) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("VOC2007");
        for part in ["ImageSets/Main", "Annotations", "JPEGImages"] {
            std::fs::create_dir_all(root.join(part)).expect("a folder");
        }
        std::fs::write(root.join("Annotations/000005.xml"), annotation).expect("a file");
        std::fs::write(root.join("ImageSets/Main/val.txt"), "000005\n000007  1\n").expect("a file");
        let kit = Devkit::open(folder.path(), "VOC2007").expect("a kit");
        (folder, kit)
    }

    const OBJECTS: &str = "<annotation><size><width>500</width><height>375</height><depth>3</depth></size>
        <object><name>chair</name><difficult>0</difficult>
          <bndbox><xmin>263</xmin><ymin>211</ymin><xmax>324</xmax><ymax>339</ymax></bndbox></object>
        <object><name>cat</name><difficult>1</difficult><part><name>head</name>
          <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>
          <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10.5</xmax><ymax>20</ymax></bndbox></object></annotation>";

    #[test]
    fn objects_and_lists_are_read() -> Result<()> {
        let (_folder, kit) = kit(OBJECTS);
        assert_eq!(kit.names(Task::Main, "val")?, ["000005", "000007"]);
        let found = kit.annotation("000005")?;
        assert_eq!((found.size, found.objects.len()), ((500, 375), 2));
        let chair = Bounds { left: 262.0, top: 210.0, right: 324.0, bottom: 339.0 };
        assert_eq!(found.objects[0], Object { class: 8, bounds: chair, difficult: false });
        assert_eq!(found.objects[1].bounds.area(), 10.5 * 19.0);
        assert_eq!(
            [8, 7, 0].map(|class| found.presence(class)),
            [Presence::Present, Presence::Difficult, Presence::Absent]
        );
        Ok(())
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_file() {
        for (from, to, words) in [
            ("<xmax>324</xmax>", "<xmax>many</xmax>", "<xmax> is no number: \"many\""),
            ("<xmax>324</xmax>", "<xmax>200</xmax>", "box of a chair is empty"),
            ("<name>chair</name>", "<name>unicorn</name>", "\"unicorn\""),
            ("<width>500</width>", "", "lacks <width>"),
            ("</annotation>", "", "000005.xml"),
        ] {
            let (_folder, kit) = kit(&OBJECTS.replacen(from, to, 1));
            let error = kit.annotation("000005").expect_err(words).to_string();
            assert!(error.contains(words) && error.contains("000005.xml"), "{error}");
        }
        let (folder, kit) = kit(OBJECTS);
        assert!(kit.names(Task::Main, "test").expect_err("no list").to_string().contains("test.txt"));
        assert!(kit.annotation("000007").expect_err("no file").to_string().contains("000007.xml"));
        let error = Devkit::open(&folder.path().join("VOC2007/JPEGImages"), "VOC2007").expect_err("no kit");
        assert!(error.to_string().contains("Annotations"), "{error}");
    }

    #[test]
    fn overlap_is_intersection_over_union() {
        let square = |at: f32| Bounds { left: at, top: at, right: at + 2.0, bottom: at + 2.0 };
        assert_eq!(square(0.0).overlap(square(1.0)), 1.0 / 7.0);
        assert_eq!(square(0.0).overlap(square(0.0)), 1.0);
        assert_eq!(square(0.0).overlap(square(2.0)), 0.0);
    }
}
