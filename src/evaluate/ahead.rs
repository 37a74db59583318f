//! Work done on another thread, a few pieces ahead: photographs are read and resized while the network computes.
//!
//! In: things, and how to make something of each. Out: what was made, in order. The first error of either side ends both.

use crate::error::Result;
use std::sync::mpsc::sync_channel;

/// Pieces made ahead.
const AHEAD: usize = 4;

/// Makes something of each item and hands it to `take`, in order, until there are none left or `take` says false.
pub(super) fn ahead<T: Send, V: Send>(
    items: impl Iterator<Item = T> + Send,
    make: impl Fn(T) -> Result<V> + Send,
    mut take: impl FnMut(V) -> Result<bool>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || {
            for item in items {
                let made = make(item);
                let is_last = made.is_err();
                // Where nobody takes any more, nothing is to be made.
                if sender.send(made).is_err() || is_last {
                    return;
                }
            }
        });
        for made in receiver {
            if !take(made?)? {
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
    fn everything_comes_in_order_until_one_side_has_enough() {
        let mut taken = Vec::new();
        ahead(
            0..100,
            |item| Ok(2 * item),
            |made| {
                Ok({
                    taken.push(made);
                    made < 40
                })
            },
        )
        .expect("no error");
        assert_eq!(taken, (0..=20).map(|item| 2 * item).collect::<Vec<_>>());
        let failing = |item: i32| if item < 3 { Ok(item) } else { Err(Error::data("three")) };
        let mut count = 0;
        let error = ahead(0..100, failing, |_| {
            Ok({
                count += 1;
                true
            })
        })
        .expect_err("the third fails");
        assert_eq!((error.to_string().as_str(), count), ("three", 3));
        assert!(ahead(0.., Ok, |_: i32| Err(Error::data("taker"))).is_err());
    }
}
