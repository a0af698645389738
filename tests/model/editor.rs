//! An editor: a node gets a new text, or is deleted.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;
use vecmill::{
    domain::{Action, TenantId},
    queue::{Admission, Reservation},
};

use crate::{
    book::{Book, Effect, Ends},
    site::{LIMITS, literal, props},
};

/// How far it has come with a node.
#[derive(Default)]
pub enum Editor {
    #[default]
    Idle,
    Reserved(Uuid, TenantId, Reservation),
    Written(Uuid, TenantId, Reservation),
    Deleted(Uuid, TenantId),
}

impl Editor {
    pub async fn reserve(&mut self, book: &Book, node: usize) -> Option<Effect> {
        let (node, row) = book.seen.pick(node)?;
        let tenant = TenantId::new(row.tenant.as_str()).unwrap();
        let jobs = BTreeMap::from([(&tenant, 1)]);
        let admission = book.site.queue.reserve(&jobs, LIMITS).await.unwrap();
        if let Admission::Admitted(reservation) = admission {
            *self = Self::Reserved(node, tenant, reservation);
        }
        Some(Effect::default())
    }

    /// A row that is gone by now cannot be changed, and the room for its job is given back.
    pub async fn write(&mut self, book: &mut Book, with_text: bool) -> Option<Effect> {
        let Self::Reserved(node, tenant, reservation) = std::mem::take(self) else { return None };
        let props = Value::Object(props(with_text.then(|| book.new_text())));
        let statement = format!(
            "UPDATE nodes SET props = '{props}', embedding_status = 'queued', \
             embedding_attempts = 0, embedding_error = NULL, embedding_source_hash = 'stale', \
             updated_at = strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now') WHERE id = {}",
            literal(node)
        );
        if book.site.sql(&statement).await == 1 {
            *self = Self::Written(node, tenant, reservation);
        } else {
            book.site.queue.cancel(&reservation).await.unwrap();
        }
        Some(Effect::default())
    }

    pub async fn publish(&mut self, book: &mut Book) -> Option<Effect> {
        let Self::Written(node, tenant, reservation) = std::mem::take(self) else { return None };
        let job = book.new_job(node, tenant.as_str(), Action::Embed);
        book.site.queue.change(&reservation, &job).await.unwrap();
        // A retry is replaced by a job that does not wait.
        let replaced = book.seen.keys.retry.iter().any(|job| job.node_id == node);
        let ends = if replaced { Ends::Node(node) } else { Ends::Nothing };
        Some(Effect { ends, ..Effect::past_the_limits() })
    }

    pub async fn delete(&mut self, book: &Book, node: usize) -> Option<Effect> {
        let (node, row) = book.seen.pick(node)?;
        *self = Self::Deleted(node, TenantId::new(row.tenant.as_str()).unwrap());
        book.site.sql(&format!("DELETE FROM nodes WHERE id = {}", literal(node))).await;
        Some(Effect::default())
    }

    pub async fn forget(&mut self, book: &Book) -> Option<Effect> {
        let Self::Deleted(node, tenant) = std::mem::take(self) else { return None };
        book.site.queue.forget(node, &tenant).await.unwrap();
        Some(Ends::Node(node).into())
    }
}
