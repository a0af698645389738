//! A worker: it claims jobs, and takes each through its operations one by one.

use std::{collections::HashMap, time::Duration};

use vecmill::{
    domain::{Action, FailureKind, Job, NodeStatus},
    queue::{DeadLetter, Lease, TenantLimits},
    store::{BeginJob, Outcome, Subject, TextRow, Vector, text_hash},
};

use crate::{
    book::{Book, Effect},
    site::{LEASE, RETRY, hash_of, our_vector},
};

/// What comes next for a job in hand.
enum Next {
    Begin,
    /// The row has no text: record that.
    Skip,
    /// The row is done with another text or by another program: mark it `processing` all the same.
    Mark {
        text: String,
    },
    Start {
        text: String,
    },
    Clear {
        text: String,
    },
    Complete {
        text: String,
    },
    Ack,
    /// Also when the text changed meanwhile, or the row is gone: then the row is left alone.
    HandBack,
    /// The job goes back, and its row was left to the end.
    ReturnRowAtLast,
    Retry {
        delay: Duration,
        reason: String,
    },
    Bury {
        reason: String,
    },
}

struct Held {
    lease: Lease,
    token: String,
    job: Job,
    next: Next,
}

/// The jobs in its hand, in the order of their claims.
#[derive(Default)]
pub struct Worker {
    hand: Vec<Held>,
}

impl Worker {
    /// Claims jobs; none if none wait.
    pub async fn claim(
        &mut self,
        book: &mut Book,
        wanted: usize,
        one_a_tenant: bool,
    ) -> Option<Effect> {
        if book.seen.keys.queue.is_empty() {
            return None;
        }
        let limits = one_a_tenant.then(|| TenantLimits { default: 1, of_tenants: HashMap::new() });
        let claimed = book.site.queue.claim(wanted, LEASE, limits.as_ref()).await.unwrap();
        let after = book.site.look().await;
        let mut tokens =
            after.keys.inflight.into_keys().filter(|token| !book.holds(token)).collect::<Vec<_>>();
        assert_eq!(tokens.len(), claimed.len(), "each job claimed is under a lease of its own");
        for claimed in claimed {
            let token = tokens.remove(0);
            let (lease, job) = (claimed.lease, claimed.job.unwrap());
            self.hand.push(Held { lease, token, job, next: Next::Begin });
        }
        Some(Effect::default())
    }

    /// Jobs in its hand.
    pub fn jobs(&self) -> usize {
        self.hand.len()
    }

    /// The next operation on a job.
    pub async fn advance(&mut self, book: &mut Book, job: usize) -> Effect {
        let held = &mut self.hand[job];
        let (next, effect) = held.advance(book).await;
        match next {
            Some(next) => held.next = next,
            None => drop(self.hand.remove(job)),
        }
        effect
    }

    /// Whether nothing has become of a job yet.
    pub fn is_undecided(&self, job: usize) -> bool {
        use Next::{Begin, Clear, Complete, Start};
        matches!(self.hand[job].next, Begin | Start { .. } | Clear { .. } | Complete { .. })
    }

    /// Records that an undecided job failed. One whose row was not read yet can be tried again. One
    /// whose row is about something else by now is handed back.
    pub async fn fail(&mut self, book: &Book, job: usize, kind: FailureKind) -> Effect {
        let held = &mut self.hand[job];
        held.job.attempts += 1;
        let text = match &held.next {
            Next::Start { text } | Next::Clear { text } | Next::Complete { text } => Some(text),
            _ => None,
        };
        let node = held.job.node_id;
        let begun = text.is_some();
        let unread = || book.seen.rows.get(&node).and_then(|row| row.text.as_ref());
        let reason = book.reason(node, text.or_else(unread).map(String::as_str));
        let is_permanent = kind == FailureKind::Permanent && begun;
        let delay = if is_permanent { None } else { RETRY.delay(held.job.attempts) };
        let status = if delay.is_some() { NodeStatus::Queued } else { NodeStatus::Failed };
        let of_text = |text: &String| Subject::Text(Some(text_hash(text)));
        let subject = text.map_or(Subject::Unread, of_text);
        let is_recorded = record(book, &held.job, status, &reason, subject).await;
        held.next = match delay {
            _ if begun && !is_recorded => Next::HandBack,
            Some(delay) => Next::Retry { delay, reason },
            None => Next::Bury { reason },
        };
        Effect::default()
    }

    /// Begins to hand an undecided job back.
    pub async fn give_back(&mut self, book: &Book, job: usize, row_first: bool) -> Effect {
        let held = &mut self.hand[job];
        if row_first {
            book.site.store.return_to_queue(&[held.job.node_id]).await.unwrap();
            held.next = Next::HandBack;
            return Effect::default();
        }
        held.next = Next::ReturnRowAtLast;
        held.hand_back(book).await
    }

    /// Prolongs all leases. A worker that is told of one that it lost goes on all the same.
    pub async fn extend(&mut self, book: &Book) -> Option<Effect> {
        if self.hand.is_empty() {
            return None;
        }
        let leases: Vec<Lease> = self.hand.iter().map(|held| held.lease.clone()).collect();
        let lost = book.site.queue.extend(&leases, LEASE).await.unwrap();
        let gone = self.hand.iter().filter(|held| !book.holds(&held.token));
        let gone: Vec<Lease> = gone.map(|held| held.lease.clone()).collect();
        assert_eq!(lost, gone, "a worker is told which leases it lost");
        Some(Effect::default())
    }
}

