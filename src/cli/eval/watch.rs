//! How far a fine-tuning is, on stderr, and the wish to stop it: Ctrl-C or SIGTERM.

use crate::error::Result;
use crate::evaluate::voc::classify::{Step, Watch};
use crate::observe::console::{Console, say};
use crate::pipeline::start_runtime;
use crate::pipeline::stop::Stop;
use indicatif::HumanDuration;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Shows progress on stderr and listens for Ctrl-C.
pub(super) struct OnTerminal {
    /// Listens for signals as long as this lives.
    _runtime: Runtime,
    stop: Stop,
    bar: bool,
    console: Option<Console>,
    what: String,
    begun: (Instant, u64),
    total: u64,
}

impl OnTerminal {
    /// A bar where stderr is a terminal and `bar` is wanted, plain lines elsewhere.
    pub(super) fn new(bar: bool) -> Result<Self> {
        let (runtime, stop) = (start_runtime()?, Stop::default());
        stop.on_signals(runtime.handle())?;
        let bar = bar && std::io::stderr().is_terminal();
        let begun = (Instant::now(), 0);
        Ok(Self { _runtime: runtime, stop, bar, console: None, what: String::new(), begun, total: 0 })
    }

    fn show(&mut self, done: u64, of: &str, more: &str) {
        let (since, before) = self.begun;
        let rate = (done - before) as f64 / since.elapsed().as_secs_f64().max(1e-9);
        let left = Duration::from_secs_f64((self.total - done) as f64 / rate.max(1e-3));
        let text = format!("{}{more} · {rate:.1} {of}/s · {} left", self.what, HumanDuration(left));
        if let Some(console) = &mut self.console {
            console.progress(done, self.total, &text);
        }
    }
}

impl Watch for OnTerminal {
    fn say(&mut self, line: &str) {
        say(line);
    }

    fn begin(&mut self, what: &str, done: u64, total: u64) {
        // The old bar goes before the new one comes.
        self.console = None;
        self.console = Some(Console::new(Some(total), done, self.bar));
        (self.what, self.begun, self.total) = (what.to_owned(), (Instant::now(), done), total);
    }

    fn trained(&mut self, step: Step) {
        self.show(step.done, "iterations", &format!(" · loss {:.3}", step.loss));
    }

    fn scored(&mut self, photographs: u64) {
        self.show(photographs, "photographs", "");
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_requested()
    }
}
