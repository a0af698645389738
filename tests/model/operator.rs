//! An operator: nodes are enqueued again, dead letters are deleted.

use vecmill::{
    domain::{Action, Job, NodeStatus, TenantScope},
    queue::Enqueued,
    store::{Candidate, Cursor, RequeueFilter},
};

use crate::{
    book::{Book, Effect},
    site::LIMITS,
};

/// How far a requeue has come.
#[derive(Default)]
pub enum Operator {
    #[default]
    Idle,
    Found(Vec<Candidate>, Action),
    Enqueued(Vec<Candidate>),
}

impl Operator {
    pub async fn find(
        &mut self,
        book: &Book,
        status: Option<NodeStatus>,
        action: Action,
    ) -> Effect {
        let filter = RequeueFilter {
            scope: TenantScope::All,
            node_ids: None,
            status,
            only_missing_embedding: false,
            limit: 3,
            from: Cursor::default(),
        };
        let found = book.site.store.requeue_candidates(&filter).await.unwrap();
        *self = Self::Found(found, action);
        Effect::default()
    }

    pub async fn requeue(&mut self, book: &mut Book) -> Option<Effect> {
        *self = match std::mem::take(self) {
            Self::Idle => return None,
            Self::Found(nodes, action) => {
                let job = |node: &Candidate| book.new_job(node.id, node.tenant_id.as_str(), action);
                let jobs: Vec<Job> = nodes.iter().map(job).collect();
                let answers = book.site.queue.enqueue(&jobs, Some(LIMITS)).await.unwrap();
                nodes.iter().for_each(|node| book.takes_its_turn(node.id));
                let new = |(node, answer)| (answer == Enqueued::New).then_some(node);
                Self::Enqueued(nodes.into_iter().zip(answers).filter_map(new).collect())
            }
            Self::Enqueued(nodes) => {
                book.site.store.mark_queued(&nodes).await.unwrap();
                Self::Idle
            }
        };
        Some(Effect::default())
    }
}
