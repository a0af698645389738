//! Embedding while the client waits: `EMBEDDING_ASYNC=false`.

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;
use tracing::error;

use super::{
    api::{Accepted, RuntimeError},
    context::source_hash,
    finish::is_unit,
    prepare::{encode_all, reason_without_text},
};
use crate::{
    domain::{NewNode, NodeStatus, batch::plan, node::text_of_props},
    inference::{BackendThread, EmbedError, Encoding, Model},
    store::{Outcome, Store, Vector},
    telemetry::{Chain, metrics},
};

/// The name of the inference thread.
const THREAD: &str = "inline-embedder";

fn outcome(node: &NewNode, status: NodeStatus, error: String) -> Outcome {
    Outcome { id: node.id, status, error, attempts: 0, begun: true }
}

/// A text and its vector.
struct Embedded {
    text: String,
    truncated: bool,
    values: Vec<f32>,
}

/// A model and the thread that runs it.
pub struct InlineEmbedder {
    model: Model,
    thread: Mutex<BackendThread>,
    batch_tokens: usize,
    batch_texts: usize,
}

impl InlineEmbedder {
    /// Starts the thread. Batches hold at most `batch_tokens` tokens and `batch_texts` texts.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(model: Model, batch_tokens: usize, batch_texts: usize) -> std::io::Result<Self> {
        let thread = Mutex::new(BackendThread::spawn(THREAD, model.backend.clone())?);
        Ok(Self { model, thread, batch_tokens, batch_texts })
    }

    /// Embeds nodes and writes them with their vectors. A text that the model refuses makes a
    /// `failed` node; a model that is away makes an error, and nothing is written.
    pub(super) async fn ingest(
        &self,
        store: &Store,
        nodes: Vec<NewNode>,
    ) -> Result<Vec<Accepted>, RuntimeError> {
        let texts: Vec<Option<String>> =
            nodes.iter().map(|node| text_of_props(&node.props).map(str::to_owned)).collect();
        let with_text: Vec<usize> = (0..texts.len()).filter(|&i| texts[i].is_some()).collect();
        let encoded = encode_all(&self.model, texts.into_iter().flatten().collect()).await;

        let mut embeddings: Vec<Result<Embedded, String>> = Vec::new();
        let counts: Vec<usize> = encoded
            .iter()
            .map(|(_, encoding)| encoding.as_ref().map_or(0, |encoding| encoding.ids.len()))
            .collect();
        embeddings.resize_with(encoded.len(), || Err("not embedded".to_owned()));
        for batch in plan(&counts, self.batch_tokens, self.batch_texts) {
            let good: Vec<usize> = batch.into_iter().filter(|&i| encoded[i].1.is_ok()).collect();
            let encodings: Vec<Encoding> =
                good.iter().filter_map(|&i| encoded[i].1.as_ref().ok().cloned()).collect();
            for (i, vector) in good.into_iter().zip(self.embed(encodings).await?) {
                let truncated = encoded[i].1.as_ref().is_ok_and(|encoding| encoding.truncated);
                let text = encoded[i].0.clone();
                embeddings[i] = vector.map(|values| Embedded { text, truncated, values });
            }
        }
        for (i, (_, encoding)) in encoded.iter().enumerate() {
            if let Err(error) = encoding {
                embeddings[i] = Err(error.to_string());
            }
        }
        let mut embeddings = with_text.into_iter().zip(embeddings).peekable();
        let rows: Vec<(NewNode, Result<Vector, Outcome>)> = nodes
            .into_iter()
            .enumerate()
            .map(|(i, node)| {
                let result = match embeddings.next_if(|(index, _)| *index == i) {
                    Some((_, embedding)) => self.result(&node, embedding),
                    None => {
                        let reason = reason_without_text(node.payload_ref.is_some());
                        Err(outcome(&node, NodeStatus::Skipped, reason.to_owned()))
                    }
                };
                (node, result)
            })
            .collect();
        store.insert_ready(&rows).await?;
        metrics::nodes_ingested(rows.len());
        Ok(rows
            .into_iter()
            .map(|(node, result)| Accepted {
                id: node.id,
                tenant_id: node.tenant_id,
                status: result.map_or_else(|outcome| outcome.status, |_| NodeStatus::Ready),
                job_id: None,
            })
            .collect())
    }

    fn result(
        &self,
        node: &NewNode,
        embedding: Result<Embedded, String>,
    ) -> Result<Vector, Outcome> {
        let Embedded { text, truncated, values } =
            embedding.map_err(|reason| outcome(node, NodeStatus::Failed, reason))?;
        Ok(Vector {
            id: node.id,
            source_hash: source_hash(&self.model, &text),
            text,
            values,
            truncated,
            attempts: 0,
        })
    }

    /// One answer a text; a batch that fails is done text by text.
    async fn embed(
        &self,
        encodings: Vec<Encoding>,
    ) -> Result<Vec<Result<Vec<f32>, String>>, RuntimeError> {
        let checked = |vector: Vec<f32>| {
            if is_unit(&vector, self.model.backend.dimension()) {
                Ok(vector)
            } else {
                Err("the model's vector is not of length 1".to_owned())
            }
        };
        match self.submit(encodings.clone()).await? {
            Ok(vectors) if vectors.len() == encodings.len() => {
                return Ok(vectors.into_iter().map(checked).collect());
            }
            Ok(_) => error!("the model lost count of the texts"),
            Err(error) => {
                error!(error = %Chain(&error), "a batch failed; embedding its texts one by one")
            }
        }
        let mut answers = Vec::with_capacity(encodings.len());
        for encoding in encodings {
            answers.push(match self.submit(vec![encoding]).await? {
                Ok(mut vectors) => vectors
                    .pop()
                    .map_or_else(|| Err("the model lost count of the texts".to_owned()), checked),
                Err(error) => Err(error.to_string()),
            });
        }
        Ok(answers)
    }

    /// Runs a batch; a thread that panicked is replaced, and the client told to try again.
    async fn submit(
        &self,
        batch: Vec<Encoding>,
    ) -> Result<Result<Vec<Vec<f32>>, EmbedError>, RuntimeError> {
        let answer: oneshot::Receiver<_> = {
            // The guard protects a handle that is only ever replaced as a whole.
            self.thread.lock().unwrap_or_else(PoisonError::into_inner).submit(batch)
        };
        match answer.await {
            Ok(Err(error @ EmbedError::Device(_))) => {
                error!(error = %Chain(&error), "the device is away");
                Err(RuntimeError::Embedder)
            }
            Ok(answer) => Ok(answer),
            Err(_) => {
                error!("the inference thread panicked; starting another");
                if let Ok(thread) = BackendThread::spawn(THREAD, self.model.backend.clone()) {
                    *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = thread;
                }
                Err(RuntimeError::Embedder)
            }
        }
    }
}
