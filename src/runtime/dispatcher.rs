//! The Dispatcher: takes as many jobs as the Embedders have room for, and sees each through.
//!
//! Every step that waits for a store runs as a task of its own and comes back as a message. A
//! step that panics takes the Dispatcher down: its leases run out, and other workers get the
//! jobs.

use std::{future::Future, sync::Arc};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tracing::{Instrument, info_span, warn};

use super::{
    batch::{Batch, Text},
    context::Context,
    embedder::{EmbedResult, EmbedderMsg},
    endings,
    finish::finish,
    leases::LeaseKeeper,
    prepare::{Prepared, prepare},
    schedule::Schedule,
    throttler::ThrottlerMsg,
    worker::{Held, Worker},
};
use crate::{domain::FailureKind, telemetry::Chain};

/// Batches in hand for each Embedder: running, ready, being prepared, being written.
const BATCHES_IN_HAND: usize = 8;

/// What the Dispatcher understands.
pub enum DispatcherMsg {
    /// Look for work, if there is room for it.
    Fill,
    /// A look into the queue came back.
    Filled(Prepared),
    /// There may be work again after a time without.
    Woken,
    /// A batch came back from an Embedder.
    Embedded {
        /// Which Embedder.
        slot: usize,
        /// The number of the batch.
        id: u64,
        /// What it brought.
        result: EmbedResult,
    },
    /// The jobs of a batch were let go, but for those of the batches that come back.
    Finished {
        /// Jobs of the batch.
        jobs: usize,
        /// Batches to embed again.
        again: Vec<Batch>,
    },
    /// An Embedder takes batches from now on.
    EmbedderUp(usize, ActorRef<EmbedderMsg>),
    /// An Embedder is gone, and why.
    EmbedderLost(usize, String),
    /// There is another Throttler.
    ThrottlerUp(ActorRef<ThrottlerMsg>),
    /// Take no more work; answer when none is in hand.
    Drain(RpcReplyPort<()>),
    /// Give back all work in hand, done or not; answer when that is tried.
    LetGo(RpcReplyPort<()>),
    /// A step panicked.
    StepPanicked,
}

/// The actor.
pub struct Dispatcher;

/// The actors it works with, and the parts below.
pub struct DispatcherArguments {
    /// The parts below.
    pub context: Arc<Context>,
    /// Whom it asks before it claims.
    pub throttler: ActorRef<ThrottlerMsg>,
    /// The Embedders, where they are up.
    pub embedders: Vec<Option<ActorRef<EmbedderMsg>>>,
}

/// What is in hand.
pub struct DispatcherState {
    worker: Worker,
    embedders: Vec<Option<ActorRef<EmbedderMsg>>>,
    schedule: Schedule,
    /// Jobs in batches, wherever these are.
    in_hand: usize,
    looking: Looking,
    drained: Option<RpcReplyPort<()>>,
    is_draining: bool,
}

/// Whether a look into the queue is under way.
#[derive(PartialEq, Eq)]
enum Looking {
    No,
    Claiming,
    Waiting,
}

impl DispatcherState {
    fn capacity(&self) -> usize {
        self.embedders.len() * self.worker.context.config.batch_texts * BATCHES_IN_HAND
    }

    /// Starts a look into the queue. Half the capacity at once makes batches of like length
    /// likely; when idle, whatever there is will do.
    fn fill(&mut self, myself: &ActorRef<DispatcherMsg>) {
        let room = self.capacity().saturating_sub(self.in_hand);
        let worth_it = self.in_hand == 0 || room >= self.capacity() / 2;
        if self.is_draining || self.looking != Looking::No || !worth_it {
            return;
        }
        self.looking = Looking::Claiming;
        let worker = self.worker.clone();
        let wanted = room.min(self.capacity() / 2).max(1);
        step(myself, async move { DispatcherMsg::Filled(prepare(&worker, wanted).await) });
    }

