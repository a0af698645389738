//! How much a Dispatcher has in hand and how much more it may take: book-keeping without actors.

use std::ops::{Add, Sub};

use super::batch::Batch;

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

/// What is in hand, bounded by texts and by tokens.
///
/// How long a text is shows only when it was claimed and read. So a claim is sized by what the last
/// ones brought, and before the first by the longest text that the model takes.
#[derive(Debug)]
pub struct Room {
    most: Load,
    in_hand: Load,
    /// Tokens that a text is expected to have.
    expected: usize,
}

impl Room {
    /// Nothing in hand, and room for so much. `longest` is how many tokens a text has at most.
    pub fn new(most: Load, longest: usize) -> Self {
        Self { most, in_hand: Load::default(), expected: longest.max(1) }
    }

    /// Whether nothing is in hand.
    pub fn is_empty(&self) -> bool {
        self.in_hand.texts == 0
    }

    /// So many texts were claimed. Answers what they are taken for until they are read.
    pub fn claimed(&mut self, texts: usize) -> Load {
        let estimate = Load { texts, tokens: texts * self.expected };
        self.in_hand = self.in_hand + estimate;
        estimate
    }

    /// What a claim brought was read, and is in hand. Expectations rise at once and fall slowly,
    /// because too little at once does less harm than too much.
    pub fn took(&mut self, estimate: Load, load: Load) {
        self.in_hand = self.in_hand - estimate + load;
        if load.texts > 0 {
            let seen = load.tokens.div_ceil(load.texts).max(1);
            self.expected = seen.max(usize::midpoint(seen, self.expected));
        }
    }

    /// So much was let go.
    pub fn gave(&mut self, load: Load) {
        self.in_hand = self.in_hand - load;
    }

    /// How many texts to claim now; none while less than half of the room is free. Claims of half
    /// the room cost the stores little; when nothing is in hand, whatever there is will do.
    pub fn wanted(&self) -> Option<usize> {
        let half = Load { texts: self.most.texts / 2, tokens: self.most.tokens / 2 };
        let with_half = self.in_hand + half;
        let is_half_free =
            with_half.texts <= self.most.texts && with_half.tokens <= self.most.tokens;
        (self.is_empty() || is_half_free)
            .then(|| (half.tokens / self.expected).min(half.texts).max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Load = Load { texts: 512, tokens: 8 * 4096 };

    /// Claims until there is no room; all texts are of one length. Answers what is in hand.
    fn filled(room: &mut Room, length: usize) -> Load {
        while let Some(texts) = room.wanted() {
            let estimate = room.claimed(texts);
            room.took(estimate, Load { texts, tokens: texts * length });
        }
        room.in_hand
    }

    #[test]
    fn long_texts_wait_in_no_more_tokens_than_short_ones() {
        let short = filled(&mut Room::new(MOST, 256), 32);
        let long = filled(&mut Room::new(MOST, 256), 256);
        assert!(long.tokens <= MOST.tokens, "{long:?}");
        assert!(long.tokens <= short.tokens * 3, "{long:?} {short:?}");
        assert!(long.texts < short.texts, "{long:?} {short:?}");
    }

    #[test]
    fn texts_that_grow_longer_are_too_many_once() {
        let mut room = Room::new(MOST, 256);
        let short = filled(&mut room, 8);
        room.gave(short);
        let claim = room.wanted().unwrap();
        let estimate = room.claimed(claim);
        room.took(estimate, Load { texts: claim, tokens: claim * 256 });
        room.gave(room.in_hand);
        assert!(room.wanted().unwrap() * 256 <= MOST.tokens / 2);
    }

    #[test]
    fn one_text_in_hand_does_not_keep_others_waiting() {
        let mut room = Room::new(MOST, 256);
        let estimate = room.claimed(1);
        assert!(room.wanted().is_some(), "while it is read");
        room.took(estimate, Load { texts: 1, tokens: 256 });
        assert!(room.wanted().is_some());
    }

    proptest! {
        #[test]
        fn what_is_in_hand_is_bounded_and_an_idle_worker_always_claims(
            lengths in prop::collection::vec(1_usize..600, 1..20),
            texts in 1_usize..1000,
            tokens in 1_usize..100_000,
        ) {
            let mut room = Room::new(Load { texts, tokens }, 600);
            for length in lengths {
                prop_assert!(room.wanted().is_some(), "nothing is in hand");
                let claim = room.wanted().unwrap_or(1);
                prop_assert!(claim <= texts.div_ceil(2).max(1));
                let estimate = room.claimed(claim);
                room.took(estimate, Load { texts: claim, tokens: claim * length });
                let in_hand = room.in_hand;
                room.gave(in_hand);
                prop_assert!(room.is_empty());
            }
        }
    }
}
