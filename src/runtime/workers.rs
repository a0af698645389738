//! The actor tree as the program sees it: start, failure, drain, stop.

use std::{sync::Arc, time::Duration};

use ractor::{Actor, ActorRef, RactorErr, SpawnErr, concurrency::JoinHandle};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    context::Context,
    restart::RestartIntensity,
    supervisor::{Supervisor, SupervisorArguments, SupervisorMsg},
};

/// A running actor tree.
pub struct Workers {
    supervisor: ActorRef<SupervisorMsg>,
    ended: JoinHandle<()>,
    fatal: watch::Receiver<Option<String>>,
    model_ready: watch::Receiver<bool>,
}

/// How long the handing back of unfinished work may take.
const LET_GO_TIME: Duration = Duration::from_secs(3);

impl Workers {
    /// Starts the tree; it looks for work at once.
    ///
    /// # Errors
    /// An actor that does not start.
    pub async fn start(
        context: Arc<Context>,
        intensity: RestartIntensity,
    ) -> Result<Self, SpawnErr> {
        let (fatal_sender, fatal) = watch::channel(None);
        let (ready_sender, model_ready) = watch::channel(false);
        let arguments = SupervisorArguments {
            context,
            intensity,
            fatal: fatal_sender,
            model_ready: ready_sender,
        };
        let (supervisor, ended) = Actor::spawn(None, Supervisor, arguments).await?;
        Ok(Self { supervisor, ended, fatal, model_ready })
    }

    /// Whether every Embedder is up; changes with each crash and restart.
    pub fn model_ready(&self) -> watch::Receiver<bool> {
        self.model_ready.clone()
    }

    /// Ends with the reason when the tree gave up.
    pub async fn failed(&mut self) -> String {
        let ended = "the supervisor ended".to_owned();
        match self.fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(ended),
            Err(_) => ended,
        }
    }

    /// Takes no more work, waits for that in hand, and stops the actors, all within `grace`. What
    /// is not done towards its end is handed back as it is; should that fail too, its leases run
    /// out.
    pub async fn stop(self, grace: Duration) {
        let to_let_go = (grace / 4).min(LET_GO_TIME);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let wait = milliseconds(grace - to_let_go);
        match ractor::call_t!(self.supervisor, SupervisorMsg::Drain, wait) {
            Ok(()) => info!("all work in hand is done or handed back"),
            Err(RactorErr::Timeout) => {
                warn!("work in hand takes too long; handing it back");
                let wait = milliseconds(to_let_go);
                if ractor::call_t!(self.supervisor, SupervisorMsg::LetGo, wait).is_err() {
                    warn!("work in hand is left to its leases");
                }
            }
            Err(_) => warn!("the actors are gone; work in hand is left to its leases"),
        }
        self.supervisor.stop(None);
        // It ends in any case; how, it has logged itself.
        let _ = self.ended.await;
    }
}
