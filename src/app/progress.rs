//! What the start waits for: said in the log, and to those who ask over HTTP.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

/// The first and the longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What the start waits for.
pub struct Progress {
    awaited: watch::Sender<String>,
    patience: Duration,
}

impl Progress {
    /// `patience` is how long a store may be away.
    pub fn new(patience: Duration) -> Self {
        Self { awaited: watch::Sender::new(String::new()), patience }
    }

    /// For those who want to know.
    pub fn subscribe(&self) -> watch::Receiver<String> {
        self.awaited.subscribe()
    }

    /// From now on, this is waited for.
    pub fn awaits(&self, what: &str) {
        self.awaited.send_replace(what.to_owned());
    }

    /// Tries until it succeeds, as long as its errors are of the kind that passes and patience is
    /// left. `say` makes of an error the words that an operator reads.
    ///
    /// # Errors
    /// The last error.
    pub async fn wait_for<T, E, F>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> F,
        is_passing: impl Fn(&E) -> bool,
        say: impl Fn(&E) -> String,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.awaits(what);
        let (mut pause, longest) = PAUSES;
        // An attempt may be at work for long before it meets an error.
        let mut waits_since: Option<Instant> = None;
        loop {
            let error = match attempt().await {
                Ok(done) => {
                    if let Some(since) = waits_since {
                        info!(seconds = since.elapsed().as_secs_f64(), "{what} is there");
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            let waited = waits_since.map_or(Duration::ZERO, |since| since.elapsed());
            let left = self.patience.saturating_sub(waited);
            if !is_passing(&error) || left.is_zero() {
                return Err(error);
            }
            self.awaited.send_replace(format!("{what}: {}", say(&error)));
            if waits_since.is_none() {
                waits_since = Some(Instant::now());
                warn!(
                    reason = %say(&error),
                    "waiting for {what}, {} seconds at most", self.patience.as_secs()
                );
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(longest);
        }
    }
}
