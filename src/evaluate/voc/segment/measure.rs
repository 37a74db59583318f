//! Pixels by their class and the class that was told, and the four usual shares of them (Long et al., section 5).
//!
//! In: masks and predictions of the same length. Out: a table of counts. Void pixels count nowhere.

use super::data::VOID;
use crate::error::{Error, Result};
use crate::evaluate::voc::devkit::CLASSES;

/// Background, and the classes of the kit.
pub const LABELS: usize = CLASSES.len() + 1;

/// Counts of pixels: a row for the class that is there, a column for the one that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    counts: [[u64; LABELS]; LABELS],
}

impl Default for Confusion {
    fn default() -> Self {
        Self { counts: [[0; LABELS]; LABELS] }
    }
}

impl Confusion {
    /// Takes up the pixels of one photograph: numbers of classes, with void in `truth`.
    ///
    /// # Errors
    /// Lengths that differ, or a number that is no class.
    pub fn add(&mut self, truth: &[u8], told: &[u8]) -> Result<()> {
        if truth.len() != told.len() {
            return Err(Error::data(format!("{} pixels, and {} predictions", truth.len(), told.len())));
        }
        for (&truth, &told) in truth.iter().zip(told) {
            if truth == VOID {
                continue;
            }
            let row = self.counts.get_mut(usize::from(truth));
            let Some(count) = row.and_then(|row| row.get_mut(usize::from(told))) else {
                return Err(Error::data(format!("{truth} or {told} is the number of no class")));
            };
            *count += 1;
        }
        Ok(())
    }

    fn there(&self, class: usize) -> u64 {
        self.counts[class].iter().sum()
    }

    fn told(&self, class: usize) -> u64 {
        self.counts.iter().map(|row| row[class]).sum()
    }

    /// Share of the pixels that are told rightly.
    pub fn pixel_accuracy(&self) -> f64 {
        let right: u64 = (0..LABELS).map(|class| self.counts[class][class]).sum();
        let all: u64 = (0..LABELS).map(|class| self.there(class)).sum();
        right as f64 / all.max(1) as f64
    }

    /// Mean of that share over the classes that are there.
    pub fn mean_accuracy(&self) -> f64 {
        mean(
            (0..LABELS)
                .filter(|&class| self.there(class) > 0)
                .map(|class| self.counts[class][class] as f64 / self.there(class) as f64),
        )
    }

    /// Pixels that are of a class and told so, over those that are or are told so; none where there are neither.
    pub fn intersection_over_union(&self, class: usize) -> Option<f64> {
        let right = self.counts[class][class];
        let union = self.there(class) + self.told(class) - right;
        (union > 0).then(|| right as f64 / union as f64)
    }

    /// Mean of [`Confusion::intersection_over_union`] over the classes that have one.
    pub fn mean_iu(&self) -> f64 {
        mean((0..LABELS).filter_map(|class| self.intersection_over_union(class)))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    sum / f64::from(count.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() -> Result<()> {
        let mut found = Confusion::default();
        // Background: 3 of 4 right. Class 1: 1 of 2. Class 2 is told once and never there. Void counts nowhere.
        found.add(&[0, 0, 0, 0, 1, VOID], &[0, 0, 0, 2, 1, 1])?;
        found.add(&[1], &[0])?;
        assert_eq!(found.pixel_accuracy(), 4.0 / 6.0);
        assert_eq!(found.mean_accuracy(), (0.75 + 0.5) / 2.0);
        let shares = [0, 1, 2, 3].map(|class| found.intersection_over_union(class));
        assert_eq!(shares, [Some(3.0 / 5.0), Some(0.5), Some(0.0), None]);
        assert_eq!(found.mean_iu(), (0.6 + 0.5) / 3.0);
        assert!(found.add(&[0], &[]).is_err() && found.add(&[21], &[0]).is_err());
        Ok(())
    }
}
