//! A producer and a consumer that are not ours. They do in several commands what ours do in one.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    book::{Book, Effect, Ends},
    site::{props, their_vector},
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
             VALUES ({}, {column}, {}, '{}')",
            book.site.id(node),
            book.site.classes(),
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

/// A consumer; it does not look whether the text has changed when it stores a vector.
#[derive(Default)]
pub struct TheirConsumer {
    job: Option<Taken>,
}

/// A job that it took, and what it did about it.
struct Taken {
    node: Uuid,
    tenant: String,
    /// What it read.
    text: Option<String>,
    done: usize,
}

impl TheirConsumer {
    pub fn take(&mut self, book: &Book) -> Option<Effect> {
        let entry = book.site.redis.cli(&["RPOP", "embedding:queue"]);
        if entry.is_empty() {
            return None;
        }
        let job: Value = serde_json::from_str(&entry).unwrap();
        let tenant = job["tenant_id"].as_str().unwrap_or("default").to_owned();
        let node = job["node_id"].as_str().unwrap().parse().unwrap();
        self.job = Some(Taken { node, tenant, text: None, done: 0 });
        Some(Ends::Jobs(vec![job["job_id"].as_str().unwrap().to_owned()]).into())
    }

    pub async fn advance(&mut self, book: &Book) -> Option<Effect> {
        let Taken { node, tenant, text, done } = self.job.as_mut()?;
        let (id, site) = (book.site.id(*node), book.site);
        match *done {
            0 => {
                let status = "UPDATE nodes SET embedding_status = 'processing'";
                site.sql(&format!("{status} WHERE id = {id}")).await;
                *text = book.seen.rows.get(node).and_then(|row| row.text.clone());
            }
            1 => {
                let result = match text {
                    Some(text) => {
                        format!("'ready', embedding = {}", site.vector(&their_vector(text)))
                    }
                    None => "'skipped'".to_owned(),
                };
                site.sql(&format!(
                    "UPDATE nodes SET embedding_status = {result}, embedding_error = NULL \
                     WHERE id = {id}"
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
