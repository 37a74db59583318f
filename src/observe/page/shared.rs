//! What the handlers of the page share: the run, what has been read of it, and the few places for work that takes time.

use super::album::Album;
use super::answer::Refused;
use super::guard::Guard;
use super::tail::Tail;
use super::{Opening, UnderWay, state};
use crate::cluster::assignments::{self, Assignments};
use crate::config::Plan;
use crate::error::Result;
use crate::observe::Rates;
use crate::train::record::Record;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::spawn_blocking;

/// Shared by all handlers.
pub(super) struct Shared {
    pub(super) guard: Guard,
    pub(super) run: PathBuf,
    pub(super) plan: Plan,
    pub(super) under_way: Option<UnderWay>,
    pub(super) album: Album,
    /// Held by the search for photographs that goes on, also when nobody waits for it any more.
    pub(super) search: Arc<tokio::sync::Mutex<()>>,
    tail: Mutex<Tail>,
    rates: Mutex<Rates>,
    /// The newest assignments that were asked for, and their step.
    assignments: Mutex<Option<(u64, Arc<Assignments>)>>,
}

impl Shared {
    pub(super) fn new(guard: Guard, opening: Opening) -> Self {
        let Opening { run, plan, under_way, photographs } = opening;
        Self {
            guard,
            tail: Mutex::new(Tail::of(&run)),
            run,
            plan,
            under_way,
            album: Album::new(photographs),
            search: Arc::default(),
            rates: Mutex::default(),
            assignments: Mutex::default(),
        }
    }

    pub(super) fn rates(&self) -> MutexGuard<'_, Rates> {
        lock(&self.rates)
    }

    /// Gives `look` all records so far.
    pub(super) fn with_records<T>(&self, look: impl FnOnce(&[Record]) -> T) -> Result<T> {
        lock(&self.tail).read_on().map(look)
    }

    /// The step and the assignments of the last cycle that is told of; none before the first.
    pub(super) fn assignments(&self) -> Result<Option<(u64, Arc<Assignments>)>> {
        let last = self.with_records(|records| state::last_cycle(records).map(|cycle| cycle.step))?;
        let Some(step) = last else { return Ok(None) };
        let mut known = lock(&self.assignments);
        if let Some((of, found)) = &*known
            && *of == step
        {
            return Ok(Some((step, Arc::clone(found))));
        }
        let found = Arc::new(Assignments::read(&assignments::of_cycle(&self.run, Some(step))?)?);
        *known = Some((step, Arc::clone(&found)));
        Ok(Some((step, found)))
    }

    /// Does something that takes time where it holds up no other answer.
    pub(super) async fn work<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        spawn_blocking(move || work(&self)).await.map_err(|error| Refused::defect(&error))?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
