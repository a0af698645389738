//! How much a Dispatcher has in hand and how much more it may take: book-keeping without actors.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use super::{batch::Batch, pace::Pace};

/// An amount of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Texts.
    pub texts: usize,
    /// Their tokens together.
    pub tokens: usize,
}

impl Load {
    /// What these batches are.
    pub fn of<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Self {
        batches.into_iter().fold(Self::default(), |load, batch| {
            load + Self { texts: batch.texts.len(), tokens: batch.tokens() }
        })
    }
}

impl Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { texts: self.texts + other.texts, tokens: self.tokens + other.tokens }
    }
}

/// Nothing is the least.
impl Sub for Load {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            texts: self.texts.saturating_sub(other.texts),
            tokens: self.tokens.saturating_sub(other.tokens),
        }
    }
}

/// What is in hand, bounded by texts and by tokens; and what of it no model has done yet, bounded by the
/// time that it takes a model: a job that comes now waits for all of that.
///
/// How long a text is shows only when it was claimed and read. So a claim is sized by what the last
/// ones brought, and before the first by the longest text that the model takes.
#[derive(Debug)]
pub struct Room {
    most: Load,
    in_hand: Load,
    /// Not embedded yet.
    ahead: Load,
    /// Tokens that a text is expected to have.
    expected: usize,
    /// The part of the jobs claimed that have a text: where it is small, those that have one may stand
    /// behind many that have none.
    with_text: f64,
    /// Of all models together.
    pace: Pace,
    models: usize,
}

/// What models may have ahead of them, and what a batch may take one.
const AHEAD: Duration = Duration::from_millis(400);
const BATCH: Duration = Duration::from_millis(200);
/// The texts that may be ahead of each model while nobody knows the pace.
const FIRST_TEXTS: usize = 16;
/// The least part of jobs with a text that is reckoned with.
const LEAST_WITH_TEXT: f64 = 1.0 / 1024.0;
/// One text is with each model while the next is made ready, however long that takes.
const LEAST_TEXTS: usize = 2;

impl Room {
    /// Nothing in hand, and room for so much for each of so many models. `longest` is how many tokens
    /// a text has at most.
    pub fn new(most: Load, longest: usize, models: usize) -> Self {
        Self {
            most: Load { texts: most.texts * models, tokens: most.tokens * models },
            in_hand: Load::default(),
            ahead: Load::default(),
            expected: longest.max(1),
            with_text: 1.0,
            pace: Pace::default(),
            models,
        }
    }

    /// Whether nothing is in hand.
    pub fn is_empty(&self) -> bool {
        self.in_hand.texts == 0
    }

    /// So many texts were claimed. Answers what they are taken for until they are read.
    pub fn claimed(&mut self, texts: usize) -> Load {
        let estimate = Load { texts, tokens: texts * self.expected };
        self.in_hand = self.in_hand + estimate;
        self.ahead = self.ahead + estimate;
        estimate
    }

    /// What a claim brought was read, and is in hand: so much is to be embedded, and of so much the
    /// vectors are known. Expectations rise at once and fall slowly, because too little at once does
    /// less harm than too much.
    pub fn took(&mut self, estimate: Load, to_embed: Load, known: Load) {
        let load = to_embed + known;
        self.in_hand = self.in_hand - estimate + load;
        self.ahead = self.ahead - estimate + to_embed;
        if estimate.texts > 0 {
            let seen = load.texts as f64 / estimate.texts as f64;
            // As above: claims grow at once, and shrink slowly.
            let kept =
                if seen < self.with_text { seen } else { f64::midpoint(seen, self.with_text) };
            self.with_text = kept.max(LEAST_WITH_TEXT);
        }
        if load.texts > 0 {
            let seen = load.tokens.div_ceil(load.texts).max(1);
            self.expected = seen.max(usize::midpoint(seen, self.expected));
        }
    }

    /// So much was embedded, and took a model so long.
    pub fn embedded(&mut self, load: Load, took: Duration) {
        self.ahead = self.ahead - load;
        self.pace.note(load.tokens, took);
    }

    /// So much that was embedded was let go.
    pub fn gave(&mut self, load: Load) {
        self.in_hand = self.in_hand - load;
    }

