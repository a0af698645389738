//! Embedding while the client waits: `EMBEDDING_ASYNC=false`.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::error;
use uuid::Uuid;

use super::{
    api::{Accepted, RuntimeError},
    cache::{self, input_hash},
    context::source_hash,
    finish::is_unit,
    ingest::each,
    line::Line,
    prepare::{cost_of, reason_without_text},
    restart::{Decision, HANGS, HUNG, RestartHistory},
    tokenise::encode_all,
};
use crate::{
    config::WorkerConfig,
    domain::{NewNode, NodeStatus, batch::plan},
    heavy::Weight,
    inference::{BackendThread, EmbedError, Encoding, Model},
    store::{InputHash, OnRefusal, Outcome, Refusal, Store, Subject, TextRule, TextSource, Vector},
    telemetry::{Chain, metrics},
};

/// The name of the inference thread.
const THREAD: &str = "inline-embedder";

/// Batches that may be ahead of a model while nobody knows how fast it is.
const UNKNOWN_BATCHES: usize = 16;

/// A new node and what is to be written of its text.
pub type Embedding = (NewNode, Result<Vector, Outcome>);

/// A text and its vector.
struct Embedded {
    text: String,
    truncated: bool,
    input_hash: Option<InputHash>,
    values: Vec<f32>,
}

