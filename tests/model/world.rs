//! All actors, and what has come to pass among them.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::{
    act::{Act, Lost},
    book::{Book, Effect},
    editor::Editor,
    foreign::{TheirConsumer, TheirProducer},
    invariants,
    operator::Operator,
    plan::{EDITORS, PRODUCERS, SCHEDULERS, WORKERS},
    producer::Producer,
    scheduler::{Recounted, Scheduler},
    seen::Seen,
    site::{LEASE, Site},
    trouble,
    worker::Worker,
};

/// See the module.
pub struct World {
    pub book: Book,
    pub past: Past,
    pub producers: [Producer; PRODUCERS],
    pub editors: [Editor; EDITORS],
    pub workers: [Worker; WORKERS],
    pub schedulers: [Scheduler; SCHEDULERS],
    pub operator: Operator,
    pub their_producer: TheirProducer,
    pub their_consumer: TheirConsumer,
}

/// What came to pass that bears on what may be demanded.
#[derive(Debug, Default)]
pub struct Past {
    /// A foreign program or a fault has touched keys and counts.
    pub touched: bool,
    /// The leases got lost, and no recount has been there since.
    pub leases_lost: bool,
    /// Jobs that came in past the limits.
    pub past_limits: i64,
    /// Failed attempts by node and reason, which says the text.
    pub attempts: BTreeMap<(Uuid, String), u32>,
}

impl World {
    pub async fn new(site: &'static Site, lost_max: u32) -> Self {
        Self {
            book: Book::new(site, lost_max).await,
            past: Past::default(),
            producers: Default::default(),
            editors: Default::default(),
            workers: Default::default(),
            schedulers: Default::default(),
            operator: Operator::default(),
            their_producer: TheirProducer::default(),
            their_consumer: TheirConsumer::default(),
        }
    }

    /// Takes a step, and looks whether everything holds that must.
    pub async fn take(&mut self, act: Act) {
        let Some(effect) = self.effect_of(act).await else { return };
        self.check(&effect).await;
    }

    /// Looks whether everything holds that must after a step.
    pub async fn check(&mut self, effect: &Effect) {
        let after = self.book.site.look().await;
        let before = std::mem::replace(&mut self.book.seen, after);
        if effect.passes_limits {
            let jobs = |seen: &Seen| seen.charged().values().sum::<i64>();
            self.past.past_limits += (jobs(&self.book.seen) - jobs(&before)).max(0);
        }
        if let Some(failed) = effect.failed.clone() {
            *self.past.attempts.entry(failed).or_default() += 1;
        }
        invariants::check(&before, effect, &self.book.seen, &self.past);
    }

