//! Who is alive: every rank leaves a beat in the store once a second, and looks at that of the next one.
//!
//! A beat says how many calls its rank has begun, and how the rank ended, if it did. A rank whose beats stop is dead, frozen or cut
//! off; one that beats but does not come to a call in which others have waited for `ranks.timeout_s` hangs. Whoever finds out leaves a
//! *verdict* in the store. Every rank reads it with its next beat; the thread that trains gets it as the reason of its own broken
//! call (`Watch::explain`), and if that thread is stuck, the process is ended from here. Each rank asks for one beat a second,
//! whatever their number.
//!
//! What can go wrong: the store itself is gone; then the process that keeps it is named.

use super::roll::words;
use crate::error::{Error, Result};
use crate::torch::c10d::{Store, is_of_another_rank};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// Without a beat for so long a rank counts as gone.
const SILENCE: Duration = Duration::from_secs(15);
/// The same once a call has broken somewhere.
const ALARMED_SILENCE: Duration = Duration::from_secs(4);
/// Between two looks at what the beating thread has found.
const GUARD: Duration = Duration::from_millis(200);
/// How long the training thread has to end by itself once there is a verdict.
const GRACE: Duration = Duration::from_secs(3);
/// How long whoever keeps the store stays for the others to read a verdict.
const LINGER: Duration = Duration::from_secs(3);

/// A way out that holds for every loss of a rank.
const START_AGAIN: &str =
    "start all ranks again (torchrun --max-restarts does): the run goes on from its last snapshot";

/// Where this rank is among the others.
#[derive(Clone, Debug)]
pub(super) struct Whereabouts {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) store_is_at: String,
    pub(super) timeout: Duration,
}

impl Whereabouts {
    /// Rank 0 does.
    fn keeps_store(&self) -> bool {
        self.rank == 0
    }

    fn silence(&self) -> Duration {
        SILENCE.min(self.timeout)
    }

    fn alarmed_silence(&self) -> Duration {
        ALARMED_SILENCE.min(self.timeout)
    }
}

/// What a rank says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Beat {
    /// Beats so far.
    number: u64,
    /// For each group of ranks that it is in, the calls begun, and the last of them.
    calls: Vec<(u64, String)>,
    end: Option<End>,
    process: u32,
}

/// How a rank ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    /// Its work was done, or somebody asked it to stop.
    Done,
    /// By an error of its own.
    Failed(String),
    /// By a call that another had broken off, in these words.
    Followed(String),
}

/// The threads that watch over one rank.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    beating: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    here: Whereabouts,
    doing: Mutex<Doing>,
}

/// The calls of one group of ranks, which one thread makes.
#[derive(Debug)]
struct Calls {
    begun: u64,
    last: &'static str,
    /// Since when it is in that call.
    inside_since: Option<Instant>,
}

/// What is known on this rank.
#[derive(Debug)]
struct Doing {
    groups: Vec<Calls>,
    /// A call has broken here.
    alarmed: bool,
    end: Option<End>,
    /// The end is in the store.
    end_is_told: bool,
    verdict: Option<(String, Instant)>,
    /// When the store last answered.
    answered: Instant,
}

impl Watch {
    /// Begins to beat.
    pub(super) fn start(store: &Store, here: Whereabouts, end: fn(&Error)) -> Result<Self> {
        let store = store.reconnect()?;
        let doing = Doing {
            groups: Vec::new(),
            alarmed: false,
            end: None,
            end_is_told: false,
            verdict: None,
            answered: Instant::now(),
        };
        let shared = Arc::new(Shared { here, doing: Mutex::new(doing) });
        let trouble = |error| Error::device(format!("cannot start a thread to watch the other ranks: {error}"));
        let (beating, guarding) = (Arc::clone(&shared), Arc::clone(&shared));
        let beat = Builder::new().name("beat".into()).spawn(move || beating.beat(&store)).map_err(trouble)?;
        Builder::new().name("guard".into()).spawn(move || guarding.guard(end)).map_err(trouble)?;
        Ok(Self { shared, beating: Mutex::new(Some(beat)) })
    }

