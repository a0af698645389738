//! The Supervisor: starts the actors downstream-first, restarts those that fail, and gives up
//! when one fails too often.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::{
    Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent,
};
use tokio::sync::watch;
use tracing::{error, info};

use super::{
    context::Context,
    dispatcher::{Dispatcher, DispatcherArguments},
    embedder::{Embedder, EmbedderArguments, EmbedderMsg, ModelHangs},
    restart::{Decision, HANGS, HUNG, RestartHistory, RestartIntensity},
    retry_scheduler::RetryScheduler,
    steps::DispatcherMsg,
    throttler::{Throttler, ThrottlerMsg},
};
use crate::telemetry::metrics;

/// One of the Supervisor's children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Child {
    /// The Throttler.
    Throttler,
    /// The Embedder of this number.
    Embedder(usize),
    /// The Dispatcher.
    Dispatcher,
    /// The RetryScheduler.
    RetryScheduler,
}

impl Child {
    fn name(self) -> &'static str {
        match self {
            Self::Throttler => "throttler",
            Self::Embedder(_) => "embedder",
            Self::Dispatcher => "dispatcher",
            Self::RetryScheduler => "retry_scheduler",
        }
    }
}

/// What the Supervisor understands.
pub enum SupervisorMsg {
    /// Start a child again.
    Restart(Child),
    /// Take no more work; answer when none is in hand.
    Drain(RpcReplyPort<()>),
    /// Give back the work in hand, done or not; answer when that is tried.
    LetGo(RpcReplyPort<()>),
}

/// The actor.
pub struct Supervisor;

/// What the tree is made of.
pub struct SupervisorArguments {
    /// The parts below.
    pub context: Arc<Context>,
    /// How often a child may fail.
    pub intensity: RestartIntensity,
    /// Where the reason goes when the Supervisor gives up.
    pub fatal: watch::Sender<Option<String>>,
    /// Whether all Embedders are up.
    pub model_ready: watch::Sender<bool>,
}

/// The children that are up.
pub struct SupervisorState {
    context: Arc<Context>,
    intensity: RestartIntensity,
    fatal: watch::Sender<Option<String>>,
    model_ready: watch::Sender<bool>,
    started: Instant,
    children: HashMap<ActorId, Child>,
    histories: HashMap<Child, RestartHistory>,
    hangs: RestartHistory,
    throttler: ActorRef<ThrottlerMsg>,
    embedders: Vec<Option<ActorRef<EmbedderMsg>>>,
    dispatcher: Option<ActorRef<DispatcherMsg>>,
    is_draining: bool,
}

impl SupervisorState {
    async fn start(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        child: Child,
    ) -> Result<(), SpawnErr> {
        let cell = myself.get_cell();
        let id = match child {
            Child::Throttler => {
                let (throttler, _) = spawn_throttler(&self.context, myself).await?;
                self.throttler = throttler.clone();
                let id = throttler.get_id();
                self.tell_dispatcher(DispatcherMsg::ThrottlerUp(throttler));
                id
            }
            Child::Embedder(slot) => {
                let arguments = EmbedderArguments {
                    slot,
                    backend: Arc::clone(&self.context.model.backend),
                    batch_timeout: self.context.config.batch_timeout,
                };
                let (embedder, _) = Actor::spawn_linked(None, Embedder, arguments, cell).await?;
                self.embedders[slot] = Some(embedder.clone());
                let id = embedder.get_id();
                self.tell_dispatcher(DispatcherMsg::EmbedderUp(slot, embedder));
                id
            }
            Child::Dispatcher => {
                let arguments = DispatcherArguments {
                    context: Arc::clone(&self.context),
                    throttler: self.throttler.clone(),
                    embedders: self.embedders.clone(),
                };
                let (dispatcher, _) =
                    Actor::spawn_linked(None, Dispatcher, arguments, cell).await?;
                let id = dispatcher.get_id();
                self.dispatcher = Some(dispatcher);
                id
            }
            Child::RetryScheduler => {
                let context = Arc::clone(&self.context);
                let (scheduler, _) =
                    Actor::spawn_linked(None, RetryScheduler, context, cell).await?;
                scheduler.get_id()
            }
        };
        self.children.insert(id, child);
        self.model_ready.send_replace(self.embedders.iter().all(Option::is_some));
        Ok(())
    }

    fn tell_dispatcher(&self, message: DispatcherMsg) {
        if let Some(dispatcher) = &self.dispatcher {
            // One that is gone gets the news as arguments of its successor.
            let _ = dispatcher.cast(message);
        }
    }

    /// Notes the loss of a child and plans its restart, or says why that is no use.
    fn lost(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        id: ActorId,
        reason: &str,
    ) -> Result<(), String> {
        let Some(child) = self.children.remove(&id) else { return Ok(()) };
        match child {
            Child::Embedder(slot) => {
                self.embedders[slot] = None;
                self.model_ready.send_replace(false);
                self.tell_dispatcher(DispatcherMsg::EmbedderLost(slot, reason.to_owned()));
            }
            Child::Dispatcher => self.dispatcher = None,
            Child::Throttler | Child::RetryScheduler => {}
        }
        self.plan_restart(myself, child, reason)
    }

