//! Embedding while the client waits: `EMBEDDING_ASYNC=false`.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::error;
use uuid::Uuid;

use super::{
    api::{Accepted, RuntimeError},
    context::source_hash,
    finish::is_unit,
    prepare::{encode_all, reason_without_text},
    restart::{Decision, HANGS, HUNG, RestartHistory},
};
use crate::{
    config::WorkerConfig,
    domain::{NewNode, NodeStatus, batch::plan, node::text_of_props},
    inference::{BackendThread, EmbedError, Encoding, Model},
    store::{Outcome, Store, TextSource, Vector},
    telemetry::{Chain, metrics},
};

/// The name of the inference thread.
const THREAD: &str = "inline-embedder";

/// A text and its vector.
struct Embedded {
    text: String,
    truncated: bool,
    values: Vec<f32>,
}

/// A model and the thread that runs it.
pub struct InlineEmbedder {
    model: Model,
    thread: Mutex<Arc<BackendThread>>,
    batch_tokens: usize,
    batch_texts: usize,
    batch_timeout: Duration,
    started: Instant,
    hangs: Mutex<RestartHistory>,
    fatal: watch::Sender<Option<String>>,
}

/// How a thread was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Panicked,
    Hangs,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panicked => "panicked",
            Self::Hangs => "hangs",
        })
    }
}

impl InlineEmbedder {
    /// Starts the thread. Batches are as large, and may take as long, as `config` says. When models
    /// hang too often, the reason to end the process goes to `fatal`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(
        model: Model,
        config: &WorkerConfig,
        fatal: watch::Sender<Option<String>>,
    ) -> std::io::Result<Self> {
        let thread = BackendThread::spawn(THREAD, model.backend.clone())?;
        Ok(Self {
            model,
            thread: Mutex::new(Arc::new(thread)),
            batch_tokens: config.batch_tokens,
            batch_texts: config.batch_texts,
            batch_timeout: config.batch_timeout,
            started: Instant::now(),
            hangs: Mutex::new(RestartHistory::new(HANGS)),
            fatal,
        })
    }

    /// Embeds nodes and writes them with their vectors. A text that the model refuses makes a
    /// `failed` node; a model that is away makes an error, and nothing is written.
    pub(super) async fn ingest(
        &self,
        store: &Store,
        nodes: Vec<NewNode>,
    ) -> Result<Vec<Accepted>, RuntimeError> {
        let texts = nodes.iter().map(|node| text_of_props(&node.props).map(str::to_owned));
        let with_text: Vec<usize> =
            (0..nodes.len()).filter(|&i| text_of_props(&nodes[i].props).is_some()).collect();
        let embeddings = self.embed_texts(texts.flatten().collect()).await?;
        let mut embeddings = with_text.into_iter().zip(embeddings).peekable();
        let rows: Vec<(NewNode, Result<Vector, Outcome>)> = nodes
            .into_iter()
            .enumerate()
            .map(|(i, node)| {
                let embedding = embeddings.next_if(|(index, _)| *index == i);
                let embedding = embedding.map(|(_, embedding)| embedding);
                let result = self.result(node.id, node.payload_ref.is_some(), embedding);
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

    /// Embeds the text of a node that is there, and writes nothing.
    pub(super) async fn embed_source(
        &self,
        id: Uuid,
        source: &TextSource,
    ) -> Result<Result<Vector, Outcome>, RuntimeError> {
        let texts = source.text.iter().cloned().collect();
        let embedding = self.embed_texts(texts).await?.pop();
        Ok(self.result(id, source.payload_ref.is_some(), embedding))
    }

    /// One answer a text, in order: its vector, or why it has none.
    async fn embed_texts(
        &self,
        texts: Vec<String>,
    ) -> Result<Vec<Result<Embedded, String>>, RuntimeError> {
        let encoded = encode_all(&self.model, texts).await;
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
        Ok(embeddings)
    }

    /// What is written for a node; `embedding` is `None` when it has no text.
    fn result(
        &self,
        id: Uuid,
        has_payload_ref: bool,
        embedding: Option<Result<Embedded, String>>,
    ) -> Result<Vector, Outcome> {
        let outcome = |status, error| Outcome { id, status, error, attempts: 0, begun: true };
        let Some(embedding) = embedding else {
            let reason = reason_without_text(has_payload_ref);
            return Err(outcome(NodeStatus::Skipped, reason.to_owned()));
        };
        let Embedded { text, truncated, values } =
            embedding.map_err(|reason| outcome(NodeStatus::Failed, reason))?;
        Ok(Vector {
            id,
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
        let thread = Arc::clone(&self.thread());
        let answer = tokio::select! {
            answer = thread.submit(batch) => answer.map_err(|_| Lost::Panicked),
            () = thread.hangs(self.batch_timeout) => Err(Lost::Hangs),
        };
        match answer {
            Ok(Err(error @ EmbedError::Device(_))) => {
                error!(error = %Chain(&error), "the device is away");
                Err(RuntimeError::Embedder)
            }
            Ok(answer) => Ok(answer),
            Err(lost) => {
                self.replace(&thread, lost);
                Err(RuntimeError::Embedder)
            }
        }
    }

    fn thread(&self) -> MutexGuard<'_, Arc<BackendThread>> {
        // The guard protects a handle that is only ever replaced as a whole.
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts another thread in the place of one that is lost, unless somebody did so already.
    fn replace(&self, lost: &Arc<BackendThread>, how: Lost) {
        let mut thread = self.thread();
        if !Arc::ptr_eq(&thread, lost) {
            return;
        }
        error!("the inference thread {how}; starting another");
        if how == Lost::Hangs {
            let mut hangs = self.hangs.lock().unwrap_or_else(PoisonError::into_inner);
            if hangs.on_failure(self.started.elapsed()) == Decision::GiveUp {
                self.fatal.send_replace(Some(HUNG.to_owned()));
            }
        }
        match BackendThread::spawn(THREAD, self.model.backend.clone()) {
            Ok(next) => *thread = Arc::new(next),
            Err(error) => error!(%error, "cannot start another inference thread"),
        }
    }
}