const FAILED_AT: f64 = 1_795_477_999.5;

impl Held {
    /// The next operation; what comes after it, unless the job is out of hand.
    async fn advance(&self, book: &mut Book) -> (Option<Next>, Effect) {
        let site = book.site;
        let (queue, store) = (&site.queue, &site.store);
        let (lease, job) = (self.lease.clone(), &self.job);
        let node = job.node_id;
        match &self.next {
            Next::Begin => {
                let refresh = job.action == Action::Refresh;
                let begin = BeginJob {
                    id: node,
                    tenant_id: job.tenant_id.clone(),
                    refresh,
                    failed_attempts: job.attempts,
                };
                let row = store.begin(&[begin], usize::MAX).await.unwrap().pop();
                (Some(after_reading(job, row)), Effect::default())
            }
            Next::Skip => {
                let subject = Subject::Text(None);
                let is_recorded = record(book, job, NodeStatus::Skipped, "no text", subject).await;
                let next = if is_recorded { Next::Ack } else { Next::HandBack };
                (Some(next), Effect::default())
            }
            Next::Mark { text } => {
                let begin = BeginJob {
                    id: node,
                    tenant_id: job.tenant_id.clone(),
                    refresh: true,
                    failed_attempts: job.attempts,
                };
                store.begin(&[begin], usize::MAX).await.unwrap();
                (Some(Next::Start { text: text.clone() }), Effect::default())
            }
            Next::Start { text } => {
                queue.start(std::slice::from_ref(&lease)).await.unwrap();
                book.started.insert(lease, text.clone());
                (Some(Next::Clear { text: text.clone() }), Effect::under(&self.token))
            }
            Next::Clear { text } => {
                queue.clear(&[lease]).await.unwrap();
                (Some(Next::Complete { text: text.clone() }), Effect::under(&self.token))
            }
            Next::Complete { text } => {
                let vector = Vector {
                    id: node,
                    text_hash: Some(text_hash(text)),
                    source_hash: hash_of(text),
                    input_hash: None,
                    values: our_vector(text),
                    truncated: false,
                    failed_attempts: job.attempts,
                };
                let stored = store.complete(&[vector]).await.unwrap();
                let next = if stored == [node] { Next::Ack } else { Next::HandBack };
                (Some(next), Effect::default())
            }
            Next::Ack => {
                let stale = queue.ack(&[(lease, job.clone())]).await.unwrap();
                self.assert_told(book, stale);
                (None, Effect::under(&self.token).ending(job))
            }
            Next::ReturnRowAtLast => {
                store.return_to_queue(&[node]).await.unwrap();
                (None, Effect::default())
            }
            Next::HandBack => (None, self.hand_back(book).await),
            Next::Retry { delay, reason } => {
                let stale = queue.retry(&[(lease, job.clone(), *delay)]).await.unwrap();
                self.assert_told(book, stale);
                (None, self.failing(book, self.giving_way(book), reason, stale))
            }
            Next::Bury { reason } => {
                let letter = DeadLetter::of_job(lease, job, reason, FAILED_AT);
                let (stale, _) = queue.dead_letter(&[letter], false).await.unwrap();
                self.assert_told(book, stale);
                let effect = Effect::under(&self.token).ending(job);
                (None, self.failing(book, effect, reason, stale))
            }
        }
    }

    async fn hand_back(&self, book: &Book) -> Effect {
        let held = (self.lease.clone(), Some(self.job.node_id));
        let back = book.site.queue.hand_back(&[held]).await.unwrap();
        self.assert_told(book, 1 - back);
        self.giving_way(book)
    }

    /// A job for a newer text takes the place of this one.
    fn giving_way(&self, book: &Book) -> Effect {
        let effect = Effect::under(&self.token);
        if book.has_newer_text(self.job.node_id) { effect.ending(&self.job) } else { effect }
    }

    /// An attempt is counted as failed with the job, by its holder only. What a job has failed that
    /// gives way to another does not count, though it may have read the newer text.
    fn failing(&self, book: &Book, effect: Effect, reason: &str, stale: u64) -> Effect {
        let node = self.job.node_id;
        let counts = stale == 0 && !book.has_newer_text(node);
        if counts { effect.failing(node, reason) } else { effect }
    }

    fn assert_told(&self, book: &Book, stale: u64) {
        assert_eq!(stale == 0, book.holds(&self.token), "a worker is told when it lost its lease");
    }
}

/// What to do with a job, by its row.
fn after_reading(job: &Job, row: Option<TextRow>) -> Next {
    let Some(row) = row else { return Next::Ack };
    let looks_done =
        row.status == NodeStatus::Ready && row.has_embedding && job.action == Action::Embed;
    match row.text {
        // It was not marked, and so takes no outcome.
        None if looks_done => Next::Ack,
        None => Next::Skip,
        Some(text) if !looks_done => Next::Start { text },
        Some(text) if row.source_hash == Some(hash_of(&text)) => Next::Ack,
        Some(text) => Next::Mark { text },
    }
}

/// Whether the row is about this outcome.
async fn record(book: &Book, job: &Job, status: NodeStatus, error: &str, subject: Subject) -> bool {
    let outcome = Outcome {
        id: job.node_id,
        status,
        error: error.to_owned(),
        attempts: job.attempts,
        subject,
    };
    book.site.store.record(&[outcome]).await.unwrap() == [job.node_id]
}
