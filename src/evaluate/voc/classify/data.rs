//! A split of the kit in memory: the files of its photographs, and which classes each shows.
//!
//! Photographs stay as the kit stores them, some 90 kB each (the 5,011 of trainval are 0.45 GB), and are decoded at each draw. In: a
//! kit and the name of a split. What is missing is an error that names the file.

use crate::decode::{Orient, Photograph};
use crate::error::{Error, Result};
use crate::evaluate::voc::devkit::{CLASSES, Devkit, Presence, Task};
use std::fs;
use std::path::PathBuf;
use tch::{Kind, Tensor};

/// The photographs of one list, and their labels.
#[derive(Debug)]
pub struct Split {
    name: String,
    paths: Vec<PathBuf>,
    files: Vec<Vec<u8>>,
    labels: Vec<[Presence; CLASSES.len()]>,
}

impl Split {
    /// Reads `train`, `val`, `trainval` or `test`.
    ///
    /// # Errors
    /// A list, an annotation or a photograph that cannot be read.
    pub fn read(kit: &Devkit, name: &str) -> Result<Self> {
        let names = kit.names(Task::Main, name)?;
        let mut split = Self { name: name.to_owned(), paths: Vec::new(), files: Vec::new(), labels: Vec::new() };
        for image in &names {
            let annotation = kit.annotation(image)?;
            let path = kit.image(image);
            split.files.push(fs::read(&path).map_err(|error| Error::file("read", &path, &error))?);
            split.paths.push(path);
            split.labels.push(std::array::from_fn(|class| annotation.presence(class)));
        }
        Ok(split)
    }

    /// What its list is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Photographs.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none; a list of the kit is never empty.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Photographs that show each class, difficult objects aside.
    pub fn positives(&self) -> [usize; CLASSES.len()] {
        std::array::from_fn(|class| self.labels.iter().filter(|labels| labels[class] == Presence::Present).count())
    }

    /// What the photographs show of one class.
    pub fn presence(&self, class: usize) -> impl Iterator<Item = Presence> {
        self.labels.iter().map(move |labels| labels[class])
    }

    /// One photograph as it is stored.
    pub fn photograph(&self, row: usize) -> Result<Photograph> {
        Photograph::decode(&self.files[row], Orient::AsStored).map_err(|trouble| {
            Error::data(format!("{}: {}: {}", self.paths[row].display(), trouble.reason, trouble.detail))
        })
    }

    /// `[B, 20]` of 1 and 0, and `[B, 20]` of 1 where that counts and 0 where there are difficult objects alone.
    pub fn targets(&self, rows: &[usize]) -> Result<(Tensor, Tensor)> {
        let shape = [rows.len() as i64, CLASSES.len() as i64];
        let table = |value: fn(Presence) -> bool| -> Result<Tensor> {
            let values: Vec<bool> = rows.iter().flat_map(|&row| self.labels[row].map(value)).collect();
            Ok(Tensor::f_from_slice(&values)?.f_to_kind(Kind::Float)?.f_view(shape)?)
        };
        Ok((table(|presence| presence == Presence::Present)?, table(|presence| presence != Presence::Difficult)?))
    }

    /// For people: how many photographs, and of which classes.
    pub fn summary(&self) -> String {
        let positives = self.positives();
        let shown: Vec<String> = CLASSES
            .iter()
            .zip(positives)
            .filter(|(_, count)| *count > 0)
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        let (images, classes) = (self.len(), shown.len());
        format!("{}: {images} photographs, {classes} of {} classes ({})", self.name, CLASSES.len(), shown.join(", "))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use image::{ImageFormat, RgbImage};

    /// One picture of 48 x 36 pixels for each row: its classes, and whether they are present or difficult.
    pub(in super::super) fn kit_of(rows: &[(&[usize], Presence)]) -> Result<Split> {
        let mut split = Split { name: "train".into(), paths: Vec::new(), files: Vec::new(), labels: Vec::new() };
        for (row, (classes, presence)) in rows.iter().enumerate() {
            let level = |x: u32, y: u32| [(5 * x + 40 * row as u32) as u8, (7 * y) as u8, (x * y) as u8];
            let picture = RgbImage::from_fn(48, 36, |x, y| image::Rgb(level(x, y)));
            let mut file = std::io::Cursor::new(Vec::new());
            picture.write_to(&mut file, ImageFormat::Png).expect("an encoder");
            split.files.push(file.into_inner());
            split.paths.push(PathBuf::from(format!("{row:06}.jpg")));
            let mut labels = [Presence::Absent; CLASSES.len()];
            classes.iter().for_each(|&class| labels[class] = *presence);
            split.labels.push(labels);
        }
        Ok(split)
    }

    impl Split {
        pub(in super::super) fn spoil(&mut self, row: usize) {
            self.files[row] = b"no pixels here".to_vec();
        }
    }

    #[test]
    fn targets_tell_present_absent_and_difficult_apart() -> Result<()> {
        let split = kit_of(&[(&[1, 2], Presence::Present), (&[2], Presence::Difficult), (&[], Presence::Absent)])?;
        let (targets, counts) = split.targets(&[1, 0])?;
        assert_eq!((targets.size(), counts.size()), (vec![2, 20], vec![2, 20]));
        let row = |table: &Tensor, at: i64| Vec::<f32>::try_from(table.get(at)).expect("floats");
        assert_eq!((row(&targets, 0)[2], row(&counts, 0)[2], row(&counts, 0)[1]), (0.0, 0.0, 1.0));
        assert_eq!((row(&targets, 1)[..4].to_vec(), row(&counts, 1)), (vec![0.0, 1.0, 1.0, 0.0], vec![1.0; 20]));
        assert_eq!((split.positives()[1], split.positives()[2], split.positives()[3]), (1, 1, 0));
        assert!(split.summary().contains("3 photographs, 2 of 20 classes (bicycle 1, bird 1)"), "{}", split.summary());
        Ok(())
    }
}
