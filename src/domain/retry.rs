//! When a failed job is tried again. The only place that uses `backoff`.

use std::time::Duration;

use backoff::{ExponentialBackoff, backoff::Backoff};

/// The three kinds of failure; each has its own consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// May succeed next time: an attempt is used, the job waits and is tried again.
    Transient,
    /// No retry can mend it: dead letter at once.
    Permanent,
    /// A store or device is away: no attempt is used, the job goes back to its place.
    Infrastructure,
}

/// Delay = min(max, base · 2^(attempt−1)), with at most ±10 % jitter, until the attempts
/// are used up.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts that a job has in all, at least 1.
    pub max_attempts: u32,
    /// Delay after the first failed attempt.
    pub base: Duration,
    /// The longest delay.
    pub max: Duration,
}

/// The share by which a delay is spread, so that jobs that failed together do not return
/// together.
const JITTER: f64 = 0.1;

impl RetryPolicy {
    /// How long to wait after the `attempt`-th failed attempt (from 1); `None` when it was
    /// the last one.
    pub fn delay(&self, attempt: u32) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let mut steps = self.steps(JITTER);
        // The crate's state is its next interval; it is at its cap long before step 64.
        (0..attempt.clamp(1, 64)).fold(None, |_, _| steps.next_backoff())
    }

    fn steps(&self, jitter: f64) -> ExponentialBackoff {
        ExponentialBackoff {
            current_interval: self.base.min(self.max),
            initial_interval: self.base.min(self.max),
            randomization_factor: jitter,
            multiplier: 2.0,
            max_interval: self.max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 8,
            base: Duration::from_secs(10),
            max: Duration::from_secs(300),
        }
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut steps = policy().steps(0.0);
        let delays: Vec<u64> = (0..7).map(|_| steps.next_backoff().unwrap().as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn the_last_attempt_has_no_successor() {
        assert!(policy().delay(7).is_some());
        assert_eq!(policy().delay(8), None);
        assert_eq!(policy().delay(9), None);
    }

    proptest! {
        #[test]
        fn jitter_stays_within_a_tenth(attempt in 1_u32..8) {
            let exact = (10.0 * f64::from(1 << (attempt - 1))).min(300.0);
            let delay = policy().delay(attempt).unwrap().as_secs_f64();
            prop_assert!((delay - exact).abs() <= exact * 0.1 + 1e-6, "{delay} for {exact}");
        }
    }
}