    fn filled(&mut self, myself: &ActorRef<DispatcherMsg>, prepared: Prepared) {
        self.looking = Looking::No;
        for batch in prepared.batches {
            self.in_hand += batch.texts.len();
            self.schedule.add(batch);
        }
        if self.is_draining {
            self.hand_back_ready(myself);
        } else if prepared.is_idle {
            self.looking = Looking::Waiting;
            let context = Arc::clone(&self.worker.context);
            step(myself, async move {
                let poll_interval = context.config.poll_interval;
                if let Err(error) = context.queue.wait_for_job(poll_interval).await {
                    warn!(error = %Chain(&error), "cannot wait for jobs");
                    tokio::time::sleep(poll_interval).await;
                }
                DispatcherMsg::Woken
            });
        } else {
            self.fill(myself);
        }
    }

    /// Gives batches to Embedders that have room.
    fn dispatch(&mut self, myself: &ActorRef<DispatcherMsg>) {
        while let Some(assignment) = self.schedule.assign() {
            let Some(embedder) = self.embedders[assignment.slot].clone() else { continue };
            let texts = &assignment.batch.texts;
            let leases = assignment.batch.leases();
            let encodings = texts.iter().map(|text| text.encoding.clone()).collect();
            let message =
                EmbedderMsg::Embed { id: assignment.id, encodings, reply_to: myself.clone() };
            let context = Arc::clone(&self.worker.context);
            let span = info_span!("batch", id = assignment.id, texts = texts.len());
            tokio::spawn(
                async move {
                    if let Err(error) = context.queue.start(&leases).await {
                        // Should a text kill this process now, it is not blamed this once.
                        warn!(error = %Chain(&error), "cannot note the start of a batch");
                    }
                    // An Embedder that is gone is reported lost, and its batches with it.
                    let _ = embedder.cast(message);
                }
                .instrument(span),
            );
        }
    }

    fn embedded(
        &mut self,
        myself: &ActorRef<DispatcherMsg>,
        slot: usize,
        id: u64,
        result: EmbedResult,
    ) {
        let Some(batch) = self.schedule.done(slot, id) else { return };
        let (worker, jobs) = (self.worker.clone(), batch.texts.len());
        self.clear(&batch);
        self.end(myself, jobs, async move { finish(&worker, batch, result).await });
    }

    /// Notes that a model is done with a batch, beside the storing of its vectors.
    fn clear(&self, batch: &Batch) {
        let context = Arc::clone(&self.worker.context);
        let leases = batch.leases();
        tokio::spawn(async move {
            if let Err(error) = context.queue.clear(&leases).await {
                // Should this process be lost before the jobs are ended, they are blamed for it.
                warn!(error = %Chain(&error), "cannot note the end of a batch");
            }
        });
    }

    /// Runs the step that ends so many jobs; it answers the batches to embed again.
    fn end(
        &mut self,
        myself: &ActorRef<DispatcherMsg>,
        jobs: usize,
        ending: impl Future<Output = Vec<Batch>> + Send + 'static,
    ) {
        self.schedule.ending();
        step(myself, async move { DispatcherMsg::Finished { jobs, again: ending.await } });
    }

    /// Ends the job of a text that brought an Embedder down while it was alone with it.
    fn fail(&mut self, myself: &ActorRef<DispatcherMsg>, batch: Batch, reason: &str) {
        let worker = self.worker.clone();
        let jobs: Vec<Held> = batch.texts.into_iter().map(Text::into_held).collect();
        let reason = format!("{reason} on this text");
        self.end(myself, jobs.len(), async move {
            endings::fail(&worker, jobs, FailureKind::Permanent, &reason).await;
            Vec::new()
        });
    }

