//! Who looks at a run while it trains, and what they ask of it.

use super::find::Nearby;
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::observe::console::say;
use crate::observe::page::Opening;
use crate::observe::{Baseline, Heartbeat, Live, Meters, Observer, Page, Photographs, UnderWay, stream_words};
use crate::shards::ShardList;
use std::path::Path;
use std::sync::Arc;

/// The watchers of a run; dropping them ends their threads. Ranks other than 0 have none.
#[derive(Default)]
pub(super) struct Watchers {
    /// Where the run leaves the times of its steps, where somebody wants them.
    pub(super) meters: Option<Arc<Meters>>,
    _heartbeat: Option<Heartbeat>,
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
            return Ok(Self { meters: None, _heartbeat: Some(heartbeat), _page: None });
        }
        let meters = Arc::new(Meters::new(baseline)?);
        observer.tell(Arc::clone(&meters));
        let under_way = UnderWay { live: Arc::clone(live), meters: Arc::clone(&meters) };
        let opening =
            Opening { run: folder.to_path_buf(), plan: plan.clone(), under_way: Some(under_way), photographs };
        let page = Page::open(&plan.observe.page, opening)?;
        say(&format!("page: {}", page.url));
        Ok(Self { meters: Some(meters), _heartbeat: Some(heartbeat), _page: Some(page) })
    }
}
