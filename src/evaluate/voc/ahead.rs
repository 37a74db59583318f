//! Work done ahead of where it is needed: photographs are decoded while the network trains on those before them.

use crate::error::Result;
use std::sync::mpsc::sync_channel;

/// Makes `make(first)` to `make(end - 1)` on a thread of its own, a few ahead of `take`, which says whether to go on.
pub(super) fn ahead<T: Send>(
    (first, end): (u64, u64),
    make: impl Fn(u64) -> Result<T> + Send,
    mut take: impl FnMut(u64, T) -> Result<bool>,
) -> Result<()> {
    const AHEAD: usize = 3;
    std::thread::scope(|scope| {
        let (give, receive) = sync_channel(AHEAD);
        scope.spawn(move || {
            for number in first..end {
                // Nobody takes any more: the other side has an error or has been stopped.
                if give.send(make(number)).is_err() {
                    return;
                }
            }
        });
        // The thread is done with once `receive` is dropped, which is at the end of this closure.
        for (number, made) in (first..end).zip(receive) {
            if !take(number, made?)? {
                break;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_is_made_ahead_comes_in_order_and_ends_early_or_with_an_error() -> Result<()> {
        let mut seen = Vec::new();
        ahead(
            (2, 6),
            |number| Ok(10 * number),
            |number, made| {
                seen.push((number, made));
                Ok(number < 4)
            },
        )?;
        assert_eq!(seen, [(2, 20), (3, 30), (4, 40)]);
        let broken =
            ahead((0, 9), |number| if number < 3 { Ok(()) } else { Err(Error::data("gone")) }, |_, ()| Ok(true));
        assert!(broken.is_err());
        Ok(())
    }
}
