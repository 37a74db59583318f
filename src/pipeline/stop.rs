//! How a run is asked to stop: Ctrl-C or SIGTERM once finishes the step and writes a snapshot, twice leaves at once.

use crate::error::{Error, Result};
use crate::torch::leave_at_once;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the signals of one wish may take to come.
const ECHO: Duration = Duration::from_secs(10);

/// Set once somebody asks to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    echo: Duration,
}

impl Stop {
    /// Of a process that a launcher has started, which may get the signal of one wish more than once, from the terminal and from its
    /// launcher: what comes soon after the first is the same.
    pub fn launched() -> Self {
        Self { echo: ECHO, ..Self::default() }
    }

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
    let mut first: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        match first {
            Some(first) if first.elapsed() < stop.echo => continue,
            Some(_) => leave_at_once(130),
            None => first = Some(Instant::now()),
        }
        tracing::warn!(
            "stopping: what is under way is finished, and kept where there is a place for it; once more leaves at once"
        );
        stop.request();
    }
}
