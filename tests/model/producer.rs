//! A producer: room is reserved, rows are written, jobs are published.

use std::collections::BTreeMap;

use vecmill::{
    domain::{Action, Job, NewNode, NodeStatus, TenantId},
    queue::{Admission, Reservation},
    store::OnRefusal,
};

use crate::{
    book::{Book, Effect},
    site::{LIMITS, TENANTS, props},
};

/// How far it has come with a request.
#[derive(Default)]
pub enum Producer {
    #[default]
    Idle,
    Reserved(Reservation, &'static [&'static str]),
    Written(Reservation, Vec<Job>),
}

impl Producer {
    /// Asks for room for one node of each of so many tenants.
    pub async fn reserve(&mut self, book: &Book, nodes: usize) -> Effect {
        let names = &TENANTS[..nodes];
        let tenants: Vec<TenantId> =
            names.iter().map(|tenant| TenantId::new(*tenant).unwrap()).collect();
        let jobs: BTreeMap<&TenantId, u64> = tenants.iter().map(|tenant| (tenant, 1)).collect();
        *self = match book.site.queue.reserve(&jobs, LIMITS).await.unwrap() {
            Admission::Admitted(reservation) => Self::Reserved(reservation, names),
            Admission::QueueFull | Admission::TenantFull(_) => Self::Idle,
        };
        Effect::default()
    }

    pub async fn insert(&mut self, book: &mut Book, with_text: bool) -> Option<Effect> {
        let Self::Reserved(reservation, tenants) = self else { return None };
        let (mut rows, mut jobs) = (Vec::new(), Vec::new());
        for tenant in *tenants {
            let text = with_text.then(|| book.new_text());
            let id = book.new_node();
            rows.push(NewNode {
                id,
                tenant_id: TenantId::new(*tenant).unwrap(),
                classes: vec!["Doc".to_owned()],
                props: props(text),
                payload_ref: None,
                metadata: None,
                refresh_policy: None,
                triggers: None,
            });
            jobs.push(book.new_job(id, tenant, Action::Embed));
        }
        book.site
            .store
            .insert_nodes(&rows, NodeStatus::Queued, OnRefusal::KeepOthers)
            .await
            .unwrap();
        *self = Self::Written(reservation.clone(), jobs);
        Some(Effect::default())
    }

    pub async fn publish(&mut self, book: &mut Book) -> Option<Effect> {
        let Self::Written(reservation, jobs) = self else { return None };
        book.site.queue.publish(reservation, jobs).await.unwrap();
        jobs.iter().for_each(|job| book.takes_its_turn(job.node_id));
        *self = Self::Idle;
        Some(Effect::past_the_limits())
    }

    pub async fn cancel(&mut self, book: &Book) -> Option<Effect> {
        let Self::Reserved(reservation, _) = self else { return None };
        book.site.queue.cancel(reservation).await.unwrap();
        *self = Self::Idle;
        Some(Effect::default())
    }
}