    /// A further group of the same ranks; its number, for [`Watch::enter`].
    pub(super) fn add_group(&self) -> usize {
        let mut doing = self.shared.doing();
        doing.groups.push(Calls { begun: 0, last: "nothing", inside_since: None });
        doing.groups.len() - 1
    }

    /// Says that this rank goes into a call of a group.
    pub(super) fn enter(&self, group: usize, call: &'static str) {
        let calls = &mut self.shared.doing().groups[group];
        calls.begun += 1;
        calls.last = call;
        calls.inside_since = Some(Instant::now());
    }

    /// Says that the call has returned.
    pub(super) fn leave(&self, group: usize) {
        self.shared.doing().groups[group].inside_since = None;
    }

    /// Whether all are alive, as far as is known.
    ///
    /// # Errors
    /// Some rank is lost.
    pub(super) fn check(&self) -> Result<()> {
        match &self.shared.doing().verdict {
            Some((verdict, _)) => Err(lost(verdict)),
            None => Ok(()),
        }
    }

    /// Why a call broke: waits until it is known which rank is gone. An error that is this rank's own stays as it is.
    pub(super) fn explain(&self, error: Error) -> Error {
        if !is_of_another_rank(&error) {
            return error;
        }
        let started = Instant::now();
        self.shared.doing().alarmed = true;
        // From a beat that is missed to a verdict that all have read.
        let patience = self.shared.here.alarmed_silence() + 5 * BEAT + GRACE;
        loop {
            if let Err(verdict) = self.check() {
                return verdict;
            }
            if started.elapsed() > patience {
                return error.with_hint(START_AGAIN);
            }
            thread::sleep(GUARD);
        }
    }

    /// Says that this rank has failed, while it still puts its things in order.
    pub(super) fn fail(&self, error: &Error) {
        let mut doing = self.shared.doing();
        let of_others = doing.verdict.is_some() || is_of_another_rank(error);
        doing.end.get_or_insert(match of_others {
            true => End::Followed(error.to_string()),
            false => End::Failed(error.to_string()),
        });
    }

    /// Says how this rank ends. Whoever keeps the store waits for the others to have read what they need of it.
    pub(super) fn part(&self, outcome: Result<(), &Error>) {
        let is_orderly = matches!(outcome, Ok(()) | Err(Error::Interrupted { .. }));
        match outcome {
            Err(error) if !is_orderly => self.fail(error),
            _ => _ = self.shared.doing().end.get_or_insert(End::Done),
        }
        let started = Instant::now();
        let patience = if is_orderly { self.shared.here.timeout } else { LINGER };
        while !self.shared.has_parted() && started.elapsed() < patience {
            thread::sleep(GUARD / 4);
        }
        // A beating thread that is stuck in the store must not hold up the end.
        let beating = self.beating.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = beating.filter(|_| self.shared.has_parted()) {
            let _ = thread.join(); // it ends by itself
        }
    }
}

impl Shared {
    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_parted(&self) -> bool {
        self.doing().end_is_told
    }

    /// The thread that talks to the store.
    fn beat(&self, store: &Store) {
        let mut next = Neighbour::after(self.here.rank, self.here.size);
        let interval = BEAT.min(self.here.timeout / 10);
        for number in 0.. {
            if let Err(error) = self.beat_once(store, number, &mut next) {
                self.judge_store(&error);
                return;
            }
            if self.has_parted() {
                return;
            }
            let slept = Instant::now();
            thread::sleep(GUARD.min(interval) / 4);
            while slept.elapsed() < interval && self.doing().end.is_none() {
                thread::sleep(GUARD.min(interval) / 4);
            }
        }
    }

