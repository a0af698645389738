//! Sends lines in batches, in order, as fast as the server takes them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::Value;

use super::{
    client::{BatchAnswer, Client, ClientError},
    lines::Line,
};

/// A batch is closed before it grows past this; well below what a server accepts by default.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// After so many refusals a batch is halved: a tenant's limit may be below its size.
const REFUSALS_BEFORE_SPLIT: u32 = 5;

/// A node that was not taken in.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its line.
    pub number: u64,
    /// Why.
    pub reason: String,
}

/// Collects lines and sends them.
pub struct Sender<'a> {
    client: &'a Client,
    tenant: Option<&'a str>,
    batch_max: usize,
    patience: Duration,
    waiting: Vec<Line>,
    waiting_bytes: usize,
    /// Nodes that were taken in.
    pub accepted: u64,
    /// Nodes that were not; the caller takes them out.
    pub refusals: Vec<Refusal>,
}

impl<'a> Sender<'a> {
    /// Sends to `client` at most `batch_max` nodes at once. Gives up when the server has taken
    /// nothing for `patience`.
    pub fn new(
        client: &'a Client,
        tenant: Option<&'a str>,
        batch_max: usize,
        patience: Duration,
    ) -> Self {
        Self {
            client,
            tenant,
            batch_max,
            patience,
            waiting: Vec::new(),
            waiting_bytes: 0,
            accepted: 0,
            refusals: Vec::new(),
        }
    }

    /// The first line of which the server has not said what became of it.
    pub fn first_unanswered(&self) -> Option<u64> {
        self.waiting.first().map(|line| line.number)
    }

    /// Takes a line, and sends what waits if there is a batch of it.
    pub async fn push(&mut self, line: Line) -> Result<(), ClientError> {
        if self.waiting_bytes + line.json.len() > BATCH_BYTES {
            self.flush().await?;
        }
        self.waiting_bytes += line.json.len();
        self.waiting.push(line);
        if self.waiting.len() >= self.batch_max {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what waits. After an error, what was not sent still waits.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        self.waiting_bytes = 0;
        let mut sizes = VecDeque::from([self.waiting.len()]);
        let mut refused = 0;
        let mut last_progress = Instant::now();
        while let Some(size) = sizes.pop_front() {
            if size == 0 {
                continue;
            }
            let batch = &self.waiting[..size];
            let error = match self.client.create_nodes(body(batch, self.tenant)).await {
                Ok(answer) => {
                    let bad = refusals_of(batch, &answer);
                    self.accepted += (size - bad.len()) as u64;
                    self.refusals.extend(bad);
                    self.waiting.drain(..size);
                    refused = 0;
                    last_progress = Instant::now();
                    continue;
                }
                Err(error) => error,
            };
            let wait = match &error {
                ClientError::Busy { retry_after, .. }
                | ClientError::NotReady { retry_after, .. } => *retry_after,
                ClientError::Refused { status, detail } => {
                    let is_size = matches!(
                        *status,
                        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY
                    );
                    if is_size && size > 1 {
                        split(&mut sizes, size);
                    } else if *status == StatusCode::PAYLOAD_TOO_LARGE {
                        let reason = detail.clone();
                        self.refusals.push(Refusal { number: batch[0].number, reason });
                        self.waiting.remove(0);
                    } else {
                        return Err(error);
                    }
                    self.batch_max = self.batch_max.min(size.div_ceil(2)).max(1);
                    continue;
                }
                _ => return Err(error),
            };
            if last_progress.elapsed() + wait > self.patience {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            refused += 1;
            if matches!(error, ClientError::Busy { .. })
                && refused >= REFUSALS_BEFORE_SPLIT
                && size > 1
            {
                refused = 0;
                split(&mut sizes, size);
            } else {
                sizes.push_front(size);
            }
        }
        Ok(())
    }
}

/// Two halves, the first one first.
fn split(sizes: &mut VecDeque<usize>, size: usize) {
    sizes.push_front(size / 2);
    sizes.push_front(size - size / 2);
}

/// The request body: the lines as they stand in the file.
fn body(batch: &[Line], tenant: Option<&str>) -> String {
    let nodes: Vec<&str> = batch.iter().map(|line| line.json.as_str()).collect();
    let tenant = tenant.map_or(Value::Null, Value::from);
    format!(r#"{{"tenant_id":{tenant},"nodes":[{}]}}"#, nodes.join(","))
}

fn refusals_of(batch: &[Line], answer: &BatchAnswer) -> Vec<Refusal> {
    batch
        .iter()
        .enumerate()
        .filter_map(|(index, line)| match answer.results.get(index) {
            Some(result) => {
                let error = result.error.as_deref()?;
                // The server counts inside the batch; the user counts lines.
                let place = format!("nodes[{index}]");
                let reason = error.strip_prefix(&place).unwrap_or(error);
                let reason = reason.trim_start_matches(['.', ':', ' ']).to_owned();
                Some(Refusal { number: line.number, reason })
            }
            None => {
                let reason = "the server's answer says nothing of this node".to_owned();
                Some(Refusal { number: line.number, reason })
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn lines(jsons: &[&str]) -> Vec<Line> {
        let number = 7..;
        number.zip(jsons).map(|(number, json)| Line { number, json: (*json).to_owned() }).collect()
    }

    #[test]
    fn the_body_is_json_with_the_lines_unchanged() {
        let text = body(&lines(&[r#"{"props":{"n":1.50}}"#, "{}"]), Some("a\"b"));
        assert!(text.contains("1.50"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["tenant_id"], "a\"b");
        assert_eq!(value["nodes"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_refused_node_is_known_by_its_line() {
        let answer: BatchAnswer = serde_json::from_str(
            r#"{"results":[{"id":"x"},{"error":"nodes[1].classes: is missing","tenant_id":"a"}]}"#,
        )
        .unwrap();
        let refusals = refusals_of(&lines(&["{}", "{}", "{}"]), &answer);
        assert_eq!(refusals[0], Refusal { number: 8, reason: "classes: is missing".to_owned() });
        assert_eq!(refusals[1].number, 9);
    }
}