    /// So much that was not embedded was let go.
    pub fn gave_up(&mut self, load: Load) {
        self.gave(load);
        self.ahead = self.ahead - load;
    }

    /// Tokens of a batch, `most` at most, that do not keep others waiting for long.
    pub fn batch_tokens(&self, most: usize) -> usize {
        self.pace.tokens_in(BATCH).map_or(most, |tokens| (tokens / self.models).clamp(1, most))
    }

    /// How many texts to claim now; none while less than half of the room is free. Claims of half
    /// the room cost the stores little; when nothing is in hand, whatever there is will do.
    pub fn wanted(&self) -> Option<usize> {
        let half = Load { texts: self.most.texts / 2, tokens: self.most.tokens / 2 };
        let with_half = self.in_hand + half;
        let is_half_free =
            with_half.texts <= self.most.texts && with_half.tokens <= self.most.tokens;
        if !self.is_empty() && !is_half_free {
            return None;
        }
        let room = (half.tokens / self.expected).min(half.texts).max(1);
        let timely = match self.pace.tokens_in(AHEAD) {
            None => (FIRST_TEXTS * self.models).saturating_sub(self.ahead.texts),
            Some(tokens) => {
                let free = tokens.saturating_sub(self.ahead.tokens);
                // As above, claims of half of it.
                let is_enough = free >= tokens / 2 || self.ahead.texts == 0;
                if is_enough { (free.min(tokens / 2)) / self.expected } else { 0 }
            }
        };
        match timely {
            0 if self.ahead.texts < LEAST_TEXTS * self.models => Some(1),
            0 => None,
            timely => Some(((timely as f64 / self.with_text) as usize).min(room)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Load = Load { texts: 512, tokens: 8 * 4096 };

    /// A room of a model that is as fast as can be.
    fn fast(most: Load, longest: usize) -> Room {
        let mut room = Room::new(most, longest, 1);
        room.pace.note(1_000_000_000, Duration::from_secs(1));
        room
    }

    /// Claims until there is no room; all texts are of one length. Answers what is in hand.
    fn filled(room: &mut Room, length: usize) -> Load {
        while let Some(texts) = room.wanted() {
            let estimate = room.claimed(texts);
            room.took(estimate, Load { texts, tokens: texts * length }, Load::default());
        }
        room.in_hand
    }

    #[test]
    fn long_texts_wait_in_no_more_tokens_than_short_ones() {
        let short = filled(&mut fast(MOST, 256), 32);
        let long = filled(&mut fast(MOST, 256), 256);
        assert!(long.tokens <= MOST.tokens, "{long:?}");
        assert!(long.tokens <= short.tokens * 3, "{long:?} {short:?}");
        assert!(long.texts < short.texts, "{long:?} {short:?}");
    }

    #[test]
    fn texts_that_grow_longer_are_too_many_once() {
        let mut room = fast(MOST, 256);
        let short = filled(&mut room, 8);
        room.gave_up(short);
        let claim = room.wanted().unwrap();
        let estimate = room.claimed(claim);
        room.took(estimate, Load { texts: claim, tokens: claim * 256 }, Load::default());
        room.gave_up(room.in_hand);
        assert!(room.wanted().unwrap() * 256 <= MOST.tokens / 2);
    }

    #[test]
    fn one_text_in_hand_does_not_keep_others_waiting() {
        let mut room = Room::new(MOST, 256, 1);
        let estimate = room.claimed(1);
        assert!(room.wanted().is_some(), "while it is read");
        room.took(estimate, Load { texts: 1, tokens: 256 }, Load::default());
        assert!(room.wanted().is_some());
    }

    #[test]
    fn what_is_ahead_of_a_model_is_bounded_by_the_time_that_it_takes() {
        // Tokens in a second, tokens of a text, texts in hand and tokens of a batch that follow.
        for (pace, length, texts, batch) in [
            (15_000, 100, 60, 3_000),
            (1_000, 100, 4, 200),
            (100, 100, 2, 20),
            (1_000_000_000, 100, 512, 4096),
        ] {
            let mut room = Room::new(Load { texts: 512, tokens: 1 << 20 }, 256, 1);
            assert_eq!(room.wanted(), Some(FIRST_TEXTS), "nobody knows");
            let first = Load { texts: FIRST_TEXTS, tokens: FIRST_TEXTS * length };
            let estimate = room.claimed(FIRST_TEXTS);
            room.took(estimate, first, Load::default());
            assert_eq!(room.wanted(), None, "nobody knows");
            let took = |load: Load| Duration::from_secs_f64(load.tokens as f64 / f64::from(pace));
            room.embedded(first, took(first));
            room.gave(first);
            let mut in_hand = Load::default();
            // Until it is known how long texts are.
            for _ in 0..8 {
                room.embedded(in_hand, took(in_hand));
                room.gave(in_hand);
                in_hand = filled(&mut room, length);
            }
            assert!(in_hand.texts.abs_diff(texts) <= texts / 3, "{pace}: {in_hand:?}");
            assert_eq!(room.batch_tokens(4096).abs_diff(batch) / 2, 0, "{pace}");
            // What is embedded and waits to be stored keeps nobody waiting.
            room.embedded(
                in_hand,
                Duration::from_secs_f64(in_hand.tokens as f64 / f64::from(pace)),
            );
            assert_eq!(room.wanted().is_some(), texts < 512, "{pace}");
        }
    }

    #[test]
    fn jobs_without_a_text_do_not_keep_those_behind_them_for_ever() {
        let mut room = Room::new(MOST, 256, 1);
        let mut claims = Vec::new();
        for _ in 0..4 {
            let claim = room.wanted().unwrap();
            let estimate = room.claimed(claim);
            room.took(estimate, Load::default(), Load::default());
            claims.push(claim);
        }
        assert_eq!(claims, [16, 64, 64, 64], "half of the room at most");
        let estimate = room.claimed(64);
        room.took(estimate, Load { texts: 1, tokens: 8 }, Load::default());
        room.embedded(Load { texts: 1, tokens: 8 }, Duration::from_millis(10));
        room.gave(room.in_hand);
        assert!(room.wanted().unwrap() >= 64, "one of many had a text");
        for _ in 0..8 {
            let claim = room.wanted().unwrap();
            let estimate = room.claimed(claim);
            let load = Load { texts: claim, tokens: 8 * claim };
            room.took(estimate, load, Load::default());
            room.embedded(load, Duration::from_millis(10 * claim as u64));
            room.gave(load);
        }
        assert!(room.wanted().unwrap() <= 20, "all have one again: 0.2 s");
    }

    #[test]
    fn no_model_is_idle_while_others_are_slow() {
        let mut room = Room::new(MOST, 256, 4);
        room.pace.note(4 * 100, Duration::from_secs(5));
        let in_hand = filled(&mut room, 100);
        assert_eq!(in_hand.texts, 2 * 4);
        assert_eq!(room.batch_tokens(4096), 4);
        // Fast ones have twice what a batch takes each.
        let mut room = Room::new(MOST, 256, 4);
        room.pace.note(40_000, Duration::from_secs(1));
        assert_eq!(room.batch_tokens(4096), 2_000);
    }

    proptest! {
        #[test]
        fn what_is_in_hand_is_bounded_and_an_idle_worker_always_claims(
            lengths in prop::collection::vec(1_usize..600, 1..20),
            texts in 1_usize..1000,
            tokens in 1_usize..100_000,
            pace in 1_usize..1_000_000,
        ) {
            let mut room = Room::new(Load { texts, tokens }, 600, 1);
            for length in lengths {
                prop_assert!(room.wanted().is_some(), "nothing is in hand");
                let claim = room.wanted().unwrap_or(1);
                prop_assert!(claim <= texts.div_ceil(2).max(1));
                let estimate = room.claimed(claim);
                let load = Load { texts: claim, tokens: claim * length };
                room.took(estimate, load, Load::default());
                room.embedded(load, Duration::from_secs_f64(load.tokens as f64 / pace as f64));
                room.gave(room.in_hand);
                prop_assert!(room.is_empty());
                prop_assert!(room.ahead == Load::default());
            }
        }
    }
}
