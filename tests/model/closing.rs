//! The end of every case: all actors are dead, a long time has passed, and one scheduler and one
//! worker that nothing happens to bring everything to rest.

use std::time::Duration;

use vecmill::domain::NodeStatus;

use crate::{
    act::Act,
    book::{Effect, is_reason_of},
    scheduler::{Recounted, Scheduler},
    seen::{Keys, Seen},
    site::STALE,
    trouble,
    worker::Worker,
    world::World,
};

/// Enough for whatever the longest case left: a node is failed, reclaimed, given up and swept.
const ROUNDS: usize = 6;
/// More jobs than there are.
const ALL: usize = 100;

impl World {
    /// See the module.
    pub async fn close(&mut self) {
        self.all_die();
        for _ in 0..ROUNDS {
            trouble::a_long_time_passes(&self.book);
            self.check(&Effect::default()).await;
            self.repair().await;
            self.work().await;
            if is_at_rest(&self.book.seen) {
                break;
            }
        }
        nothing_is_lost(&self.book.seen);
        a_text_ends_by_its_own_failure(&self.book.seen);
        no_vector_of_an_older_text_stays(&self.book.seen);
        nothing_is_left(&self.book.seen);
    }

    fn all_die(&mut self) {
        self.producers = Default::default();
        self.editors = Default::default();
        self.workers = Default::default();
        self.schedulers = Default::default();
        self.operator = Default::default();
        self.their_producer = Default::default();
        self.their_consumer = Default::default();
    }

    async fn repair(&mut self) {
        self.take(Act::Promote).await;
        let mut scheduler = Scheduler::default();
        while let Some(effect) = scheduler.reclaim(&mut self.book).await {
            self.check(&effect).await;
        }
        // Foreign consumers are dead for long.
        while scheduler.recount(&self.book, Duration::ZERO).await == Recounted::Asked {}
        self.past.leases_lost = false;
        self.check(&Effect::default()).await;
        while let Some(effect) = scheduler.sweep(&mut self.book).await {
            self.check(&effect).await;
        }
    }

    async fn work(&mut self) {
        let mut worker = Worker::default();
        while let Some(effect) = worker.claim(&mut self.book, ALL, false).await {
            self.check(&effect).await;
        }
        while worker.jobs() > 0 {
            let effect = worker.advance(&mut self.book, 0).await;
            self.check(&effect).await;
        }
    }
}

fn is_at_rest(seen: &Seen) -> bool {
    seen.live().next().is_none() && open_rows(seen).next().is_none()
}

fn open_rows(seen: &Seen) -> impl Iterator<Item = String> {
    let is_open = |status| matches!(status, NodeStatus::Queued | NodeStatus::Processing);
    seen.rows
        .iter()
        .filter(move |(_, row)| is_open(row.status))
        .map(|(node, row)| format!("{node} is {}", row.status))
}

/// Every row has come to an end. That those which are `ready` have the right vector is looked at
/// after every step.
fn nothing_is_lost(seen: &Seen) {
    let open: Vec<String> = open_rows(seen).collect();
    assert!(open.is_empty(), "rows wait for nothing: {open:?}");
}

/// A node is `skipped` only without a text, and `failed` only when this text was tried in vain: the
/// end of an older one is not its own.
fn a_text_ends_by_its_own_failure(seen: &Seen) {
    for (node, row) in &seen.rows {
        let text = row.text.as_deref();
        let is_its_own = match row.status {
            // A row without a reason was skipped by a foreign consumer, which does not look whether
            // there is a text by now. Nothing marks such a row: a limit of the protocol.
            NodeStatus::Skipped => text.is_none() || row.error.is_none(),
            NodeStatus::Failed => is_reason_of(row.error.as_deref().unwrap(), text),
            _ => true,
        };
        assert!(is_its_own, "{node} is {} for the end of an older text: {row:?}", row.status);
    }
}

/// A row that is known to have the vector of an older text was embedded again.
fn no_vector_of_an_older_text_stays(seen: &Seen) {
    for (node, row) in seen.rows.iter().filter(|(_, row)| row.status == NodeStatus::Ready) {
        assert_ne!(row.source_hash.as_deref(), Some(STALE), "{node} was not embedded again");
    }
}

/// Nothing is in Redis but dead letters.
fn nothing_is_left(seen: &Seen) {
    let letters = seen.keys.letters.clone();
    assert_eq!(seen.keys, Keys { letters, ..Keys::default() }, "what is left in Redis");
}
