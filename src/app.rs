//! The one place that knows all parts: builds them bottom-up, starts and stops them in order.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::{anyhow, bail};
use tokio::sync::watch;
use tracing::info;

use crate::{
    config::{Config, ModelSettings},
    data_dir,
    inference::{self, Model},
    queue::{Limits, PrivateRedis, Queue, QueueError},
    runtime::{
        Context, EmbedInfo, InlineEmbedder, LoadedInfo, Mode, Recounts, RestartIntensity, Runtime,
        Sight, Workers, WorkersReady,
    },
    shutdown::Signals,
    store::{Store, StoreError, TextRule},
    telemetry::{Chain, metrics},
    tls,
};

mod progress;
mod server;

pub use progress::Progress;

use server::HttpServer;

/// Which parts a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// HTTP and workers; with a private Redis if there is no other.
    Serve,
    /// HTTP alone.
    Api,
    /// Workers alone.
    Worker,
}

/// A running process.
pub struct App {
    config: Config,
    http: Option<HttpServer>,
    workers: Option<Workers>,
    /// Why embedding while clients wait cannot go on.
    inline_failure: Option<watch::Receiver<Option<String>>>,
    queue: Option<Arc<Queue>>,
    private_redis: Option<PrivateRedis>,
}

impl App {
    /// Starts everything that the role needs. The HTTP address answers from the beginning, and
    /// says what is waited for; when this returns, it answers all calls.
    ///
    /// # Errors
    /// What is missing and what to do about it; everything started before is ended.
    pub async fn start(role: Role, config: Config) -> anyhow::Result<Self> {
        Self::start_parts(role, config, None, RestartIntensity::default()).await
    }

    /// The same with a model given, for tests that bring their own.
    pub async fn start_with(
        role: Role,
        config: Config,
        model: Option<Model>,
        intensity: RestartIntensity,
    ) -> anyhow::Result<Self> {
        Self::start_parts(role, config, Some(model), intensity).await
    }

    async fn start_parts(
        role: Role,
        config: Config,
        model: Option<Option<Model>>,
        intensity: RestartIntensity,
    ) -> anyhow::Result<Self> {
        metrics::init();
        tls::install_provider();
        check_role(role, &config)?;
        let progress = Progress::new(config.start_patience);
        // The address first: of all that can fail it is the quickest to say so, and whoever watches
        // this process can see that it lives.
        let http = match role {
            Role::Worker => None,
            Role::Serve | Role::Api => Some(HttpServer::start(&config, progress.subscribe())?),
        };
        let mut app = Self {
            config,
            http,
            workers: None,
            inline_failure: None,
            queue: None,
            private_redis: None,
        };
        match app.start_lower(role, model, intensity, &progress).await {
            Ok(()) => Ok(app),
            Err(error) => {
                app.end().await;
                Err(error)
            }
        }
    }

    async fn start_lower(
        &mut self,
        role: Role,
        model: Option<Option<Model>>,
        intensity: RestartIntensity,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let config = &self.config;
        data_dir::prepare(&config.data_dir, config.has_own_database())?;
        progress.awaits("the model");
        let model = match model {
            Some(given) => given,
            None if role == Role::Api && config.is_async => None,
            None => Some(load_model(&config.model).await?),
        };
        let dimension = match &model {
            Some(model) => model.backend.dimension(),
            None => inference::dimension_of(&model_config(&config.model)).await?,
        };
        let store = open_store(config, dimension, progress).await?;
        let queue = self.open_queue(progress).await?;
        progress.awaits("the workers");
        let embed_info = embed_info(&self.config.model, model.as_ref(), dimension);
        self.start_upper(role, store, queue, model, intensity, embed_info).await
    }