/// A model and the thread that runs it.
pub struct InlineEmbedder {
    model: Model,
    thread: Mutex<Arc<BackendThread>>,
    batch_tokens: usize,
    batch_texts: usize,
    has_cache: bool,
    batch_timeout: Duration,
    line: Line,
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

/// Writes embedded nodes with their vectors.
pub(super) async fn write_new(
    store: &Store,
    rows: Vec<Embedding>,
    on_refusal: OnRefusal,
    weight: Weight,
) -> Result<Vec<Result<Accepted, Refusal>>, RuntimeError> {
    let refusals = store.insert_ready(&rows, on_refusal).await?;
    let refused = refusals.iter().flatten().count();
    if on_refusal == OnRefusal::KeepOthers || refused == 0 {
        metrics::nodes_ingested(rows.len() - refused);
    }
    let to_accepted = |(node, result): Embedding| Accepted {
        id: node.id,
        tenant_id: node.tenant_id,
        status: result.map_or_else(|outcome| outcome.status, |_| NodeStatus::Ready),
        job_id: None,
    };
    Ok(each(rows, refusals, weight, to_accepted))
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
            has_cache: config.cache,
            batch_timeout: config.batch_timeout,
            line: Line::new(config.batch_tokens * UNKNOWN_BATCHES),
            started: Instant::now(),
            hangs: Mutex::new(RestartHistory::new(HANGS)),
            fatal,
        })
    }

    /// Embeds new nodes, and writes nothing: what is to be written of each. A text that the model
    /// refuses makes a `failed` node; a model that is away makes an error.
    pub(super) async fn embed_new(
        &self,
        store: &Store,
        nodes: Vec<NewNode>,
    ) -> Result<Vec<Embedding>, RuntimeError> {
        let texts: Vec<Option<String>> =
            nodes.iter().map(|node| store.rule().text(&node.props, &node.classes)).collect();
        let with_text: Vec<usize> = (0..nodes.len()).filter(|&i| texts[i].is_some()).collect();
        let texts = texts.into_iter().flatten().collect();
        let embeddings = self.embed_texts(store, texts, false).await?;
        let mut embeddings = with_text.into_iter().zip(embeddings).peekable();
        Ok(nodes
            .into_iter()
            .enumerate()
            .map(|(i, node)| {
                let embedding = embeddings.next_if(|(index, _)| *index == i);
                let embedding = embedding.map(|(_, embedding)| embedding);
                let result =
                    self.result(store.rule(), node.id, node.payload_ref.is_some(), embedding);
                (node, result)
            })
            .collect())
    }

    /// Embeds the text of a node that is there, and writes nothing.
    pub(super) async fn embed_source(
        &self,
        store: &Store,
        id: Uuid,
        source: &TextSource,
    ) -> Result<Result<Vector, Outcome>, RuntimeError> {
        let texts = source.text.iter().cloned().collect();
        let embedding = self.embed_texts(store, texts, false).await?.pop();
        Ok(self.result(store.rule(), id, source.payload_ref.is_some(), embedding))
    }

    /// Embeds the texts of nodes that are there, and writes nothing; one answer a node, in order.
    /// With `anew`, none takes its vector from the database.
    pub(super) async fn embed_sources(
        &self,
        store: &Store,
        sources: &[(Uuid, TextSource)],
        anew: bool,
    ) -> Result<Vec<Result<Vector, Outcome>>, RuntimeError> {
        let texts = sources.iter().filter_map(|(_, source)| source.text.clone()).collect();
        let mut embeddings = self.embed_texts(store, texts, anew).await?.into_iter();
        let result = |(id, source): &(Uuid, TextSource)| {
            let embedding = source.text.as_ref().and_then(|_| embeddings.next());
            self.result(store.rule(), *id, source.payload_ref.is_some(), embedding)
        };
        Ok(sources.iter().map(result).collect())
    }

    /// Texts that are embedded together at most.
    pub(super) fn batch_texts(&self) -> usize {
        self.batch_texts
    }

    /// One answer a text, in order: its vector, or why it has none.
    async fn embed_texts(
        &self,
        store: &Store,
        texts: Vec<String>,
        anew: bool,
    ) -> Result<Vec<Result<Embedded, String>>, RuntimeError> {
        let encoded = encode_all(&self.model, texts).await;
        let input_of = |(_, encoding): &(String, Result<Encoding, EmbedError>)| {
            let encoding = encoding.as_ref().ok().filter(|_| self.has_cache)?;
            Some(input_hash(&self.model, &encoding.ids))
        };
        let inputs: Vec<Option<InputHash>> = encoded.iter().map(input_of).collect();
        let looked_up = inputs.iter().flatten().copied().filter(|_| !anew);
        let known = cache::known(store, &self.model, looked_up).await?;
        let hits = inputs.iter().flatten().filter(|input| known.contains_key(*input)).count();
        metrics::cache_looked_up(hits, inputs.iter().flatten().count() - hits);

        // Each input that has no vector yet is embedded once.
        let mut vectors: Vec<Result<Vec<f32>, String>> = Vec::with_capacity(encoded.len());
        let mut firsts: HashMap<InputHash, usize> = HashMap::new();
        let mut wanted: Vec<(usize, Encoding)> = Vec::new();
        for (i, (_, encoding)) in encoded.iter().enumerate() {
            let vector = inputs[i].and_then(|input| known.get(&input)).cloned();
            let is_first = inputs[i].is_none_or(|input| *firsts.entry(input).or_insert(i) == i);
            match encoding {
                Ok(encoding) if vector.is_none() && is_first => wanted.push((i, encoding.clone())),
                _ => {}
            }
            vectors.push(match encoding {
                Ok(_) => vector.ok_or_else(|| "not embedded".to_owned()),
                Err(error) => Err(error.to_string()),
            });
        }
        let counts: Vec<usize> = wanted.iter().map(|(_, encoding)| encoding.ids.len()).collect();
        let mut place_in_line = self.line.enter(counts.iter().sum())?;
        for batch in plan(&counts, cost_of(&self.model), self.batch_tokens, self.batch_texts) {
            let encodings = batch.iter().map(|&place| wanted[place].1.clone()).collect();
            let (tokens, began) = (batch.iter().map(|&place| counts[place]).sum(), Instant::now());
            for (place, vector) in batch.into_iter().zip(self.embed(encodings).await?) {
                vectors[wanted[place].0] = vector;
            }
            place_in_line.done(tokens, began.elapsed());
        }
        let vector_of = |i: usize| {
            let first = inputs[i].and_then(|input| firsts.get(&input).copied()).unwrap_or(i);
            vectors[first].clone()
        };
        let vectors: Vec<_> = (0..encoded.len()).map(vector_of).collect();
        Ok(encoded
            .into_iter()
            .zip(vectors)
            .zip(inputs)
            .map(|(((text, encoding), vector), input_hash)| {
                let truncated = encoding.is_ok_and(|encoding| encoding.truncated);
                vector.map(|values| Embedded { text, truncated, input_hash, values })
            })
            .collect())
    }

    /// What is written for a node; `embedding` is `None` when it has no text.
    fn result(
        &self,
        rule: TextRule,
        id: Uuid,
        has_payload_ref: bool,
        embedding: Option<Result<Embedded, String>>,
    ) -> Result<Vector, Outcome> {
        // The row is written in the same transaction.
        let subject = Subject::Processing;
        let outcome = |status, error| {
            let attempts = u32::from(status == NodeStatus::Failed);
            Outcome { id, status, error, attempts, subject }
        };
        let Some(embedding) = embedding else {
            let reason = reason_without_text(has_payload_ref);
            return Err(outcome(NodeStatus::Skipped, reason.to_owned()));
        };
        let Embedded { text, truncated, input_hash, values } =
            embedding.map_err(|reason| outcome(NodeStatus::Failed, reason))?;
        Ok(Vector {
            id,
            source_hash: source_hash(&self.model, &text),
            text_hash: rule.guard_of_locked(&text),
            input_hash,
            values,
            truncated,
            failed_attempts: 0,
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
