//! Bytes that can be looked at before they are taken.
//!
//! A zip tells some of its sizes only behind the data, so that its reader must see what follows before it knows whether the data
//! have ended. Memory: what is held, some 64 KiB, or as much as was asked to be looked at.

use super::super::input::Input;
use super::super::reason::Trouble;

/// Bytes taken from the input at once.
const CHUNK: usize = 64 * 1024;

pub(super) struct Lookahead {
    input: Input,
    held: Vec<u8>,
    /// How many of the held bytes have been taken.
    taken: usize,
}

impl Lookahead {
    /// An input of which these bytes have come already.
    pub(super) fn new(input: Input, held: Vec<u8>) -> Self {
        Self { input, held, taken: 0 }
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// The next byte to take.
    pub(super) fn position(&self) -> u64 {
        self.input.position() - (self.held.len() - self.taken) as u64
    }

    /// What comes next: `count` bytes or more, fewer only at the end.
    pub(super) fn peek(&mut self, count: usize) -> &[u8] {
        let held = self.held.len() - self.taken;
        if held < count {
            self.held.drain(..self.taken);
            self.taken = 0;
            self.input.read((count - held).max(CHUNK) as u64, &mut self.held);
        }
        &self.held[self.taken..]
    }

    /// Takes bytes that were looked at.
    pub(super) fn take(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.held.len());
    }

    /// Passes over up to `count` bytes: fewer only at the end.
    pub(super) fn skip(&mut self, count: u64) -> u64 {
        let held = ((self.held.len() - self.taken) as u64).min(count);
        self.take(held as usize);
        if held == count {
            return count;
        }
        held + self.input.skip(count - held)
    }

    /// Goes to a byte; backwards only where the input can.
    pub(super) fn go_to(&mut self, offset: u64) -> Result<(), Trouble> {
        if let Some(distance) = offset.checked_sub(self.position())
            && distance <= (self.held.len() - self.taken) as u64
        {
            self.take(distance as usize);
            return Ok(());
        }
        self.held.clear();
        self.taken = 0;
        self.input.go_to(offset)
    }
}
