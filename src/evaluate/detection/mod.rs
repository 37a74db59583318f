//! VOC07 detection by Fast R-CNN (paper, Tables 2 to 4; Girshick, ICCV 2015): what a pre-trained network is worth when it is
//! fine-tuned to find objects.
//!
//! In: a VOC folder, object proposals, a network. Out: average precision of each class on the test split. [`scene`] reads
//! photographs and [`proposals`] ([`matlab`] those of selective search, [`windows`] makes some where there are none), [`train`]
//! fine-tunes a [`detector`] whose regions [`pooling`] cuts out of its maps, [`find`] lets it loose on the test split, and
//! [`score`] measures what it found. The paper's solver files were never released: all defaults are those of the published Fast
//! R-CNN code.
//!
//! What can go wrong: files that are missing or make no sense, named; a loss that diverges.

pub mod boxes;
pub mod detector;
pub mod find;
pub mod matlab;
pub mod pooling;
pub mod proposals;
pub mod sampling;
pub mod scene;
pub mod score;
pub mod state;
pub mod train;
pub mod windows;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Photographs get windows.
    Proposing,
    /// Steps of training.
    Training,
    /// Photographs of the test split.
    Testing,
}

/// Who looks on, and may ask to stop.
pub trait Watch {
    /// Whether to stop at the next step or photograph.
    fn is_stopped(&self) -> bool;

    /// So much is done of so much; in training with the loss of the step.
    fn told(&mut self, stage: Stage, progress: (usize, usize), loss: Option<f64>);
}
