//! The one place that knows all parts: builds them bottom-up, starts and stops them in order.

use std::{
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tracing::{info, warn};

use crate::{
    config::{Config, ModelSettings},
    data_dir, http,
    inference::{self, Model},
    queue::{Limits, PrivateRedis, Queue},
    runtime::{Context, InlineEmbedder, Mode, RestartIntensity, Runtime, Workers, WorkersReady},
    shutdown::Signals,
    store::Store,
    telemetry::metrics,
    tls,
};

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

struct HttpServer {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    /// Closed when the server has ended.
    ended: watch::Receiver<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl App {
    /// Starts everything that the role needs. When it returns, the HTTP address answers.
    ///
    /// # Errors
    /// What is missing and what to do about it; everything started before is ended.
    pub async fn start(role: Role, config: Config) -> anyhow::Result<Self> {
        let model = match role {
            Role::Api if config.is_async => None,
            _ => Some(load_model(&config.model).await?),
        };
        Self::start_with(role, config, model, RestartIntensity::default()).await
    }

    /// The same with a model given, for tests that bring their own.
    pub async fn start_with(
        role: Role,
        config: Config,
        model: Option<Model>,
        intensity: RestartIntensity,
    ) -> anyhow::Result<Self> {
        metrics::init();
        tls::install_provider();
        if !config.is_async && role == Role::Worker {
            bail!("EMBEDDING_ASYNC is false: there is no queue, and a worker has nothing to do");
        }
        if let Some(url) = config.queue.redis_url.as_deref().filter(|_| config.is_async) {
            Queue::check_url(url)?;
        }
        // The address first: of all that can fail it is the quickest to say so.
        let listener = match role {
            Role::Worker => None,
            Role::Serve | Role::Api => Some(bind(config.http.bind)?),
        };
        data_dir::prepare(&config.data_dir, config.has_own_database())?;
        let dimension = match &model {
            Some(model) => model.backend.dimension(),
            None => inference::dimension_of(&model_config(&config.model)).await?,
        };
        let store = Store::connect(&config.dsn, dimension).await?;
        store.migrate().await?;

        let mut app = Self {
            config,
            http: None,
            workers: None,
            inline_failure: None,
            queue: None,
            private_redis: None,
        };
        match app.start_upper(role, store, model, intensity, listener).await {
            Ok(()) => Ok(app),
            Err(error) => {
                app.stop().await;
                Err(error)
            }
        }
    }

    async fn start_upper(
        &mut self,
        role: Role,
        store: Store,
        model: Option<Model>,
        intensity: RestartIntensity,
        listener: Option<TcpListener>,
    ) -> anyhow::Result<()> {
        let worker = &self.config.worker;
        let retry_after = self.config.retry_after();
        let mode = if self.config.is_async {
            let url = match (&self.config.queue.redis_url, role) {
                (Some(url), _) => url.clone(),
                (None, Role::Serve) => {
                    let redis = PrivateRedis::start(&self.config.data_dir).await?;
                    self.private_redis.insert(redis).url()
                }
                (None, _) => bail!(
                    "REDIS_URL is not set: `api` and `worker` share a Redis server; only \
                     `serve` runs one of its own"
                ),
            };
            let queue = Arc::new(Queue::connect(&url, &self.config.queue).await?);
            self.queue = Some(Arc::clone(&queue));
            let mut ready = None;
            if let (Role::Serve | Role::Worker, Some(model)) = (role, model) {
                let context = Context {
                    queue: Arc::clone(&queue),
                    store: store.clone(),
                    model,
                    config: worker.clone(),
                    device_up: watch::Sender::new(true),
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
        if let Some(listener) = listener {
            let runtime = Runtime::new(store, mode, retry_after);
            self.http = Some(HttpServer::start(listener, runtime, &self.config)?);
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
        info!("stopped");
    }
}

impl HttpServer {
    fn start(listener: TcpListener, runtime: Runtime, config: &Config) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let limits = http::HttpConfig {
            body_limit: config.http.body_limit,
            batch_max: config.http.batch_max,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let endpoint = http::routes(runtime, limits);
        let grace = config.shutdown_grace;
        // The sender goes with the task, however that ends.
        let (alive, ended) = watch::channel(());
        let task = tokio::spawn(async move {
            let _alive = alive;
            let stopped = async move {
                // A sender that is gone means the same.
                let _ = stopped.await;
            };
            http::serve(listener, endpoint, stopped, grace).await
        });
        Ok(Self { address, stop, ended, task })
    }

    async fn stop(self) {
        // A server that has ended needs no telling.
        let _ = self.stop.send(());
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the HTTP server ended with an error"),
            Err(error) => warn!(%error, "the HTTP server panicked"),
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
        () = signals.recv() => return Ok(ExitCode::FAILURE),
    }
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => {
            eprintln!("vecmill: {reason}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}: set VECMILL_BIND to an address that is free")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
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

async fn load_model(settings: &ModelSettings) -> anyhow::Result<Model> {
    Ok(inference::load(&model_config(settings)).await?)
}