    /// The queue, if this process has one.
    async fn open_queue(&mut self, progress: &Progress) -> anyhow::Result<Option<Arc<Queue>>> {
        let config = &self.config.queue;
        if !self.config.is_async {
            return Ok(None);
        }
        let url = match &config.redis_url {
            Some(url) => url.clone(),
            None => {
                progress.awaits("the private Redis");
                let redis = PrivateRedis::start(&self.config.data_dir).await?;
                self.private_redis.insert(redis).url()
            }
        };
        let connected = progress.wait_for(
            "Redis",
            || Queue::connect(&url, config),
            |error| matches!(error, QueueError::Unavailable(_)),
            |error| Chain(error).to_string(),
        );
        let queue = Arc::new(connected.await?);
        self.queue = Some(Arc::clone(&queue));
        Ok(Some(queue))
    }

    async fn start_upper(
        &mut self,
        role: Role,
        store: Store,
        queue: Option<Arc<Queue>>,
        model: Option<Model>,
        intensity: RestartIntensity,
        embed_info: EmbedInfo,
    ) -> anyhow::Result<()> {
        let worker = &self.config.worker;
        let retry_after = self.config.retry_after();
        let mode = if let Some(queue) = queue {
            let mut ready = None;
            if let (Role::Serve | Role::Worker, Some(model)) = (role, model) {
                let context = Context {
                    queue: Arc::clone(&queue),
                    store: store.clone(),
                    model,
                    config: worker.clone(),
                    device_up: watch::Sender::new(true),
                    sight: Sight::default(),
                    recounts: Recounts::default(),
                };
                let device = context.device_up.subscribe();
                let workers = Workers::start(Arc::new(context), intensity).await?;
                ready = Some(WorkersReady { embedders: workers.model_ready(), device });
                self.workers = Some(workers);
            }
            let limits = Limits {
                max_depth: self.config.queue.max_depth,
                tenant_max_pending: self.config.queue.tenant_max_pending,
            };
            Mode::Queued { queue, limits, workers: ready }
        } else {
            let model = model.ok_or_else(|| anyhow!("EMBEDDING_ASYNC=false needs a model"))?;
            let (fatal, inline_failure) = watch::channel(None);
            self.inline_failure = Some(inline_failure);
            Mode::Inline(Box::new(InlineEmbedder::start(model, worker, fatal)?))
        };
        if let Some(http) = &self.http {
            http.open(
                Runtime::new(store, mode, retry_after, embed_info, self.config.texts.auto_embed),
                &self.config,
            );
        }
        Ok(())
    }

    /// Where HTTP listens; `None` for a worker.
    pub fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.address)
    }

    /// Ends with the reason when a part fails that this process cannot do without.
    pub async fn failed(&mut self) -> String {
        let workers = async {
            match &mut self.workers {
                Some(workers) => workers.failed().await,
                None => std::future::pending().await,
            }
        };
        let inline = async {
            match &mut self.inline_failure {
                Some(failure) => {
                    failure.wait_for(Option::is_some).await.ok().and_then(|f| f.clone())
                }
                None => std::future::pending().await,
            }
        };
        let http = async {
            match &mut self.http {
                Some(http) => http.ended.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reason = workers => reason,
            Some(reason) = inline => reason,
            _ = http => "the HTTP server ended".to_owned(),
        }
    }

    /// Stops top-down: no more requests and no more claims, work in hand, then the stores.
    pub async fn stop(self) {
        self.end().await;
        info!("stopped");
    }

    async fn end(self) {
        let http = async {
            if let Some(http) = self.http {
                http.stop().await;
            }
        };
        let workers = async {
            if let Some(workers) = self.workers {
                workers.stop(self.config.shutdown_grace).await;
            }
        };
        // Beside each other, so that both end within the grace.
        tokio::join!(http, workers);
        if let Some(queue) = self.queue {
            queue.close().await;
        }
        if let Some(redis) = self.private_redis {
            redis.stop().await;
        }
    }
}

