//! Panics as errors: a defect in a stage ends the run with the name of the stage, and leaves no other stage waiting.

use crate::error::{Error, Result};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`; a panic in it becomes [`Error::Stage`].
///
/// What `work` borrows may be half changed after a panic: only drop it then.
pub(super) fn guard<T>(stage: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(stage_error(stage, &*panic)))
}

/// The error for what a panic carried.
pub(super) fn stage_error(stage: &'static str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let what = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Error::Stage { stage, what: what.unwrap_or_else(|| "a panic without words".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_names_its_stage_and_ends_with_1() {
        let error = guard::<()>("train", || panic!("index {} of nothing", 7)).expect_err("it panics");
        assert_eq!(error.to_string(), "the train stage failed: index 7 of nothing");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn results_pass_through() {
        assert_eq!(guard("train", || Ok(3)).expect("a value"), 3);
        assert_eq!(guard::<()>("train", || Err(Error::data("gone"))).expect_err("an error").exit_code(), 3);
    }
}
