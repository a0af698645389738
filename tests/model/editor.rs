//! An editor: a node gets a new text, or is deleted.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use uuid::Uuid;
use vecmill::{
    domain::{Action, NodePatch, TenantId, TenantScope},
    queue::{Admission, Reservation},
    store::{OnNewText, Patched},
};

use crate::{
    book::{Book, Effect, Ends},
    site::LIMITS,
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

    /// A row that is gone by now cannot be changed, and one that stays without a text needs no job:
    /// the room for it is given back.
    pub async fn write(&mut self, book: &mut Book, with_text: bool) -> Option<Effect> {
        let Self::Reserved(node, tenant, reservation) = std::mem::take(self) else { return None };
        let text = match with_text {
            true => format!("text {}", book.new_text()).into(),
            false => Value::Null,
        };
        let props = Map::from_iter([("text".to_owned(), text)]);
        let patch = NodePatch { props: Some(props), ..NodePatch::default() };
        let scope = TenantScope::from_optional(Some(tenant.clone()));
        let patched = book.site.store.patch(&scope, node, &patch, OnNewText::Queue).await.unwrap();
        if matches!(patched, Patched::Done { has_new_text: true, .. }) {
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
        book.takes_its_turn(node);
        // A retry is replaced by a job that does not wait, a job in the queue that failed with an
        // older text by one that did not.
        let (queue, retry) = (&book.seen.keys.queue, &book.seen.keys.retry);
        let failed = queue.iter().filter(|job| job.attempts + job.lost > 0);
        let replaced = retry.iter().chain(failed).any(|job| job.node_id == node);
        let ends = if replaced { Ends::Node(node) } else { Ends::Nothing };
        Some(Effect { ends, ..Effect::past_the_limits() })
    }

    pub async fn delete(&mut self, book: &Book, node: usize) -> Option<Effect> {
        let (node, row) = book.seen.pick(node)?;
        let tenant = TenantId::new(row.tenant.as_str()).unwrap();
        let scope = TenantScope::from_optional(Some(tenant.clone()));
        let deleted = book.site.store.delete(&scope, node).await.unwrap();
        assert_eq!(deleted.as_ref(), Some(&tenant));
        *self = Self::Deleted(node, tenant);
        Some(Effect::default())
    }

    pub async fn forget(&mut self, book: &Book) -> Option<Effect> {
        let Self::Deleted(node, tenant) = std::mem::take(self) else { return None };
        book.site.queue.forget(node, &tenant).await.unwrap();
        Some(Ends::Node(node).into())
    }
}