    fn beat_once(&self, store: &Store, number: u64, next: &mut Neighbour) -> Result<()> {
        let (beat, waits, alarmed) = {
            let doing = self.doing();
            let calls = doing.groups.iter().map(|calls| (calls.begun, calls.last.to_owned())).collect();
            let beat = Beat { number, calls, end: doing.end.clone(), process: std::process::id() };
            let is_long = |calls: &Calls| calls.inside_since.is_some_and(|since| since.elapsed() > self.here.timeout);
            (beat, doing.groups.iter().position(is_long), doing.alarmed)
        };
        store.set(&key(self.here.rank), serde_json::json!(beat).to_string().as_bytes())?;
        if alarmed {
            store.set("alarm", b"1")?;
        }
        if store.has("verdict")? {
            let verdict = String::from_utf8_lossy(&store.get("verdict")?).into_owned();
            self.doing().verdict.get_or_insert((verdict, Instant::now()));
        }
        self.doing().answered = Instant::now();
        if beat.end.is_some() && (!self.here.keeps_store() || self.all_have_ended(store)?) {
            self.doing().end_is_told = true;
            return Ok(());
        }
        let silence = if store.has("alarm")? { self.here.alarmed_silence() } else { self.here.silence() };
        if let Some(verdict) = next.look(store, silence)? {
            self.judge(store, &verdict)?;
            // All that is left to say is said; who has failed stays a little, for the others to read why.
            self.doing().end_is_told |= beat.end == Some(End::Done);
        }
        if let Some(group) = waits
            && self.doing().verdict.is_none()
            && store.add("judges", 1)? == 1
        {
            let verdict = self.find_laggards(store, &beat, group)?;
            self.judge(store, &verdict)?;
        }
        Ok(())
    }

    /// The first verdict stands.
    fn judge(&self, store: &Store, verdict: &str) -> Result<()> {
        if store.add("verdicts", 1)? == 1 {
            store.set("verdict", verdict.as_bytes())?;
            self.doing().verdict.get_or_insert((verdict.to_owned(), Instant::now()));
        }
        Ok(())
    }

    /// The store does not answer any more.
    fn judge_store(&self, error: &Error) {
        let mut doing = self.doing();
        if doing.end.is_some() {
            doing.end_is_told = true; // nobody is left to read it
            return;
        }
        let (rank, at) = (self.here.rank, &self.here.store_is_at);
        let verdict =
            format!("rank 0, which keeps the store at {at}, is gone, or rank {rank} is cut off from it ({error})");
        doing.verdict.get_or_insert((verdict, Instant::now()));
    }

    /// Which ranks have not come to the call of a group in which this one waits.
    fn find_laggards(&self, store: &Store, own: &Beat, group: usize) -> Result<String> {
        let mut behind = Vec::new();
        let (begun, call) = &own.calls[group];
        let mut last = (0, String::new());
        for rank in 0..self.here.size {
            let beat = read(store, rank)?.unwrap_or_default();
            let calls = beat.calls.get(group).cloned().unwrap_or_default();
            if calls.0 < *begun {
                behind.push(rank);
                last = calls;
            }
        }
        let waited = self.here.timeout.as_secs_f64();
        Ok(match behind.len() {
            0 => format!(
                "all ranks have been in the same call ({call}) for {waited:.0} s: the network between them is cut, or too slow"
            ),
            _ => format!(
                "{} did not come to a call ({call}) in which rank {} has waited for {waited:.0} s: nothing is heard of it after its \
                 call number {} ({})",
                words(&behind),
                self.here.rank,
                last.0,
                last.1
            ),
        })
    }