    /// What a step does; none if there is nothing to do for it.
    async fn effect_of(&mut self, act: Act) -> Option<Effect> {
        let book = &mut self.book;
        match act {
            Act::Reserve { producer, nodes } => {
                Some(self.producers[producer].reserve(book, nodes).await)
            }
            Act::Insert { producer, with_text } => {
                self.producers[producer].insert(book, with_text).await
            }
            Act::Publish { producer } => self.producers[producer].publish(book).await,
            Act::Cancel { producer } => self.producers[producer].cancel(book).await,
            Act::ProducerDies { producer } => dies(&mut self.producers[producer]),

            Act::ReserveEdit { editor, node } => self.editors[editor].reserve(book, node).await,
            Act::WriteEdit { editor, with_text } => {
                self.editors[editor].write(book, with_text).await
            }
            Act::PublishEdit { editor } => self.editors[editor].publish(book).await,
            Act::DeleteRow { editor, node } => self.editors[editor].delete(book, node).await,
            Act::ForgetJobs { editor } => self.editors[editor].forget(book).await,
            Act::EditorDies { editor } => dies(&mut self.editors[editor]),

            Act::Claim { worker, wanted, one_a_tenant } => {
                self.workers[worker].claim(book, wanted, one_a_tenant).await
            }
            Act::Advance { job } => {
                let (worker, job) = in_hand(&self.workers, job, |_, _| true)?;
                Some(self.workers[worker].advance(book, job).await)
            }
            Act::Fail { job, kind } => {
                let (worker, job) = in_hand(&self.workers, job, Worker::is_undecided)?;
                Some(self.workers[worker].fail(book, job, kind).await)
            }
            Act::GiveBack { job, row_first } => {
                let (worker, job) = in_hand(&self.workers, job, Worker::is_undecided)?;
                Some(self.workers[worker].give_back(book, job, row_first).await)
            }
            Act::Extend { worker } => self.workers[worker].extend(book).await,
            Act::WorkerDies { worker } => dies(&mut self.workers[worker]),

            Act::Promote => {
                book.site.queue.promote_due().await.unwrap();
                Some(Effect::default())
            }
            Act::Reclaim { scheduler } => self.schedulers[scheduler].reclaim(book).await,
            Act::Recount { scheduler } => {
                if self.schedulers[scheduler].recount(book, LEASE).await == Recounted::Done {
                    self.past.leases_lost = false;
                }
                Some(Effect::default())
            }
            Act::Sweep { scheduler } => self.schedulers[scheduler].sweep(book).await,
            Act::SchedulerDies { scheduler } => dies(&mut self.schedulers[scheduler]),

            Act::FindForRequeue { status, action } => {
                Some(self.operator.find(book, status, action).await)
            }
            Act::Requeue => self.operator.requeue(book).await,
            Act::DropDeadLetters => {
                book.site.redis.cli(&["DEL", "embedding:dlq"]);
                Some(Effect::default())
            }
            other => self.trouble(other).await,
        }
    }

    async fn trouble(&mut self, act: Act) -> Option<Effect> {
        let book = &mut self.book;
        let effect = match act {
            Act::LeaseRunsOut { lease } => return trouble::lease_runs_out(book, lease),
            Act::ReservationRunsOut { reservation } => {
                return trouble::reservation_runs_out(book, reservation);
            }
            Act::RetryComesDue { retry } => return trouble::retry_comes_due(book, retry),
            Act::Flush => return Some(trouble::flush(book)),

            Act::TheirNode { node, tenant_is_null } => {
                self.their_producer.turn_to(book, node, tenant_is_null).await
            }
            Act::TheirCommand => self.their_producer.command(book),
            Act::TheirProducerDies => dies(&mut self.their_producer),
            Act::TheyTake => self.their_consumer.take(book),
            Act::TheyAdvance => self.their_consumer.advance(book).await,
            Act::TheirConsumerDies => dies(&mut self.their_consumer),

            Act::Lose(lost) => {
                self.past.leases_lost |= matches!(lost, Lost::Leases);
                trouble::lose(book, lost)
            }
            Act::Miscount { tenant, count } => Some(trouble::miscount(book, tenant, count)),
            other => unreachable!("{other:?} is a step of ours"),
        };
        self.past.touched |= effect.is_some();
        effect
    }
}

/// An actor that dies forgets what it was doing, and does nothing else.
fn dies<A: Default>(actor: &mut A) -> Option<Effect> {
    *actor = A::default();
    None
}

/// The job that a number picks among those in the hands of all workers that are as wanted.
fn in_hand(
    workers: &[Worker],
    number: usize,
    is_wanted: impl Fn(&Worker, usize) -> bool,
) -> Option<(usize, usize)> {
    let jobs = |(at, worker): (usize, &Worker)| (0..worker.jobs()).map(move |job| (at, job));
    let wanted: Vec<(usize, usize)> = workers
        .iter()
        .enumerate()
        .flat_map(jobs)
        .filter(|&(at, job)| is_wanted(&workers[at], job))
        .collect();
    wanted.get(number.checked_rem(wanted.len())?).copied()
}
