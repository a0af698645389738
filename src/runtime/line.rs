//! Who waits for a model while a client waits: as much as it does in a time, and no more.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    api::RuntimeError,
    pace::{LastDone, Pace},
};

/// The longest that a request may have to wait for the model, itself counted, unless it is alone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The work ahead of a model.
#[derive(Debug)]
pub struct Line {
    /// Tokens that may be ahead while nobody knows how fast the model is.
    unknown_tokens: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tokens: usize,
    pace: Pace,
    last_done: LastDone,
}

/// A place in the line, left when it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    line: &'a Line,
    tokens: usize,
}

impl Line {
    /// An empty line.
    pub fn new(unknown_tokens: usize) -> Self {
        Self { unknown_tokens, state: Mutex::default() }
    }

    /// Enters with so much work.
    ///
    /// # Errors
    /// [`RuntimeError::Overloaded`] when it would take the model too long to come to the end of it.
    pub fn enter(&self, tokens: usize) -> Result<Place<'_>, RuntimeError> {
        let mut state = self.state();
        let all = state.tokens + tokens;
        let most = state.pace.tokens_in(PATIENCE).unwrap_or(self.unknown_tokens);
        if state.tokens > 0 && all > most {
            let retry_after = state.pace.time_of(state.tokens).unwrap_or(PATIENCE);
            return Err(RuntimeError::Overloaded { retry_after });
        }
        state.tokens = all;
        Ok(Place { line: self, tokens })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers only; each is changed at once.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// So many of the tokens are embedded, after so long.
    pub fn done(&mut self, tokens: usize, took: Duration) {
        let mut state = self.line.state();
        let alone = state.last_done.alone(took);
        state.pace.note(tokens, alone);
        let done = tokens.min(self.tokens);
        self.tokens -= done;
        state.tokens -= done;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.line.state().tokens -= self.tokens;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn nobody_waits_longer_than_that_and_whoever_is_alone_is_let_in() {
        let line = Line::new(1_000);
        let mut first = line.enter(5_000).unwrap();
        assert!(line.enter(1).is_err(), "nobody knows how long the first takes");
        // 1,000 tokens in a second.
        first.done(1_000, Duration::from_secs(1));
        let second = line.enter(5_000).unwrap();
        let RuntimeError::Overloaded { retry_after } = line.enter(2_000).unwrap_err() else {
            panic!()
        };
        assert!(retry_after.as_secs_f64() > 8.9, "{retry_after:?}");
        drop(first);
        let third = line.enter(2_000).unwrap();
        drop((second, third));
        assert!(line.enter(1_000_000).is_ok());
        assert_eq!(line.state().tokens, 0, "all have left");
    }
}