/// Runs the process that `start` starts until a signal (then all work in hand is finished or
/// handed back) or until a part fails for good. A second signal ends it at once; its leases run
/// out then. Prints the address when there is one.
///
/// # Errors
/// Those of the start.
pub async fn run_until_stopped(
    mut signals: Signals,
    start: impl Future<Output = anyhow::Result<App>>,
) -> anyhow::Result<ExitCode> {
    let mut app = tokio::select! {
        app = start => app?,
        () = signals.recv() => return Ok(ExitCode::SUCCESS),
    };
    if let Some(address) = app.address() {
        println!("Vecmill listens on http://{address} (API documentation: http://{address}/docs)");
    }
    let failure = tokio::select! {
        () = signals.recv() => None,
        reason = app.failed() => Some(reason),
    };
    tokio::select! {
        () = app.stop() => {}
        () = signals.recv_impatient() => return Ok(ExitCode::FAILURE),
    }
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => {
            eprintln!("vecmill: {reason}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What can be refused before anything is started.
fn check_role(role: Role, config: &Config) -> anyhow::Result<()> {
    if !config.is_async && role == Role::Worker {
        bail!("EMBEDDING_ASYNC is false: there is no queue, and a worker has nothing to do");
    }
    if config.is_async && role != Role::Serve && config.queue.redis_url.is_none() {
        bail!(
            "REDIS_URL is not set: `api` and `worker` share a Redis server; only `serve` runs one \
             of its own"
        );
    }
    if let Some(url) = config.queue.redis_url.as_deref().filter(|_| config.is_async) {
        Queue::check_url(url)?;
    }
    if role != Role::Worker {
        config.http.refuse_exposure()?;
    }
    Ok(())
}

/// Opens the database and brings it up to date; while it is away, waits for it.
///
/// # Errors
/// What is wrong with it, by the name of the variable that names it.
pub async fn open_store(
    config: &Config,
    dimension: usize,
    progress: &Progress,
) -> anyhow::Result<Store> {
    let say = |error: &StoreError| format!("{}: {}", config.dsn_variable, error.for_operators());
    let connect = || Store::connect(&config.dsn, dimension);
    let store = progress.wait_for("the database", connect, StoreError::is_unavailable, say);
    let store = store.await.map_err(|error| anyhow!(say(&error)))?;
    // Before, so that a role that sees nothing changes nothing; and after, of a table that is new.
    let migrate = || async {
        store.check_sees_all_rows().await?;
        store.migrate().await?;
        store.check_rights().await
    };
    progress
        .wait_for("the migration of the database", migrate, StoreError::is_unavailable, say)
        .await
        .map_err(|error| anyhow!(say(&error)))?;
    let rule = TextRule { with_prefix: config.texts.with_prefix };
    Ok(store.with_rule(rule).with_node_bytes(config.http.node_bytes))
}

/// The settings as the loader wants them.
pub fn model_config(settings: &ModelSettings) -> inference::ModelConfig {
    inference::ModelConfig {
        backend: if settings.hash_backend {
            inference::BackendKind::Hash
        } else {
            inference::BackendKind::Model
        },
        model: settings.model.clone(),
        compute: inference::ComputeConfig {
            device: settings.device.clone(),
            dtype: inference::Dtype::named(&settings.dtype),
            kernel: inference::Kernel::named(&settings.kernel),
            threads: settings.threads,
        },
        models_dir: settings.models_dir.clone(),
        hub: inference::HubConfig::from_env(),
    }
}

/// What `GET /info` and `GET /debug/embed_info` tell.
fn embed_info(settings: &ModelSettings, model: Option<&Model>, dimension: usize) -> EmbedInfo {
    EmbedInfo {
        backend: if settings.hash_backend { "hash" } else { "candle" },
        model: settings.model.clone(),
        dimension,
        device: settings.device.clone(),
        loaded: model.map(|model| LoadedInfo {
            revision: model.revision.clone(),
            max_tokens: model.max_tokens,
            dtype: model.computation.dtype,
            kernel: model.computation.kernel.name(),
            threads: model.computation.threads,
            description: model.description.clone(),
        }),
    }
}

async fn load_model(settings: &ModelSettings) -> anyhow::Result<Model> {
    Ok(inference::load(&model_config(settings)).await?)
}
