//! The learning rate over steps.

use crate::config::{Schedule, TrainPlan};
use std::f64::consts::PI;

/// The learning rate of step `step`, counted from 0: warm-up first, then the schedule.
pub fn learning_rate(plan: &TrainPlan, step: u64) -> f64 {
    if step < plan.warmup_steps {
        return plan.lr * (step + 1) as f64 / plan.warmup_steps as f64;
    }
    match plan.schedule {
        Schedule::Constant => plan.lr,
        Schedule::Step => plan.lr * plan.lr_gamma.powf((step / plan.lr_step_size) as f64),
        Schedule::Cosine => {
            let steps = plan.steps.saturating_sub(plan.warmup_steps).max(1);
            let done = (step - plan.warmup_steps).min(steps) as f64 / steps as f64;
            plan.lr * 0.5 * (1.0 + (PI * done).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(schedule: Schedule) -> TrainPlan {
        TrainPlan { lr: 1.0, steps: 110, warmup_steps: 10, schedule, lr_step_size: 50, ..TrainPlan::default() }
    }

    #[test]
    fn warms_up_to_the_full_rate() {
        let plan = plan(Schedule::Constant);
        assert!((learning_rate(&plan, 0) - 0.1).abs() < 1e-12);
        assert!((learning_rate(&plan, 9) - 1.0).abs() < 1e-12);
        assert!((learning_rate(&plan, 1_000_000) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn cosine_ends_at_zero_and_halves_in_the_middle() {
        let plan = plan(Schedule::Cosine);
        assert!((learning_rate(&plan, 60) - 0.5).abs() < 1e-12);
        assert!(learning_rate(&plan, 110).abs() < 1e-12);
    }

    #[test]
    fn steps_multiply() {
        let plan = plan(Schedule::Step);
        assert!((learning_rate(&plan, 49) - 1.0).abs() < 1e-12);
        assert!((learning_rate(&plan, 100) - 0.01).abs() < 1e-12);
    }
}
