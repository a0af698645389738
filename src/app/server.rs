//! The HTTP server as a part of the process.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tracing::warn;

use crate::{
    config::{Config, HttpConfig},
    http::{self, Gate, Routes},
    runtime::Runtime,
};

/// HTTP, from the beginning of the start to the end of the process.
pub(super) struct HttpServer {
    pub(super) address: SocketAddr,
    /// Empty until the API is there.
    routes: Routes,
    stop: oneshot::Sender<()>,
    /// Closed when the server has ended.
    pub(super) ended: watch::Receiver<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl HttpServer {
    /// Listens, and says what is `awaited` until the API is there.
    pub(super) fn start(config: &Config, awaited: watch::Receiver<String>) -> anyhow::Result<Self> {
        let listener = bind(&config.http)?;
        let address = listener.local_addr()?;
        let routes = Routes::default();
        let names = config.http.allowed_hosts.clone();
        let is_guarded = config.http.is_local() || !names.is_empty();
        let hosts = is_guarded.then(|| http::Hosts::new(address.ip(), names));
        let gate = http::admitting(Gate::new(routes.clone(), awaited), hosts);
        let (stop, stopped) = oneshot::channel::<()>();
        let (most, grace) = (config.http.connections_max, config.shutdown_grace);
        // The sender goes with the task, however that ends.
        let (alive, ended) = watch::channel(());
        let task = tokio::spawn(async move {
            let _alive = alive;
            let stopped = async move {
                // A sender that is gone means the same.
                let _ = stopped.await;
            };
            http::serve(listener, gate, most, stopped, grace).await
        });
        Ok(Self { address, routes, stop, ended, task })
    }

    /// From now on, all calls are answered.
    pub(super) fn open(&self, runtime: Runtime, config: &Config) {
        let limits = http::HttpConfig {
            body_limit: config.http.body_limit,
            node_bytes: config.http.node_bytes,
            batch_max: config.http.batch_max,
            activekg: config.http.activekg,
        };
        let memory = http::Memory::new(config.http.memory);
        self.routes.open(http::routes(runtime, limits, memory));
    }

    /// Takes no more requests, and returns when those in progress have ended.
    pub(super) async fn stop(self) {
        // A server that has ended needs no telling.
        let _ = self.stop.send(());
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the HTTP server ended with an error"),
            Err(error) => warn!(%error, "the HTTP server panicked"),
        }
    }
}

fn bind(config: &HttpConfig) -> anyhow::Result<TcpListener> {
    let (address, variable) = (config.bind, config.bind_variable);
    let listener = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}: set {variable} to an address that is free")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
