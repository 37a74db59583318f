//! Says what is waited for when a run stands still.
//!
//! In: stages note in an [`Activity`] what they are about, and that a step is done. Out: when no step has ended for ten
//! seconds, a line that names the stage waited for, how long, and what it says of itself; repeated at growing distances
//! until something moves. What can go wrong: nothing; the watcher ends when [`Heartbeat`] is dropped.

use super::console::span;
use std::borrow::Cow;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Silence until the first message.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time between two messages.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// What the trainer is about, as the operator would name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Building the network, reading a snapshot.
    Start,
    /// Waiting for a batch: ingest and decode.
    Wait,
    /// The assigner's forward pass and the labels.
    Assign,
    /// The student's forward and backward pass.
    Train,
    /// Encoding for a clustering, and waiting for what is to be encoded.
    Encode,
    /// A clustering.
    Cluster,
    /// Writing a snapshot.
    Snapshot,
    /// Standing still, as somebody asked.
    Pause,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Start, Self::Wait, Self::Assign, Self::Train, Self::Encode, Self::Cluster, Self::Snapshot, Self::Pause];

    /// For labels of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Wait => "wait",
            Self::Assign => "assign",
            Self::Train => "train",
            Self::Encode => "encode",
            Self::Cluster => "cluster",
            Self::Snapshot => "snapshot",
            Self::Pause => "pause",
        }
    }

    /// For people.
    pub fn doing(self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Wait => "waiting for data",
            Self::Assign => "labelling a batch",
            Self::Train => "training on a batch",
            Self::Encode => "encoding for the clustering",
            Self::Cluster => "clustering",
            Self::Snapshot => "writing snapshot",
            Self::Pause => "paused",
        }
    }
}

/// Where stages note what they do; shared by reference, cheap enough for every step.
#[derive(Debug)]
pub struct Activity {
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    stage: Stage,
    detail: Cow<'static, str>,
    entered: Instant,
    last_step: Instant,
    stepped: bool,
}

impl Default for Activity {
    fn default() -> Self {
        let now = Instant::now();
        let state =
            State { stage: Stage::Start, detail: Cow::Borrowed(""), entered: now, last_step: now, stepped: false };
        Self { state: Mutex::new(state) }
    }
}

impl Activity {
    /// The stage begins, or has got further: `detail` is as short as "k-means iteration 7 of 20".
    pub fn enter(&self, stage: Stage, detail: impl Into<Cow<'static, str>>) {
        self.update(|state| {
            if state.stage != stage {
                state.entered = Instant::now();
            }
            state.stage = stage;
            state.detail = detail.into();
        });
    }

    /// What the trainer is about, how far it is with it, and since when.
    pub fn now(&self) -> (Stage, Cow<'static, str>, Duration) {
        let state = self.state();
        (state.stage, state.detail, state.entered.elapsed())
    }

    /// How long ago the last step ended.
    pub fn since_step(&self) -> Duration {
        self.state().last_step.elapsed()
    }

    /// Whether a step has been trained since the process began.
    pub fn has_stepped(&self) -> bool {
        self.state().stepped
    }

    /// A step is done, or a batch of encoding.
    pub fn tick(&self) {
        self.update(|state| {
            state.last_step = Instant::now();
            state.stepped |= state.stage == Stage::Train;
        });
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Decides when to speak, and what to say. Time is handed in.
struct Watch {
    heard_step: Instant,
    speak_after: Duration,
    gap: Duration,
}

impl Watch {
    fn new(state: &State) -> Self {
        Self { heard_step: state.last_step, speak_after: PATIENCE, gap: PATIENCE }
    }

    /// A message, if the time for one has come. `ingest` says how the stream stands.
    fn look(&mut self, state: &State, now: Instant, ingest: impl Fn() -> String) -> Option<String> {
        if state.last_step != self.heard_step {
            *self = Self::new(state);
        }
        if now.saturating_duration_since(state.last_step) < self.speak_after {
            return None;
        }
        self.speak_after += self.gap;
        self.gap = (self.gap * 2).min(LONGEST_GAP);

        let in_stage = span(now.saturating_duration_since(state.entered));
        let progress = match state.stage {
            Stage::Wait if state.detail.is_empty() => Cow::Owned(ingest()),
            Stage::Encode => Cow::Owned(format!("{}; {}", state.detail, ingest())),
            _ => state.detail.clone(),
        };
        let doing = state.stage.doing();
        if progress.is_empty() {
            return Some(format!("{doing} for {in_stage}"));
        }
        Some(format!("{doing} for {in_stage}: {progress}"))
    }
}

/// The watcher thread; dropping it ends the watch.
#[derive(Debug)]
pub struct Heartbeat {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Watches `activity`. `ingest` gives the stream's own words ("3 shards open, last byte 12 s ago, decode idle");
    /// `say` is given each message.
    pub fn start(
        activity: Arc<Activity>,
        ingest: impl Fn() -> String + Send + 'static,
        say: impl Fn(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let watch = move || {
            let mut watch = Watch::new(&activity.state());
            while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                if let Some(message) = watch.look(&activity.state(), Instant::now(), &ingest) {
                    say(&message);
                }
            }
        };
        let thread = thread::Builder::new().name("heartbeat".into()).spawn(watch)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A watcher that panicked has said so already; the run does not depend on it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages_at(activity: &Activity, watch: &mut Watch, seconds: impl Iterator<Item = u64>) -> Vec<(u64, String)> {
        let state = activity.state();
        let mut out = Vec::new();
        for second in seconds {
            let now = state.last_step + Duration::from_secs(second);
            if let Some(message) = watch.look(&state, now, || "2 shards open".into()) {
                out.push((second, message));
            }
        }
        out
    }

    #[test]
    fn silence_names_the_stage_at_growing_distances() {
        let activity = Activity::default();
        activity.tick();
        activity.enter(Stage::Cluster, "k-means iteration 7 of 20");
        let mut watch = Watch::new(&activity.state());
        let messages = messages_at(&activity, &mut watch, 0..200);
        let seconds: Vec<u64> = messages.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 140]);
        assert_eq!(messages[0].1, "clustering for 10.0 s: k-means iteration 7 of 20");
    }

    #[test]
    fn waiting_for_data_is_told_in_the_streams_own_words() {
        let activity = Activity::default();
        activity.enter(Stage::Wait, "");
        let mut watch = Watch::new(&activity.state());
        let messages = messages_at(&activity, &mut watch, 0..12);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].1.starts_with("waiting for data for "), "{}", messages[0].1);
        assert!(messages[0].1.ends_with(": 2 shards open"), "{}", messages[0].1);
    }

    #[test]
    fn a_step_restores_the_patience() {
        let activity = Activity::default();
        let mut watch = Watch::new(&activity.state());
        assert_eq!(messages_at(&activity, &mut watch, 0..30).len(), 2);
        thread::sleep(Duration::from_millis(2));
        activity.tick();
        let seconds: Vec<u64> = messages_at(&activity, &mut watch, 0..15).iter().map(|(at, _)| *at).collect();
        assert_eq!(seconds, [10]);
    }

    #[test]
    fn dropping_the_heartbeat_ends_its_thread() -> std::io::Result<()> {
        let activity = Arc::new(Activity::default());
        let heartbeat = Heartbeat::start(Arc::clone(&activity), String::new, |_| {})?;
        drop(heartbeat);
        assert_eq!(Arc::strong_count(&activity), 1);
        Ok(())
    }
}