    fn plan_restart(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        child: Child,
        reason: &str,
    ) -> Result<(), String> {
        let history =
            self.histories.entry(child).or_insert_with(|| RestartHistory::new(self.intensity));
        match history.on_failure(self.started.elapsed()) {
            Decision::RestartAfter(delay) => {
                error!(actor = child.name(), reason, ?delay, "an actor failed; restarting it");
                metrics::actor_restarted(child.name());
                if delay == Duration::ZERO {
                    // The Supervisor is alive: it is running this.
                    let _ = myself.cast(SupervisorMsg::Restart(child));
                } else {
                    myself.send_after(delay, move || SupervisorMsg::Restart(child));
                }
                Ok(())
            }
            Decision::GiveUp => {
                Err(format!("the {} fails too often; last reason: {reason}", child.name()))
            }
        }
    }

    /// Notes that a model hangs; whether that happens too often.
    fn is_hung_for_good(&mut self) -> bool {
        self.hangs.on_failure(self.started.elapsed()) == Decision::GiveUp
    }

    /// Leaves the reason where the process finds it, and ends the Supervisor with it.
    fn give_up(&self, reason: String) -> ActorProcessingErr {
        error!(reason, "giving up");
        self.fatal.send_replace(Some(reason.clone()));
        reason.into()
    }
}

async fn spawn_throttler(
    context: &Context,
    myself: &ActorRef<SupervisorMsg>,
) -> Result<(ActorRef<ThrottlerMsg>, ractor::concurrency::JoinHandle<()>), SpawnErr> {
    let tenant_max = context.config.tenant_max_inflight;
    Actor::spawn_linked(None, Throttler, tenant_max, myself.get_cell()).await
}

impl Actor for Supervisor {
    type Msg = SupervisorMsg;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let SupervisorArguments { context, intensity, fatal, model_ready } = arguments;
        let replicas = context.config.replicas;
        let (throttler, _) = spawn_throttler(&context, &myself).await?;
        let mut state = SupervisorState {
            context,
            intensity,
            fatal,
            model_ready,
            started: Instant::now(),
            children: HashMap::from([(throttler.get_id(), Child::Throttler)]),
            histories: HashMap::new(),
            hangs: RestartHistory::new(HANGS),
            throttler,
            embedders: vec![None; replicas],
            dispatcher: None,
            is_draining: false,
        };
        for slot in 0..replicas {
            state.start(&myself, Child::Embedder(slot)).await?;
        }
        state.start(&myself, Child::Dispatcher).await?;
        state.start(&myself, Child::RetryScheduler).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // A new Dispatcher would claim again.
            SupervisorMsg::Restart(Child::Dispatcher) if state.is_draining => {}
            SupervisorMsg::Restart(child) => {
                if let Err(error) = state.start(&myself, child).await {
                    let planned = state.plan_restart(&myself, child, &error.to_string());
                    return planned.map_err(|reason| state.give_up(reason));
                }
                info!(actor = child.name(), "actor restarted");
            }
            SupervisorMsg::Drain(reply) => match state.dispatcher.clone() {
                Some(dispatcher) => {
                    state.is_draining = true;
                    // One that is just failing lets go of its leases.
                    let _ = dispatcher.cast(DispatcherMsg::Drain(reply));
                }
                None => {
                    state.is_draining = true;
                    // Without a Dispatcher nothing is in hand; who asked may have left.
                    let _ = reply.send(());
                }
            },
            SupervisorMsg::LetGo(reply) => match &state.dispatcher {
                Some(dispatcher) => {
                    let _ = dispatcher.cast(DispatcherMsg::LetGo(reply));
                }
                None => {
                    let _ = reply.send(());
                }
            },
        }
        Ok(())
    }

    // The default would stop the Supervisor with any of its children.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let planned = match event {
            SupervisionEvent::ActorFailed(_, reason)
                if reason.is::<ModelHangs>() && state.is_hung_for_good() =>
            {
                Err(format!("{HUNG}: {reason}"))
            }
            SupervisionEvent::ActorFailed(child, reason) => {
                state.lost(&myself, child.get_id(), &reason.to_string())
            }
            SupervisionEvent::ActorTerminated(child, _, reason) => {
                state.lost(&myself, child.get_id(), reason.as_deref().unwrap_or("it stopped"))
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => Ok(()),
        };
        planned.map_err(|reason| state.give_up(reason))
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // Upstream first, so that nobody sends to one that is gone.
        if let Some(dispatcher) = &state.dispatcher {
            dispatcher.stop_and_wait(None, Some(STOP_DEADLINE)).await?;
        }
        for embedder in state.embedders.iter().flatten() {
            embedder.stop_and_wait(None, Some(STOP_DEADLINE)).await?;
        }
        state.throttler.stop_and_wait(None, Some(STOP_DEADLINE)).await?;
        Ok(())
    }
}

/// An actor that does not stop in this time is killed with its parent.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
