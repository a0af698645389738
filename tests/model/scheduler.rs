//! A scheduler: it gives the jobs of lost workers to others, recounts, and enqueues rows that
//! have no job. No lock keeps two of them apart here: a lock of a process that was slow has run
//! out.

use std::{collections::HashMap, time::Duration};

use uuid::Uuid;
use vecmill::{
    domain::{Action, Job, NodeStatus},
    queue::{DeadLetter, Lease, Recount},
    store::{Candidate, OpenPage, Outcome, Subject},
};

use crate::book::{Book, Effect, Ends};

/// Rows looked at together.
const PAGE: u64 = 3;
/// Also rows that were changed just now: a sweep may be faster than any producer.
const ANY_AGE: f64 = -1.0;
const FAILED_AT: f64 = 1_795_478_111.5;

/// Expired leases on their way back: what is next for them.
#[derive(Default)]
enum Reclaim {
    #[default]
    Look,
    Record(Vec<Held>, Vec<Held>),
    ReturnRows(Vec<Held>, Vec<Held>),
    PutBack(Vec<Held>, Vec<Held>),
    Bury(Vec<Held>),
}

type Held = (Lease, Job);

/// A page of rows on its way into the queue: what is next for it.
#[derive(Default)]
enum Sweep {
    #[default]
    Begin,
    Look(Option<Uuid>),
    AskForJobs(OpenPage),
    LookAgain(Vec<Candidate>, Option<Uuid>),
    ReturnRows(Vec<Candidate>, Option<Uuid>),
    Enqueue(Vec<Candidate>, Option<Uuid>),
    /// The last page is done.
    End,
}

/// See the module.
#[derive(Default)]
pub struct Scheduler {
    reclaim: Reclaim,
    sweep: Sweep,
    /// Nodes that a recount asked for, and what was found out.
    asked: Vec<String>,
    tenants: HashMap<String, String>,
}

impl Scheduler {
    /// The next operation of reclaiming; none if no lease has expired.
    pub async fn reclaim(&mut self, book: &mut Book) -> Option<Effect> {
        let (queue, store) = (&book.site.queue, &book.site.store);
        let mut effect = Effect::default();
        self.reclaim = match std::mem::take(&mut self.reclaim) {
            Reclaim::Look => {
                let (mut again, mut poison) = (Vec::new(), Vec::new());
                for expired in queue.expired().await.unwrap() {
                    let mut job = expired.claimed.job.unwrap();
                    job.lost += u32::from(expired.started);
                    let lost = if job.lost >= book.lost_max { &mut poison } else { &mut again };
                    lost.push((expired.claimed.lease, job));
                }
                if again.is_empty() && poison.is_empty() {
                    return None;
                }
                Reclaim::Record(again, poison)
            }
            Reclaim::Record(again, poison) => {
                let outcomes: Vec<Outcome> =
                    poison.iter().map(|held| poisonous(held, book)).collect();
                let recorded = store.record(&outcomes).await.unwrap();
                // A row that has another text by now has nothing to do with those losses.
                let (poison, mut moot): (Vec<Held>, Vec<Held>) =
                    poison.into_iter().partition(|(_, job)| recorded.contains(&job.node_id));
                moot.iter_mut().for_each(|(_, job)| job.lost = 0);
                Reclaim::ReturnRows([again, moot].concat(), poison)
            }
            Reclaim::ReturnRows(again, poison) => {
                let nodes: Vec<Uuid> = again.iter().map(|(_, job)| job.node_id).collect();
                store.return_to_queue(&nodes).await.unwrap();
                Reclaim::PutBack(again, poison)
            }
            Reclaim::PutBack(again, poison) => {
                queue.reclaim(&again).await.unwrap();
                // The job for a newer text takes the place of one that was lost.
                let replaced =
                    again.into_iter().filter(|(_, job)| book.has_newer_text(job.node_id));
                effect = Ends::Jobs(replaced.map(|(_, job)| job.job_id).collect()).into();
                Reclaim::Bury(poison)
            }
            Reclaim::Bury(poison) => {
                let letter = |held: &Held| {
                    DeadLetter::of_job(held.0.clone(), &held.1, &reason(held, book), FAILED_AT)
                };
                let letters: Vec<DeadLetter> = poison.iter().map(letter).collect();
                queue.dead_letter(&letters, true).await.unwrap();
                let ids = poison.into_iter().map(|(_, job)| job.job_id).collect();
                effect = Ends::Jobs(ids).into();
                Reclaim::Look
            }
        };
        Some(effect)
    }

