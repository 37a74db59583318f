//! How a run is asked to stop: Ctrl-C or SIGTERM once finishes the step and writes a snapshot, twice leaves at once.

use crate::error::{Error, Result};
use crate::torch::leave_at_once;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Set once somebody asks to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
}

impl Stop {
    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Asks.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// What is set, for those who ask from elsewhere.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.requested)
    }

    /// Listens for Ctrl-C and SIGTERM on `runtime` from now on.
    ///
    /// # Errors
    /// If the signal handlers cannot be installed.
    pub fn on_signals(&self, runtime: &tokio::runtime::Handle) -> Result<()> {
        let _context = runtime.enter();
        let trouble = |error| Error::device(format!("cannot listen for signals: {error}"));
        let interrupt = signal(SignalKind::interrupt()).map_err(trouble)?;
        let terminate = signal(SignalKind::terminate()).map_err(trouble)?;
        runtime.spawn(listen(self.clone(), interrupt, terminate));
        Ok(())
    }
}

async fn listen(stop: Stop, mut interrupt: Signal, mut terminate: Signal) {
    // Who has asked at the page has not signalled yet: the first signal still lets everything be kept.
    let mut has_signalled = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if has_signalled {
            leave_at_once(130);
        }
        has_signalled = true;
        tracing::warn!(
            "stopping: what is under way is finished, and kept where there is a place for it; once more leaves at once"
        );
        stop.request();
    }
}
