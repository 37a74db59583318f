//! Who looks at a run while it trains, and what they ask of it.

use super::Run;
use super::find::Nearby;
use super::saving::Saving;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::observe::console::say;
use crate::observe::page::Opening;
use crate::observe::{Baseline, Heartbeat, Live, Meters, Observer, Page, Photographs, Stage, UnderWay, stream_words};
use crate::shards::ShardList;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks of a run that stands still.
const PAUSE: Duration = Duration::from_millis(100);

/// The watchers of a run; dropping them ends their threads.
pub(super) struct Watchers {
    /// Where the run leaves the times of its steps, where somebody wants them.
    pub(super) meters: Option<Arc<Meters>>,
    _heartbeat: Heartbeat,
    _page: Option<Page>,
}

impl Watchers {
    /// Starts what the plan wants: the heartbeat always, pictures for TensorBoard, and the page with its numbers.
    ///
    /// # Errors
    /// A thread cannot start, a file cannot be made, or the page's address cannot be had.
    pub(super) fn start(
        plan: &Plan,
        folder: &Path,
        list: &ShardList,
        live: &Arc<Live>,
        baseline: Baseline,
        observer: &mut Observer,
    ) -> Result<Self> {
        let seen = Arc::clone(live);
        let words = move || stream_words(&seen.sources().progress);
        let heartbeat = Heartbeat::start(Arc::clone(&live.activity), words, say)
            .map_err(|error| Error::device(format!("cannot start the watching thread: {error}")))?;
        let photographs: Arc<dyn Photographs> = Arc::new(Nearby::of(plan, list.clone(), folder));
        if plan.observe.tensorboard && plan.observe.pictures {
            observer.draw_with(&photographs)?;
        }
        if plan.observe.page.is_empty() {
            return Ok(Self { meters: None, _heartbeat: heartbeat, _page: None });
        }
        let meters = Arc::new(Meters::new(baseline)?);
        observer.tell(Arc::clone(&meters));
        let under_way = UnderWay { live: Arc::clone(live), meters: Arc::clone(&meters) };
        let opening =
            Opening { run: folder.to_path_buf(), plan: plan.clone(), under_way: Some(under_way), photographs };
        let page = Page::open(&plan.observe.page, opening)?;
        say(&format!("page: {}", page.url));
        Ok(Self { meters: Some(meters), _heartbeat: heartbeat, _page: Some(page) })
    }
}

impl Run<'_> {
    /// Does what was asked for at the page since the last step.
    pub(super) fn heed_the_page(&mut self) -> Result<()> {
        loop {
            if self.live.controls.take_snapshot() && self.trainer.progress().step > self.snapshot_step {
                self.snapshot()?;
            }
            if self.saving.as_ref().is_some_and(Saving::is_done) {
                self.finish_snapshot()?;
            }
            if !self.live.controls.is_paused() || self.stop.is_requested() {
                return Ok(());
            }
            let started = Instant::now();
            self.activity.enter(Stage::Pause, "until somebody lets it go on at the page");
            std::thread::sleep(PAUSE);
            self.trainer.interval_mut().skip(started.elapsed());
        }
    }
}
