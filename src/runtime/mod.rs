//! The actors, and the typed handle that is all HTTP and the command line see of them.

mod absent;
mod admin;
mod api;
mod batch;
mod burden;
mod cache;
mod context;
mod dispatcher;
mod edit;
mod embedder;
mod endings;
mod finish;
mod handle;
mod health;
mod ingest;
mod inline;
mod leases;
mod line;
mod lookup;
mod off_async;
mod outage;
mod pace;
mod prepare;
mod recount;
mod reembed;
mod restart;
mod retry_scheduler;
mod room;
mod schedule;
mod steps;
mod supervisor;
mod sweep;
mod throttler;
mod tokenise;
mod worker;
mod workers;

pub use absent::Sight;
pub use api::{
    Accepted, EmbedInfo, EmbeddingStatus, Ended, LoadedInfo, QueueDepths, Readiness, Refreshed,
    Requeued, RuntimeError,
};
pub use burden::Burden;
pub use context::Context;
pub use handle::{Mode, Runtime, WorkersReady};
pub use health::Seen;
pub use inline::InlineEmbedder;
pub use recount::Recounts;
pub use restart::{Decision, RestartHistory, RestartIntensity};
pub use workers::Workers;
