//! The order of arrival: the next sample is of whichever open shard has one.
//!
//! Lanes are asked in turn, those with nothing are passed over. One that has had nothing for a second (a slow server, a reader in
//! back-off) is late: another shard is opened in its place, up to twice as many as there are lanes, and what the late one
//! gives is taken when it comes. When every open shard is late, samples leave the shuffle buffer without others entering;
//! the end of a pass, too, waits for its last shards only once the buffer is empty. Every choice goes to the [`Log`], from which a
//! restart goes the same way again.

use super::super::buffer::Waiter;
use super::super::cursor::damaged;
use super::super::lane::Lane;
use super::super::trail::Log;
use super::{Pass, passing};
use crate::error::Result;
use crate::shards::sample::Step;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How often a waiting stream looks whether lanes are late.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Pass {
    /// Lets samples enter as they come.
    pub(super) async fn fill_by_arrival(&mut self, log: &mut Log) -> Result<()> {
        for _ in 0..self.buffer.entering(self.rules.shuffle) {
            if !self.buffer.has_room(self.rules.shuffle_bytes) {
                break;
            }
            match self.arrive().await? {
                Some((portion, waiter)) => {
                    log.entered(portion);
                    self.buffer.push(waiter);
                }
                None => break,
            }
        }
        if !self.buffer.is_empty() {
            log.left();
        }
        Ok(())
    }

    /// Lets those samples enter that entered before the restart.
    pub(super) async fn fill_as_before(&mut self, log: &mut Log) -> Result<()> {
        while let Some(portion) = log.entered_before() {
            let waiter = self.enter_from(portion).await?;
            self.buffer.push(waiter);
        }
        Ok(())
    }

    /// The next sample to come, with the number of its portion; none when all portions have ended, or are late while others can leave.
    async fn arrive(&mut self) -> Result<Option<(u32, Waiter)>> {
        loop {
            self.open_beside_late_lanes()?;
            if self.lanes.is_empty() {
                return Ok(None);
            }
            let arrived = match self.find_ready() {
                Some(arrived) => Some(arrived),
                None if !self.buffer.is_empty() && self.lanes.iter().all(Lane::is_late) => return Ok(None),
                None => self.wait_for_any().await,
            };
            let Some((index, received)) = arrived else { continue };
            let (step, ordinal) = received?;
            let portion = self.lanes[index].number;
            if let Some(waiter) = self.take_step(index, step, ordinal)? {
                return Ok(Some((portion, waiter)));
            }
        }
    }

    /// Keeps `lanes` shards open that are not late, as long as there is room and a shard.
    fn open_beside_late_lanes(&mut self) -> Result<()> {
        let mut on_time = self.lanes.iter().filter(|lane| !lane.is_late()).count();
        while on_time < self.rules.lanes && self.lanes.len() < self.rules.most_open() {
            match self.take_portion()? {
                Some(lane) => self.lanes.push(lane),
                None => break,
            }
            on_time += 1;
        }
        Ok(())
    }

    /// The first lane from the turn on that has something, and what.
    fn find_ready(&mut self) -> Option<(usize, Result<(Step, u64)>)> {
        let count = self.lanes.len();
        for index in (self.turn..count).chain(0..self.turn) {
            let lane = &mut self.lanes[index];
            if let Some(step) = lane.reader.try_step() {
                lane.empty_since = None;
                return Some((index, step));
            }
            lane.empty_since.get_or_insert_with(Instant::now);
        }
        None
    }

    /// Waits a while for any of the lanes.
    async fn wait_for_any(&mut self) -> Option<(usize, Result<(Step, u64)>)> {
        let reading = Arc::clone(self.lanes.get(self.turn)?.reader.reading());
        let shared = Arc::clone(&self.shared);
        let _waiting = shared.progress.wait_for(&reading);
        let any = poll_fn(|context| {
            for (index, lane) in self.lanes.iter_mut().enumerate() {
                if let Poll::Ready(step) = lane.reader.poll_step(context) {
                    lane.empty_since = None;
                    return Poll::Ready((index, step));
                }
            }
            Poll::Pending
        });
        timeout(LOOK_EVERY, any).await.ok()
    }

    /// The next sample of a portion, opened if it is not. One that is no longer there leaves a gap, so that the draws stay the same.
    async fn enter_from(&mut self, portion: u32) -> Result<Waiter> {
        let Some(&whole) = self.order.get(portion as usize) else { return Err(damaged()) };
        while self.taken <= portion as usize {
            match self.take_portion()? {
                Some(lane) => self.lanes.push(lane),
                None => return Err(damaged()),
            }
        }
        loop {
            let Some(index) = self.lanes.iter().position(|lane| lane.number == portion) else {
                return Ok(Waiter::gap(whole.shard));
            };
            let (step, ordinal) = self.lanes[index].reader.step().await?;
            if let Some(trouble) = passing(&step) {
                return Err(self.cannot_go_on(whole.shard, trouble));
            }
            if let Some(waiter) = self.take_step(index, step, ordinal)? {
                return Ok(waiter);
            }
        }
    }
}
