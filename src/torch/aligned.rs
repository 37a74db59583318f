//! Numbers that start where a line of the cache does: vectors of 64 bytes that cross two lines cost twice as much to read.

use std::ops::{Deref, DerefMut};

const LINE: usize = 64;

/// A fixed number of bytes, or of numbers as small, from the start of a line on.
#[derive(Debug)]
pub struct Aligned<T> {
    store: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy> Aligned<T> {
    /// `len` times `value`.
    pub fn new(value: T, len: usize) -> Self {
        let store = vec![value; len + LINE];
        let start = store.as_ptr().align_offset(LINE);
        Self { store, start, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.store[self.start..][..self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.store[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_with_a_line() {
        for len in [0, 1, 63, 4_096] {
            let numbers = Aligned::new(7_i8, len);
            assert_eq!((numbers.len(), numbers.as_ptr().align_offset(LINE)), (len, 0));
            assert!(numbers.iter().all(|&number| number == 7));
        }
    }
}
