//! How far a command is, on standard error: a bar on a terminal, elsewhere a line every ten seconds.

use crate::observe::console::say;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A number of things of one sort to go through.
pub(super) struct Progress {
    what: &'static str,
    total: usize,
    done: Cell<usize>,
    /// None where there is no terminal.
    bar: Option<ProgressBar>,
    last_line: Cell<Instant>,
}

impl Progress {
    /// Nothing of `total` yet.
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| ProgressBar::new(total as u64));
        if let Some(bar) = &bar {
            if let Ok(style) =
                ProgressStyle::with_template("{bar:10.cyan/dim} {human_pos}/{human_len} {msg} · {eta} left")
            {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_message(what);
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { what, total, done: Cell::new(0), bar, last_line: Cell::new(Instant::now()) }
    }

    /// One more is done.
    pub(super) fn step(&self) {
        self.done.set(self.done.get() + 1);
        if let Some(bar) = &self.bar {
            bar.inc(1);
            return;
        }
        if self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            say(&format!("{} of {} {}", self.done.get(), self.total, self.what));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