    /// Gives back what no Embedder has begun. What a claim under way brings comes later in the
    /// queue and must be given back with it, or it would be put before it.
    fn hand_back_ready(&mut self, myself: &ActorRef<DispatcherMsg>) {
        if self.looking == Looking::Claiming {
            return;
        }
        let jobs: Vec<Held> = self
            .schedule
            .take_ready()
            .into_iter()
            .flat_map(|batch| batch.texts)
            .map(Text::into_held)
            .collect();
        if jobs.is_empty() {
            return;
        }
        let worker = self.worker.clone();
        self.end(myself, jobs.len(), async move {
            worker.hand_back(&jobs).await;
            Vec::new()
        });
    }

    fn report_when_drained(&mut self) {
        let is_drained = self.is_draining && self.in_hand == 0 && self.looking != Looking::Claiming;
        if let Some(reply) = self.drained.take_if(|_| is_drained) {
            // Whoever waited may have lost patience.
            let _ = reply.send(());
        }
    }
}

/// Runs a step as a task; its message comes back, or that it panicked.
fn step(
    myself: &ActorRef<DispatcherMsg>,
    future: impl Future<Output = DispatcherMsg> + Send + 'static,
) {
    let myself = myself.clone();
    let task = tokio::spawn(future.in_current_span());
    tokio::spawn(async move {
        let message = task.await.unwrap_or(DispatcherMsg::StepPanicked);
        // A Dispatcher that is gone has let go of its leases.
        let _ = myself.cast(message);
    });
}

impl Actor for Dispatcher {
    type Msg = DispatcherMsg;
    type State = DispatcherState;
    type Arguments = DispatcherArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let DispatcherArguments { context, throttler, embedders } = arguments;
        let mut schedule = Schedule::new(embedders.len());
        for slot in (0..embedders.len()).filter(|&slot| embedders[slot].is_some()) {
            schedule.slot_up(slot);
        }
        let keeper = LeaseKeeper::start(Arc::clone(&context.queue), context.config.lease);
        myself.cast(DispatcherMsg::Fill)?;
        throttler.cast(ThrottlerMsg::Reset)?;
        Ok(DispatcherState {
            worker: Worker { context, throttler, keeper: Arc::new(keeper) },
            embedders,
            schedule,
            in_hand: 0,
            looking: Looking::No,
            drained: None,
            is_draining: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DispatcherMsg::Fill => state.fill(&myself),
            DispatcherMsg::Filled(prepared) => state.filled(&myself, prepared),
            DispatcherMsg::Woken => {
                state.looking = Looking::No;
                state.fill(&myself);
            }
            DispatcherMsg::Embedded { slot, id, result } => {
                state.embedded(&myself, slot, id, result);
            }
            DispatcherMsg::Finished { jobs, again } => {
                let kept: usize = again.iter().map(|batch| batch.texts.len()).sum();
                state.in_hand -= jobs - kept;
                state.schedule.ended();
                again.into_iter().for_each(|batch| state.schedule.add_first(batch));
                if state.is_draining {
                    state.hand_back_ready(&myself);
                }
                state.fill(&myself);
            }
            DispatcherMsg::EmbedderUp(slot, embedder) => {
                state.embedders[slot] = Some(embedder);
                state.schedule.slot_up(slot);
            }
            DispatcherMsg::EmbedderLost(slot, reason) => {
                state.embedders[slot] = None;
                if let Some(batch) = state.schedule.slot_lost(slot) {
                    state.fail(&myself, batch, &reason);
                }
                if state.is_draining {
                    state.hand_back_ready(&myself);
                }
            }
            DispatcherMsg::ThrottlerUp(throttler) => state.worker.throttler = throttler,
            DispatcherMsg::Drain(reply) => {
                state.is_draining = true;
                state.drained = Some(reply);
                state.hand_back_ready(&myself);
            }
            DispatcherMsg::LetGo(reply) => {
                let worker = state.worker.clone();
                tokio::spawn(async move {
                    worker.hand_back_all().await;
                    // Whoever waited may have lost patience.
                    let _ = reply.send(());
                });
            }
            DispatcherMsg::StepPanicked => return Err("a step of the pipeline panicked".into()),
        }
        state.dispatch(&myself);
        state.report_when_drained();
        Ok(())
    }
}
