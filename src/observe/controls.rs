//! What somebody who watches asks of a run: the trainer looks between two steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Wishes that wait to be heard.
#[derive(Debug, Default)]
pub struct Controls {
    snapshot: AtomicBool,
    paused: AtomicBool,
    stop: Arc<AtomicBool>,
}

impl Controls {
    /// None yet; `stop` is what ends the run, in the middle of an encoding too.
    pub fn new(stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Wishes for a snapshot.
    pub fn ask_for_snapshot(&self) {
        self.snapshot.store(true, Relaxed);
    }

    /// Whether a snapshot is wished for; the wish is heard with that.
    pub fn take_snapshot(&self) -> bool {
        self.snapshot.swap(false, Relaxed)
    }

    /// Has the run stand still, or go on.
    pub fn pause(&self, pause: bool) {
        self.paused.store(pause, Relaxed);
    }

    /// Whether the run is to stand still.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Relaxed)
    }

    /// Wishes for the end of the run, with a snapshot.
    pub fn ask_to_stop(&self) {
        self.stop.store(true, Relaxed);
    }
}
