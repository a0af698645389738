//! Which batch goes to which embedder: the Dispatcher's book-keeping, without actors.

use std::collections::VecDeque;

use super::batch::Batch;

/// Batches given to an embedder at once: one runs, the next is ready, so that it never waits.
const OUTSTANDING: usize = 2;

/// Batches that wait and batches that are out.
#[derive(Default)]
pub struct Schedule {
    ready: VecDeque<Batch>,
    slots: Vec<Slot>,
    last_id: u64,
    /// Batches that are being stored, failed or given back.
    ending: usize,
    /// Whether a suspect is among them.
    is_suspect_ending: bool,
}

#[derive(Default)]
struct Slot {
    is_up: bool,
    out: Vec<(u64, Batch)>,
}

/// A batch that is to be given to an embedder now.
pub struct Assignment<'a> {
    /// Which embedder.
    pub slot: usize,
    /// Under which number its result comes back.
    pub id: u64,
    /// What to embed.
    pub batch: &'a Batch,
}

impl Schedule {
    /// A schedule for so many embedders, none of them up yet.
    pub fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| Slot::default()).collect(), ..Self::default() }
    }

    /// Appends a batch.
    pub fn add(&mut self, batch: Batch) {
        self.ready.push_back(batch);
    }

    /// Puts a batch before all others.
    pub fn add_first(&mut self, batch: Batch) {
        self.ready.push_front(batch);
    }

    /// The embedder takes batches from now on.
    pub fn slot_up(&mut self, slot: usize) {
        self.slots[slot].is_up = true;
    }

    /// The embedder is gone; what it had will be done by its successor, text by text, because
    /// any of them may be why. A text that was alone with it is why, and is returned.
    pub fn slot_lost(&mut self, slot: usize) -> Option<Batch> {
        let slot = &mut self.slots[slot];
        slot.is_up = false;
        let mut guilty = None;
        for (_, batch) in slot.out.drain(..).rev() {
            if batch.suspect {
                self.is_suspect_ending = true;
                guilty = Some(batch);
                continue;
            }
            for suspect in batch.into_suspects().rev() {
                self.ready.push_front(suspect);
            }
        }
        guilty
    }

    /// Takes the next batch that an embedder has room for. A suspect may end this process, and
    /// every job that a model has begun on and that is not ended would be blamed with it: it
    /// runs when all others are ended, and no other begins until it is.
    pub fn assign(&mut self) -> Option<Assignment<'_>> {
        let out = self.slots.iter().flat_map(|slot| &slot.out);
        let (count, suspects) = out.fold((0, 0), |(count, suspects), (_, batch)| {
            (count + 1, suspects + usize::from(batch.suspect))
        });
        let next = self.ready.front()?;
        if suspects > 0 || self.is_suspect_ending || (next.suspect && count + self.ending > 0) {
            return None;
        }
        let slot = (0..self.slots.len())
            .filter(|&slot| self.slots[slot].is_up && self.slots[slot].out.len() < OUTSTANDING)
            .min_by_key(|&slot| self.slots[slot].out.len())?;
        let batch = self.ready.pop_front()?;
        self.last_id += 1;
        let out = &mut self.slots[slot].out;
        out.push((self.last_id, batch));
        out.last().map(|(id, batch)| Assignment { slot, id: *id, batch })
    }

    /// Takes a batch whose result came back; `None` when it was given to a successor meanwhile.
    pub fn done(&mut self, slot: usize, id: u64) -> Option<Batch> {
        let out = &mut self.slots[slot].out;
        let at = out.iter().position(|(other, _)| *other == id)?;
        let (_, batch) = out.remove(at);
        self.is_suspect_ending |= batch.suspect;
        Some(batch)
    }

    /// The storing, failing or giving back of a batch begins.
    pub fn ending(&mut self) {
        self.ending += 1;
    }

    /// It is over.
    pub fn ended(&mut self) {
        debug_assert!(self.ending > 0, "more endings than beginnings");
        self.ending = self.ending.saturating_sub(1);
        if self.ending == 0 {
            self.is_suspect_ending = false;
        }
    }

    /// Takes all batches that wait.
    pub fn take_ready(&mut self) -> Vec<Batch> {
        self.ready.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        domain::{Action, Job, TenantId},
        inference::Encoding,
        queue::Lease,
        runtime::batch::Text,
    };

    fn batch(texts: usize) -> Batch {
        let text = || {
            let job = Job::new(Uuid::new_v4(), TenantId::default(), Action::Embed, 0.0);
            let lease = Lease::from(Uuid::new_v4());
            Text {
                lease,
                job,
                text_hash: [0; 32],
                source_hash: String::new(),
                input_hash: None,
                encoding: Encoding { ids: vec![1], truncated: false },
            }
        };
        Batch { texts: (0..texts).map(|_| text()).collect(), suspect: false }
    }

    #[test]
    fn an_embedder_has_one_batch_running_and_one_ready() {
        let mut schedule = Schedule::new(1);
        (0..3).for_each(|_| schedule.add(batch(2)));
        assert!(schedule.assign().is_none(), "no embedder is up");
        schedule.slot_up(0);
        let first = schedule.assign().map(|a| a.id).unwrap();
        assert!(schedule.assign().is_some());
        assert!(schedule.assign().is_none());
        assert!(schedule.done(0, first).is_some());
        assert!(schedule.done(0, first).is_none(), "a result counts once");
        assert!(schedule.assign().is_some());
    }

    #[test]
    fn what_a_lost_embedder_had_is_done_one_by_one() {
        let mut schedule = Schedule::new(2);
        schedule.slot_up(0);
        schedule.add(batch(3));
        let node = schedule.assign().map(|a| a.batch.texts[0].job.node_id).unwrap();
        schedule.add(batch(1));
        assert!(schedule.slot_lost(0).is_none(), "any of three may be why");
        schedule.slot_up(1);
        for round in 0..3 {
            let assignment = schedule.assign().unwrap();
            assert!(assignment.batch.suspect && assignment.batch.texts.len() == 1);
            assert!(round > 0 || assignment.batch.texts[0].job.node_id == node, "order is kept");
            let (slot, id) = (assignment.slot, assignment.id);
            assert!(schedule.assign().is_none(), "a suspect runs alone");
            if round == 1 {
                assert!(schedule.slot_lost(slot).is_some(), "it was alone");
                schedule.slot_up(slot);
            } else {
                assert!(schedule.done(slot, id).is_some());
            }
            schedule.ending();
            assert!(schedule.assign().is_none(), "until it is ended");
            schedule.ended();
        }
        assert!(!schedule.assign().unwrap().batch.suspect);
    }

    #[test]
    fn a_suspect_waits_for_all_that_began_before_it() {
        let mut schedule = Schedule::new(1);
        schedule.slot_up(0);
        schedule.add(batch(2));
        schedule.add(Batch { suspect: true, ..batch(1) });
        let (slot, id) = schedule.assign().map(|a| (a.slot, a.id)).unwrap();
        assert!(schedule.assign().is_none());
        assert!(schedule.done(slot, id).is_some());
        schedule.ending();
        assert!(schedule.assign().is_none(), "vectors not stored yet would be blamed with it");
        schedule.ended();
        assert!(schedule.assign().is_some_and(|a| a.batch.suspect));
    }

    #[test]
    fn a_batch_splits_down_to_one_text() {
        let [second, first] = batch(5).split().unwrap();
        assert_eq!((first.texts.len(), second.texts.len()), (2, 3));
        assert!(batch(1).split().is_err());
    }
}
