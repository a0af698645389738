//! When a failed actor is started again: a pure state machine, without actor or clock.

use std::{collections::VecDeque, time::Duration};

/// At most so many restarts within a period; each waits longer than the one before.
#[derive(Debug, Clone, Copy)]
pub struct RestartIntensity {
    /// Restarts allowed within `period`.
    pub max_restarts: usize,
    /// The period.
    pub period: Duration,
    /// Delay of the second restart within a period; doubles with each further one. The first
    /// has none.
    pub base_delay: Duration,
    /// The longest delay.
    pub max_delay: Duration,
}

/// How often models may hang: each hang leaves a thread behind that may keep a core busy, until the
/// process ends.
pub const HANGS: RestartIntensity = RestartIntensity {
    max_restarts: 3,
    period: Duration::from_secs(3600),
    base_delay: Duration::ZERO,
    max_delay: Duration::ZERO,
};

/// Why a process ends in which models hang more often than that.
pub const HUNG: &str = "models hang, and only the process can end their threads";

impl Default for RestartIntensity {
    fn default() -> Self {
        Self {
            max_restarts: 10,
            period: Duration::from_secs(60),
            base_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
        }
    }
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this delay.
    RestartAfter(Duration),
    /// It fails too often: give up.
    GiveUp,
}

/// The recent failures of one actor.
#[derive(Debug)]
pub struct RestartHistory {
    intensity: RestartIntensity,
    failures: VecDeque<Duration>,
}

impl RestartHistory {
    /// An actor that has not failed yet.
    pub fn new(intensity: RestartIntensity) -> Self {
        Self { intensity, failures: VecDeque::new() }
    }

    /// Notes a failure at `now` (time since any fixed start, never going back) and decides.
    pub fn on_failure(&mut self, now: Duration) -> Decision {
        while self
            .failures
            .front()
            .is_some_and(|&at| now.saturating_sub(at) >= self.intensity.period)
        {
            self.failures.pop_front();
        }
        let recent = self.failures.len();
        if recent >= self.intensity.max_restarts {
            return Decision::GiveUp;
        }
        self.failures.push_back(now);
        let delay = match recent.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => {
                let factor = 2_u32.saturating_pow(doublings.min(31) as u32);
                self.intensity.base_delay.saturating_mul(factor).min(self.intensity.max_delay)
            }
        };
        Decision::RestartAfter(delay)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn history(max_restarts: usize) -> RestartHistory {
        RestartHistory::new(RestartIntensity {
            max_restarts,
            period: Duration::from_secs(60),
            base_delay: Duration::from_millis(100),
            max_delay: Duration::from_millis(500),
        })
    }

    #[test]
    fn delays_grow_until_it_gives_up() {
        let mut history = history(5);
        let decisions: Vec<Decision> =
            (0..6).map(|second| history.on_failure(Duration::from_secs(second))).collect();
        let after = |ms| Decision::RestartAfter(Duration::from_millis(ms));
        assert_eq!(
            decisions,
            [after(0), after(100), after(200), after(400), after(500), Decision::GiveUp]
        );
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut history = history(1);
        assert_ne!(history.on_failure(Duration::ZERO), Decision::GiveUp);
        assert_eq!(history.on_failure(Duration::from_secs(59)), Decision::GiveUp);
        assert_ne!(history.on_failure(Duration::from_secs(60)), Decision::GiveUp);
    }

    proptest! {
        #[test]
        fn never_more_restarts_than_allowed_in_any_period(
            gaps in prop::collection::vec(0_u64..40_000, 1..100),
        ) {
            let mut history = history(3);
            let mut now = Duration::ZERO;
            let mut restarts: Vec<Duration> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if history.on_failure(now) != Decision::GiveUp {
                    restarts.push(now);
                }
            }
            for window in restarts.windows(4) {
                prop_assert!(window[3] - window[0] >= Duration::from_secs(60));
            }
        }
    }
}