    fn all_have_ended(&self, store: &Store) -> Result<bool> {
        for rank in 0..self.here.size {
            if read(store, rank)?.is_none_or(|beat| beat.end.is_none()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The thread that ends the process where the training one cannot.
    fn guard(&self, end: fn(&Error)) {
        loop {
            thread::sleep(GUARD);
            let mut doing = self.doing();
            if doing.end_is_told {
                return;
            }
            let silent_for = doing.answered.elapsed();
            if doing.verdict.is_none() && silent_for > self.here.silence() + BEAT {
                let (rank, at) = (self.here.rank, &self.here.store_is_at);
                let verdict = format!(
                    "rank {rank} has had no answer from the store at {at} for {:.0} s: it is cut off, or rank 0 is, which keeps the store",
                    silent_for.as_secs_f64()
                );
                doing.verdict = Some((verdict, Instant::now()));
            }
            let Some((verdict, since)) = &doing.verdict else { continue };
            let grace = if self.here.keeps_store() { GRACE + LINGER } else { GRACE };
            // Where it ends by itself it says so, unless it got stuck on the way.
            let patience = if doing.end.is_some() { grace + LINGER } else { grace };
            if since.elapsed() > patience {
                let error = lost(verdict);
                drop(doing);
                end(&error);
                return;
            }
        }
    }
}

/// The rank that this one looks at.
struct Neighbour {
    own: usize,
    size: usize,
    rank: usize,
    last: Option<Beat>,
    changed: Instant,
}

impl Neighbour {
    fn after(own: usize, size: usize) -> Self {
        Self { own, size, rank: (own + 1) % size, last: None, changed: Instant::now() }
    }

    /// Reads its beat; a verdict if it is gone.
    fn look(&mut self, store: &Store, silence: Duration) -> Result<Option<String>> {
        if self.rank == self.own {
            return Ok(None); // all others have ended
        }
        let beat = read(store, self.rank)?;
        if beat != self.last {
            (self.last, self.changed) = (beat, Instant::now());
        }
        let rank = self.rank;
        let process = self.last.as_ref().map_or(0, |beat| beat.process);
        match self.last.as_ref().and_then(|beat| beat.end.as_ref()) {
            Some(End::Failed(what)) => {
                return Ok(Some(format!("rank {rank} (process {process}) ended by an error: {what}")));
            }
            // Whose fault it was must be known by now.
            Some(End::Followed(what)) if !store.has("verdict")? => {
                return Ok(Some(format!("rank {rank} (process {process}) ended by a call that broke: {what}")));
            }
            Some(End::Done | End::Followed(_)) => {
                *self = Self { rank: (rank + 1) % self.size, last: None, changed: Instant::now(), ..*self };
                return Ok(None);
            }
            None => {}
        }
        if self.changed.elapsed() <= silence {
            return Ok(None);
        }
        let silent: Vec<usize> = self.silent_row(store)?;
        Ok(Some(format!(
            "{} (process {process}) gave no sign of life for {}: dead, frozen, or cut off from the store",
            words(&silent),
            super::seconds(self.changed)
        )))
    }

    /// This neighbour, and those after it that are silent as well, as when a whole machine is gone: they have a beat's time to move.
    fn silent_row(&self, store: &Store) -> Result<Vec<usize>> {
        let after: Vec<usize> =
            (1..self.size).map(|far| (self.rank + far) % self.size).take_while(|&rank| rank != self.own).collect();
        if after.is_empty() {
            return Ok(vec![self.rank]);
        }
        let mut before = Vec::with_capacity(after.len());
        for &rank in &after {
            before.push(read(store, rank)?);
        }
        thread::sleep(BEAT + BEAT / 2);
        let mut silent = vec![self.rank];
        for (&rank, before) in after.iter().zip(before) {
            if read(store, rank)? != before {
                break;
            }
            silent.push(rank);
        }
        Ok(silent)
    }
}

fn key(rank: usize) -> String {
    format!("beat-{rank}")
}

fn read(store: &Store, rank: usize) -> Result<Option<Beat>> {
    let key = key(rank);
    if !store.has(&key)? {
        return Ok(None);
    }
    let text = store.get(&key)?;
    serde_json::from_slice(&text).map(Some).map_err(|error| Error::device(format!("the beat of rank {rank}: {error}")))
}

fn lost(verdict: &str) -> Error {
    Error::device(verdict.to_owned()).with_hint(START_AGAIN)
}
