//! How fast a model embeds, as its last batches were.

use std::time::{Duration, Instant};

/// How much of what was seen is kept from batch to batch.
const KEPT: f64 = 0.8;

/// Tokens in a time, the last ones counting most.
#[derive(Debug, Default)]
pub struct Pace {
    tokens: f64,
    seconds: f64,
}

impl Pace {
    /// So many tokens took so long.
    pub fn note(&mut self, tokens: usize, took: Duration) {
        self.tokens = self.tokens * KEPT + tokens as f64;
        self.seconds = self.seconds * KEPT + took.as_secs_f64();
    }

    /// Tokens that are embedded in this time; `None` while nobody knows.
    pub fn tokens_in(&self, time: Duration) -> Option<usize> {
        (self.seconds > 0.0).then(|| (self.tokens / self.seconds * time.as_secs_f64()) as usize)
    }

    /// The time that so many tokens take; `None` while nobody knows.
    pub fn time_of(&self, tokens: usize) -> Option<Duration> {
        let seconds = tokens as f64 * self.seconds / self.tokens;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// When a model was last done with something.
#[derive(Debug, Default)]
pub struct LastDone(Option<Instant>);

impl LastDone {
    /// It is done now with what took so long; how much of that time it had for it alone: while others
    /// were before it, it only waited.
    pub fn alone(&mut self, took: Duration) -> Duration {
        self.0.replace(Instant::now()).map_or(took, |last| last.elapsed().min(took))
    }
}
