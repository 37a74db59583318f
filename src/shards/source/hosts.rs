//! How many requests each host bears at once, learnt from its answers.
//!
//! In: the outcome of every request to a host. Out: [`Slot`]s, one for each request in flight, handed out in the order they are
//! asked for. A refusal (429, 503, no connection) halves the number that a host gets; every answer raises it by a
//! little, up to `fetch.connections`: additive increase, multiplicative decrease, as TCP does. Requests that were sent before the
//! number was lowered do not lower it again. A refusal that names a time keeps all others out until it has passed
//! (`rest.rs`), for `fetch.max_pause_s` at most. A second request for the same bytes gets a slot only where the host bears as
//! much as it may get and its share is not used up (`usual.rs`). It is known too since when no host answers at all.

use super::rest::Rest;
use super::usual::Usual;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Where nothing answers, fewer attempts at once than this would only make the wait longer.
const LEAST_UNREACHABLE: f64 = 4.0;

/// Every host that was asked for something.
#[derive(Debug)]
pub(super) struct Hosts {
    most: usize,
    longest_pause: Duration,
    known: Mutex<HashMap<String, Arc<Host>>>,
}

impl Hosts {
    /// With so many requests in flight to one host at most, which are kept back for so long at most.
    pub(super) fn new(most: usize, longest_pause: Duration) -> Self {
        Self { most: most.max(1), longest_pause, known: Mutex::default() }
    }

    /// Requests in flight to one host at most.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// The host of this name.
    pub(super) fn named(&self, name: &str) -> Arc<Host> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = known.get(name) {
            return Arc::clone(host);
        }
        let host = Arc::new(Host::new(self.most, self.longest_pause, Rest::of(name)));
        known.insert(name.to_owned(), Arc::clone(&host));
        host
    }

    /// Since when every host that ever answered cannot be reached. None where one of them answered after the others were lost
    /// (that of one that is simply not asked any more says nothing) or asked to be left alone for now, or where none ever answered:
    /// names of hosts may be wrong.
    pub(super) fn outage_since(&self) -> Option<Instant> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut last_lost, mut last_answer) = (None, None);
        for host in known.values() {
            if host.rest.left(self.longest_pause).is_some() {
                return None;
            }
            let state = host.state();
            match (state.answered_at, state.unreachable_since) {
                (None, _) => {}
                (Some(answered_at), None) => last_answer = last_answer.max(Some(answered_at)),
                (Some(_), lost_at) => last_lost = last_lost.max(lost_at),
            }
        }
        last_lost.filter(|&lost_at| last_answer.is_none_or(|answered_at| answered_at < lost_at))
    }
}

/// What one host bears.
#[derive(Debug)]
pub(super) struct Host {
    most: f64,
    longest_pause: Duration,
    state: Mutex<State>,
    room: Notify,
    rest: Arc<Rest>,
}

#[derive(Debug)]
struct State {
    allowed: f64,
    in_flight: usize,
    lowered: Instant,
    /// The last time that the host said anything, once it gave what it was asked for.
    answered_at: Option<Instant>,
    unreachable_since: Option<Instant>,
    usual: Usual,
}

impl Host {
    fn new(most: usize, longest_pause: Duration, rest: Arc<Rest>) -> Self {
        let state = State {
            allowed: most as f64,
            in_flight: 0,
            lowered: Instant::now(),
            answered_at: None,
            unreachable_since: None,
            usual: Usual::default(),
        };
        Self { most: most as f64, longest_pause, state: Mutex::new(state), room: Notify::new(), rest }
    }

    /// Waits until another request may be sent. `rests` hears where the host has asked to be left alone.
    pub(super) async fn enter(self: &Arc<Self>, mut rests: impl FnMut()) -> Slot {
        loop {
            let left = self.room.notified();
            if self.rest.left(self.longest_pause).is_some() {
                // whoever was told of room must not keep that to itself: it may be dropped while it waits
                self.room.notify_one();
                rests();
                self.rest.wait(self.longest_pause).await;
                continue;
            }
            if let Some(slot) = self.try_enter() {
                return slot;
            }
            left.await;
        }
    }

    /// Room for a second request for bytes that are late, where the host refuses nothing and its share is not used up.
    pub(super) fn try_second(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.state();
        if self.rest.left(self.longest_pause).is_some()
            || state.allowed < self.most
            || !state.has_room()
            || !state.usual.spend()
        {
            return None;
        }
        state.in_flight += 1;
        Some(self.slot())
    }

    /// After how long a range is late; none as long as too little is known of the host.
    pub(super) fn late_after(&self) -> Option<Duration> {
        self.state().usual.late_after()
    }

    /// A range took so long, or longer.
    pub(super) fn took(&self, time: Duration) {
        self.state().usual.took(time);
    }

    /// Whether the host ever answered.
    pub(super) fn ever_answered(&self) -> bool {
        self.state().answered_at.is_some()
    }

    fn try_enter(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.state();
        if !state.has_room() {
            return None;
        }
        state.in_flight += 1;
        state.usual.asked();
        if state.has_room() {
            // several that left may have woken only one
            self.room.notify_one();
        }
        Some(self.slot())
    }

    fn slot(self: &Arc<Self>) -> Slot {
        Slot { host: Arc::clone(self), entered: Instant::now() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.in_flight < self.allowed as usize
    }
}

/// One request in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    host: Arc<Host>,
    entered: Instant,
}

impl Slot {
    /// When the request was sent.
    pub(super) fn entered(&self) -> Instant {
        self.entered
    }

    /// All bytes of a range have come.
    pub(super) fn received(&self) {
        self.host.took(self.entered.elapsed());
    }

