//! A producer and a consumer that are not ours. They do in several commands what ours do in one.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    book::{Book, Effect, Ends},
    site::{THEIR_VECTOR, literal, props},
};

/// A node that it turned to, and the commands that it gave for it.
#[derive(Default)]
pub struct TheirProducer {
    node: Option<(Uuid, Option<String>, usize)>,
}

impl TheirProducer {
    pub async fn turn_to(
        &mut self,
        book: &mut Book,
        node: Option<usize>,
        tenant_is_null: bool,
    ) -> Option<Effect> {
        if let Some(node) = node {
            let (node, row) = book.seen.pick(node)?;
            let tenant = (row.tenant != "default" || !tenant_is_null).then(|| row.tenant.clone());
            self.node = Some((node, tenant, 0));
            return Some(Effect::default());
        }
        let (node, text) = (book.new_node(), book.new_text());
        let tenant = (!tenant_is_null).then(|| "acme".to_owned());
        let column = tenant.as_ref().map_or("NULL".to_owned(), |tenant| format!("'{tenant}'"));
        let statement = format!(
            "INSERT INTO nodes (id, tenant_id, classes, props) \
             VALUES ({}, {column}, '[\"Chunk\"]', '{}')",
            literal(node),
            Value::Object(props(Some(text)))
        );
        book.site.sql(&statement).await;
        self.node = Some((node, tenant, 0));
        Some(Effect::default())
    }

    pub fn command(&mut self, book: &mut Book) -> Option<Effect> {
        let (node, tenant, done) = self.node.as_mut()?;
        let count = format!("embedding:tenant:pending:{}", tenant.as_deref().unwrap_or("default"));
        let redis = &book.site.redis;
        let answer = match *done {
            0 => redis.cli(&["SET", &format!("embedding:pending:{node}"), "1", "NX", "EX", "3600"]),
            1 => {
                let job = book.new_job(*node, "default", vecmill::domain::Action::Embed).job_id;
                let tenant = json!(tenant);
                let entry = format!(
                    r#"{{"job_id": "{job}", "node_id": "{node}", "tenant_id": {tenant}, "action": "embed", "attempts": 0, "enqueued_at": 1795477681.46, "source": "theirs"}}"#
                );
                redis.cli(&["LPUSH", "embedding:queue", &entry])
            }
            2 => redis.cli(&["INCRBY", &count, "1"]),
            _ => redis.cli(&["EXPIRE", &count, "3600"]),
        };
        *done += 1;
        // A node that has a live job already gets no other.
        if answer.is_empty() || *done == 4 {
            self.node = None;
        }
        Some(Effect::past_the_limits())
    }
}

/// A job that it took, and what it did about it.
#[derive(Default)]
pub struct TheirConsumer {
    job: Option<(Uuid, String, usize)>,
}

impl TheirConsumer {
    pub fn take(&mut self, book: &Book) -> Option<Effect> {
        let entry = book.site.redis.cli(&["RPOP", "embedding:queue"]);
        if entry.is_empty() {
            return None;
        }
        let job: Value = serde_json::from_str(&entry).unwrap();
        let tenant = job["tenant_id"].as_str().unwrap_or("default").to_owned();
        self.job = Some((job["node_id"].as_str().unwrap().parse().unwrap(), tenant, 0));
        Some(Ends::Jobs(vec![job["job_id"].as_str().unwrap().to_owned()]).into())
    }

    pub async fn advance(&mut self, book: &Book) -> Option<Effect> {
        let (node, tenant, done) = self.job.as_mut()?;
        let (id, site) = (literal(*node), book.site);
        match *done {
            0 => {
                let status = "UPDATE nodes SET embedding_status = 'processing'";
                site.sql(&format!("{status} WHERE id = {id}")).await;
            }
            1 => {
                let bytes: Vec<u8> = THEIR_VECTOR.iter().flat_map(|x| x.to_le_bytes()).collect();
                let blob: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                site.sql(&format!(
                    "UPDATE nodes SET embedding = x'{blob}', embedding_status = 'ready', \
                     embedding_error = NULL WHERE id = {id}"
                ))
                .await;
            }
            2 => drop(site.redis.cli(&["DEL", &format!("embedding:pending:{node}")])),
            _ => {
                let count = format!("embedding:tenant:pending:{tenant}");
                site.redis.cli(&["DECRBY", &count, "1"]);
            }
        }
        *done += 1;
        if *done == 4 {
            self.job = None;
        }
        Some(Effect::default())
    }
}