    /// The next operation of recounting.
    pub async fn recount(&mut self, book: &Book, give_up_after: Duration) -> Recounted {
        if !self.asked.is_empty() {
            let asked = std::mem::take(&mut self.asked);
            let ids: Vec<Uuid> = asked.iter().map(|node| node.parse().unwrap()).collect();
            let known = book.site.store.tenants_of(&ids).await.unwrap();
            self.tenants.extend(asked.into_iter().map(|node| (node, String::new())));
            let known = known.into_iter().map(|(id, tenant)| (id.to_string(), tenant.to_string()));
            self.tenants.extend(known);
            return Recounted::Asked;
        }
        match book.site.queue.recount(give_up_after, &self.tenants).await.unwrap() {
            Recount::Ask(nodes) => {
                self.asked = nodes;
                Recounted::Asked
            }
            Recount::Done { .. } => {
                self.tenants.clear();
                Recounted::Done
            }
            Recount::TooDeep => panic!("there are only a few jobs"),
        }
    }

    /// The next operation of the sweep; none if it has come to the end.
    pub async fn sweep(&mut self, book: &mut Book) -> Option<Effect> {
        let site = book.site;
        let mut effect = Effect::default();
        self.sweep = match std::mem::take(&mut self.sweep) {
            Sweep::Begin => {
                site.store.reopen_overwritten().await.unwrap();
                Sweep::Look(None)
            }
            Sweep::Look(after) => self.look(book, after).await,
            Sweep::End => Sweep::Begin,
            Sweep::AskForJobs(OpenPage { mut nodes, next }) => {
                let ids: Vec<Uuid> = nodes.iter().map(|node| node.id).collect();
                let without = site.queue.without_job(&ids).await.unwrap();
                nodes.retain(|node| without.contains(&node.id));
                if nodes.is_empty() { after(next) } else { Sweep::LookAgain(nodes, next) }
            }
            Sweep::LookAgain(mut lost, next) => {
                let ids: Vec<Uuid> = lost.iter().map(|node| node.id).collect();
                let open = site.store.open_among(&ids).await.unwrap();
                lost.retain(|node| open.contains(&node.id));
                Sweep::ReturnRows(lost, next)
            }
            Sweep::ReturnRows(lost, next) => {
                let ids: Vec<Uuid> = lost.iter().map(|node| node.id).collect();
                site.store.return_to_queue(&ids).await.unwrap();
                Sweep::Enqueue(lost, next)
            }
            Sweep::Enqueue(lost, next) => {
                // One that failed since it was looked at is tried once more.
                let has_failed = |node: &Uuid| {
                    book.seen.rows.get(node).is_some_and(|row| row.status == NodeStatus::Failed)
                };
                let failed: Vec<Uuid> =
                    lost.iter().map(|node| node.id).filter(has_failed).collect();
                failed.into_iter().for_each(|node| book.takes_its_turn(node));
                let job =
                    |node: Candidate| book.new_job(node.id, node.tenant_id.as_str(), Action::Embed);
                let jobs: Vec<Job> = lost.into_iter().map(job).collect();
                site.queue.enqueue(&jobs, None).await.unwrap();
                effect = Effect::past_the_limits();
                after(next)
            }
        };
        (!matches!(self.sweep, Sweep::Begin)).then_some(effect)
    }

    async fn look(&self, book: &Book, after: Option<Uuid>) -> Sweep {
        Sweep::AskForJobs(book.site.store.open_nodes(after, PAGE, ANY_AGE).await.unwrap())
    }
}

/// What comes after a page.
fn after(next: Option<Uuid>) -> Sweep {
    if next.is_some() { Sweep::Look(next) } else { Sweep::End }
}

/// How far a recount has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recounted {
    /// It wants to know the tenants of nodes first.
    Asked,
    Done,
}

/// A model had begun on the text when the worker was lost.
fn reason((lease, job): &Held, book: &Book) -> String {
    book.reason(job.node_id, Some(&book.started[lease]))
}

fn poisonous(held: &Held, book: &Book) -> Outcome {
    let job = &held.1;
    Outcome {
        id: job.node_id,
        status: NodeStatus::Failed,
        error: reason(held, book),
        attempts: job.attempts,
        subject: Subject::Processing,
    }
}
