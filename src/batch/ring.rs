//! The ring of slots: as many blocks of host memory as batches may be under way at once.
//!
//! Slots are allocated once, pinned if asked, and go round: free, being filled, waiting for the trainer, being read,
//! free. A slot comes home by itself when it is dropped, wherever that is, so that none is lost on an error path.
//! Whoever waits for a free slot waits until one comes home or the ring is closed.

use crate::error::Result;
use crate::torch::HostBuffer;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How much memory a ring holds: `slots × rows × size × size × 3` bytes for each view of a photograph.
#[derive(Clone, Copy, Debug)]
pub struct RingPlan {
    /// Batches under way at once: one being filled, one waiting, one being read.
    pub slots: usize,
    /// Photographs in a batch.
    pub rows: usize,
    /// Side of a view, in pixels.
    pub size: u32,
    /// Center views of each photograph; 0 for none.
    pub center: usize,
    /// Whether batches have train views.
    pub train: bool,
    /// Page-locked memory, from which CUDA copies without blocking.
    pub pinned: bool,
}

/// Reusable slots. Clones share them.
#[derive(Clone, Debug)]
pub struct Ring {
    plan: RingPlan,
    home: Arc<Home>,
}

/// Memory for one batch: `[B, S, S, 3]` uint8 for each view that is wanted.
#[derive(Debug)]
pub struct Slot {
    /// Center views: short side resized, center crop.
    pub(super) center: Option<HostBuffer>,
    /// Train views: random resized crop and flip.
    pub(super) train: Option<HostBuffer>,
    rows: usize,
    centers: usize,
    size: u32,
    home: Arc<Home>,
}

#[derive(Debug)]
struct Home {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<Buffers>,
    closed: bool,
}

#[derive(Debug)]
struct Buffers {
    center: Option<HostBuffer>,
    train: Option<HostBuffer>,
}

impl Ring {
    /// Allocates every slot.
    ///
    /// # Errors
    ///
    /// When libtorch has no such memory, or cannot pin it.
    pub fn new(plan: RingPlan) -> Result<Self> {
        let buffer = |views: usize| {
            let bytes = plan.rows * views * view_bytes(plan.size);
            (views > 0).then(|| HostBuffer::new(bytes, plan.pinned)).transpose()
        };
        let mut free = Vec::with_capacity(plan.slots);
        for _ in 0..plan.slots {
            free.push(Buffers { center: buffer(plan.center)?, train: buffer(usize::from(plan.train))? });
        }
        let home = Home { state: Mutex::new(State { free, closed: false }), changed: Condvar::new() };
        Ok(Self { plan, home: Arc::new(home) })
    }

    /// What it was made of.
    pub fn plan(&self) -> &RingPlan {
        &self.plan
    }

    /// Waits for a free slot; none once the ring is closed.
    pub fn take(&self) -> Option<Slot> {
        let mut state = self.home.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(Buffers { center, train }) = state.free.pop() {
                let RingPlan { rows, size, center: centers, .. } = self.plan;
                return Some(Slot { center, train, rows, centers, size, home: Arc::clone(&self.home) });
            }
            state = self.home.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends all waiting, now and later. Slots that are under way stay good.
    pub fn close(&self) {
        self.home.lock().closed = true;
        self.home.changed.notify_all();
    }
}

impl Home {
    /// The state is whole between any two statements, so a panic elsewhere while it was held does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Photographs that it has room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Side of a view, in pixels.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether it has center views.
    pub fn has_center(&self) -> bool {
        self.center.is_some()
    }

    /// Whether it has train views.
    pub fn has_train(&self) -> bool {
        self.train.is_some()
    }

    /// Center views of each photograph.
    pub fn centers(&self) -> usize {
        self.centers
    }

    /// Bytes of one view of one photograph.
    pub fn view_bytes(&self) -> usize {
        view_bytes(self.size)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let buffers = Buffers { center: self.center.take(), train: self.train.take() };
        self.home.lock().free.push(buffers);
        self.home.changed.notify_one();
    }
}

fn view_bytes(size: u32) -> usize {
    size as usize * size as usize * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ring(slots: usize) -> Ring {
        let plan = RingPlan { slots, rows: 2, size: 4, center: 1, train: false, pinned: false };
        Ring::new(plan).expect("a few bytes")
    }

    #[test]
    fn a_slot_has_the_views_that_were_asked_for() {
        let slot = ring(1).take().expect("it is free");
        assert_eq!(slot.center.as_ref().map(HostBuffer::len), Some(2 * 4 * 4 * 3));
        assert!(slot.train.is_none());
    }

    #[test]
    fn a_dropped_slot_wakes_who_waits_with_the_same_memory() {
        let ring = ring(1);
        let mut slot = ring.take().expect("it is free");
        slot.center.as_mut().expect("asked for").as_mut_slice()[7] = 42;
        let waiting = std::thread::spawn({
            let ring = ring.clone();
            move || ring.take()
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished(), "there is but one slot");
        drop(slot);
        let mut again = waiting.join().expect("no panic").expect("it came home");
        assert_eq!(again.center.as_mut().expect("asked for").as_mut_slice()[7], 42);
    }

    #[test]
    fn closing_ends_the_wait() {
        let ring = ring(1);
        let held = ring.take();
        let waiting = std::thread::spawn({
            let ring = ring.clone();
            move || ring.take().is_none()
        });
        std::thread::sleep(Duration::from_millis(20));
        ring.close();
        assert!(waiting.join().expect("no panic"));
        drop(held);
        assert!(ring.take().is_none(), "closed for good");
    }
}