    /// The host gave what it was asked for.
    pub(super) fn answered(&self) {
        let mut state = self.host.state();
        state.answered_at = Some(Instant::now());
        state.unreachable_since = None;
        state.allowed = (state.allowed + 1.0 / state.allowed).min(self.host.most);
    }

    /// The host has too much to do, and may name a time for which to leave it alone, or cannot be reached.
    pub(super) fn refused(&self, is_unreachable: bool, asked_pause: Option<Duration>) {
        if let Some(pause) = asked_pause {
            self.host.rest.begin(pause);
        }
        let now = Instant::now();
        let mut state = self.host.state();
        let least = if is_unreachable { LEAST_UNREACHABLE.min(self.host.most) } else { 1.0 };
        if self.entered >= state.lowered {
            state.allowed = (state.allowed.min(state.in_flight as f64) / 2.0).max(least);
            state.lowered = now;
        }
        match is_unreachable {
            true => _ = state.unreachable_since.get_or_insert(now),
            false => {
                state.unreachable_since = None;
                state.answered_at = state.answered_at.map(|_| now);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.host.state().in_flight -= 1;
        self.host.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(80);

    fn fill(host: &Arc<Host>) -> Vec<Slot> {
        std::iter::from_fn(|| host.try_enter()).collect()
    }

    #[test]
    fn a_storm_of_refusals_halves_once_and_answers_raise_slowly() {
        let host = Hosts::new(8, LONGEST).named("storm");
        let slots = fill(&host);
        assert_eq!(slots.len(), 8);
        slots.iter().for_each(|slot| slot.refused(false, None));
        drop(slots);
        let slots = fill(&host);
        assert_eq!(slots.len(), 4, "all of them were sent before the first was refused");
        slots[0].refused(false, None);
        drop(slots);
        assert_eq!(fill(&host).len(), 2);
        for round in 0..3 {
            fill(&host).iter().for_each(Slot::answered);
            assert!(fill(&host).len() <= 3 + round);
        }
        assert!(fill(&host).len() >= 4);
        (0..200).for_each(|_| fill(&host).iter().for_each(Slot::answered));
        assert_eq!(fill(&host).len(), 8, "no more than the most");
    }

    #[test]
    fn an_outage_is_one_of_all_hosts_that_ever_answered() {
        let hosts = Hosts::new(8, LONGEST);
        let (good, other, wrong) = (hosts.named("good"), hosts.named("other"), hosts.named("wrong"));
        fill(&wrong)[0].refused(true, None);
        assert!(hosts.outage_since().is_none(), "nothing ever worked");
        fill(&good)[0].answered();
        fill(&other)[0].answered();
        fill(&good)[0].refused(true, None);
        assert!(hosts.outage_since().is_some(), "the other was not asked since");
        fill(&other)[0].answered();
        assert!(hosts.outage_since().is_none(), "one still works");
        fill(&other)[0].refused(true, None);
        assert!(hosts.outage_since().is_some() && good.ever_answered() && !wrong.ever_answered());
        fill(&good)[0].refused(false, None);
        assert!(hosts.outage_since().is_none(), "a refusal is an answer");
    }

    #[tokio::test]
    async fn whoever_waits_gets_room_when_others_leave() {
        let host = Hosts::new(2, LONGEST).named("room");
        let slots = fill(&host);
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                tokio::spawn({
                    let host = Arc::clone(&host);
                    async move { drop(host.enter(|| ()).await) }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(slots);
        for waiter in waiting {
            waiter.await.unwrap();
        }
    }
    #[tokio::test]
    async fn a_host_that_names_a_time_is_left_alone_by_all() {
        let host = Hosts::new(2, LONGEST).named("busy");
        let slots = fill(&host);
        let enter = |host: &Arc<Host>| {
            let host = Arc::clone(host);
            tokio::spawn(async move {
                drop(host.enter(|| ()).await);
                Instant::now()
            })
        };
        let waiting: Vec<_> = (0..5).map(|_| enter(&host)).collect();
        tokio::task::yield_now().await;
        let closed = Instant::now();
        slots[0].refused(false, Some(Duration::from_secs(3_600)));
        assert!(host.try_second().is_none());
        drop(slots);
        let (dropped, late) = (enter(&host), enter(&host));
        tokio::task::yield_now().await;
        // whoever hears of the room first leaves: the others must hear of it all the same
        waiting[0].abort();
        dropped.abort();
        for waiter in waiting.into_iter().skip(1).chain([late]) {
            assert!(waiter.await.unwrap() - closed >= LONGEST, "came within the rest");
        }
    }

    #[test]
    fn while_a_host_rests_there_is_no_outage() {
        let hosts = Hosts::new(8, Duration::from_secs(60));
        let (lost, resting) = (hosts.named("lost"), hosts.named("resting"));
        fill(&lost)[0].answered();
        fill(&resting)[0].answered();
        fill(&lost)[0].refused(true, None);
        assert!(hosts.outage_since().is_some());
        fill(&resting)[0].refused(false, Some(Duration::from_secs(60)));
        fill(&lost)[0].refused(true, None);
        assert!(hosts.outage_since().is_none(), "it said that it is there");
    }

    #[test]
    fn second_requests_need_a_host_that_bears_everything() {
        let host = Hosts::new(2, LONGEST).named("second");
        assert!(host.try_second().is_none(), "nothing is saved up");
        (0..40).for_each(|_| drop(fill(&host)));
        let all = fill(&host);
        assert!(host.try_second().is_none(), "no room");
        drop(all);
        let second = host.try_second().unwrap();
        assert_eq!(fill(&host).len(), 1, "it counts among the requests in flight");
        second.refused(false, None);
        drop(second);
        assert!(host.try_second().is_none(), "the host refuses");
        (0..4).for_each(|_| fill(&host).iter().for_each(Slot::answered));
        assert!(host.try_second().is_some());
    }
}
