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
    finish::{Done, batches, failed, finish},
    leases::LeaseKeeper,
    pace::LastDone,
    prepare::{Look, Prepared, look, prepare, wait},
    room::{Load, Room},
    schedule::Schedule,
    steps::{DispatcherMsg, step},
    throttler::ThrottlerMsg,
    worker::{Held, Worker},
};
use crate::{domain::FailureKind, telemetry::Chain};

/// Batches in hand for each Embedder: running, ready, being prepared, being written. More would
/// make the Embedder no faster, and all of them are before any job that comes now.
const BATCHES_IN_HAND: usize = 8;
/// Claims that are read and tokenised at once: while one waits for the database, the other is with
/// the tokenizer.
const CLAIMS_IN_PREPARATION: usize = 2;
/// Groups of batches that are stored at once. What comes meanwhile is the next group.
const GROUPS_BEING_STORED: usize = 2;

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
    /// What is in batches, wherever these are.
    room: Room,
    /// What waits to be stored, while other vectors are; that is all that it waits for.
    done: Vec<Done>,
    storing: usize,
    last_embedded: LastDone,
    looking: Looking,
    preparing: usize,
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
    /// Starts a look into the queue, if there is room.
    fn fill(&mut self, myself: &ActorRef<DispatcherMsg>) {
        let is_busy = self.looking != Looking::No || self.preparing >= CLAIMS_IN_PREPARATION;
        if self.is_draining || is_busy {
            return;
        }
        let Some(wanted) = self.room.wanted() else { return };
        self.looking = Looking::Claiming;
        let worker = self.worker.clone();
        step(myself, async move { DispatcherMsg::Looked(look(&worker, wanted).await) });
    }

    fn looked(&mut self, myself: &ActorRef<DispatcherMsg>, look: Look) {
        self.looking = Looking::No;
        if !look.claimed.is_empty() {
            self.preparing += 1;
            let estimate = self.room.claimed(look.claimed.len());
            let batch_tokens = self.room.batch_tokens(self.worker.context.config.batch_tokens);
            let worker = self.worker.clone();
            step(myself, async move {
                let prepared = prepare(&worker, look.claimed, batch_tokens).await;
                DispatcherMsg::Prepared { estimate, prepared }
            });
        }
        if self.is_draining {
            self.hand_back_ready(myself);
        } else if let Some(change) = look.wait {
            self.looking = Looking::Waiting;
            let worker = self.worker.clone();
            step(myself, async move {
                wait(&worker, change).await;
                DispatcherMsg::Woken
            });
        } else {
            self.fill(myself);
        }
    }

    fn prepared(&mut self, myself: &ActorRef<DispatcherMsg>, estimate: Load, prepared: Prepared) {
        self.preparing -= 1;
        let known = Done::Known(prepared.known);
        self.room.took(estimate, Load::of(&prepared.batches), known.load());
        prepared.batches.into_iter().for_each(|batch| self.schedule.add(batch));
        if known.load() != Load::default() {
            self.done.push(known);
            self.store(myself);
        }
        if self.is_draining {
            self.hand_back_ready(myself);
        } else {
            self.fill(myself);
        }
    }

    /// Gives batches to Embedders that have room.
    fn dispatch(&mut self, myself: &ActorRef<DispatcherMsg>) {
        while let Some(assignment) = self.schedule.assign() {
            let Some(embedder) = self.embedders[assignment.slot].clone() else { continue };
            let texts = assignment.batch.distinct();
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
        self.clear(&batch);
        match result.vectors {
            Ok(vectors) => {
                self.room.embedded(Load::of([&batch]), self.last_embedded.alone(result.took));
                self.schedule.ending();
                self.done.push(Done::Batch { batch, vectors, took: result.took });
                self.store(myself);
                self.fill(myself);
            }
            Err(error) => {
                let (worker, load) = (self.worker.clone(), Load::of([&batch]));
                self.end(myself, load, async move { failed(&worker, batch, &error).await });
            }
        }
    }

    /// Stores what waits for it, unless enough is just being stored.
    fn store(&mut self, myself: &ActorRef<DispatcherMsg>) {
        if self.storing >= GROUPS_BEING_STORED || self.done.is_empty() {
            return;
        }
        self.storing += 1;
        let done = std::mem::take(&mut self.done);
        let (worker, batches) = (self.worker.clone(), batches(&done));
        let load = done.iter().map(Done::load).fold(Load::default(), |all, load| all + load);
        step(myself, async move {
            finish(&worker, done).await;
            DispatcherMsg::Stored { batches, load }
        });
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

    /// Runs the step that ends so much; it answers the batches to embed again.
    fn end(
        &mut self,
        myself: &ActorRef<DispatcherMsg>,
        load: Load,
        ending: impl Future<Output = Vec<Batch>> + Send + 'static,
    ) {
        self.schedule.ending();
        step(myself, async move { DispatcherMsg::Finished { load, again: ending.await } });
    }

    /// Ends the job of a text that brought an Embedder down while it was alone with it.
    fn fail(&mut self, myself: &ActorRef<DispatcherMsg>, batch: Batch, reason: &str) {
        let (worker, load) = (self.worker.clone(), Load::of([&batch]));
        let jobs = batch.texts.into_iter().map(Text::into_failing).collect();
        let reason = format!("{reason} on this text");
        self.end(myself, load, async move {
            endings::fail(&worker, jobs, FailureKind::Permanent, &reason).await;
            Vec::new()
        });
    }

    /// Gives back what no Embedder has begun. What a claim under way brings comes later in the
    /// queue and must be given back with it, or it would be put before it.
    fn hand_back_ready(&mut self, myself: &ActorRef<DispatcherMsg>) {
        if self.looking == Looking::Claiming || self.preparing > 0 {
            return;
        }
        let batches = self.schedule.take_ready();
        if batches.is_empty() {
            return;
        }
        let (worker, load) = (self.worker.clone(), Load::of(&batches));
        let jobs: Vec<Held> =
            batches.into_iter().flat_map(|batch| batch.texts).map(Text::into_held).collect();
        self.end(myself, load, async move {
            worker.hand_back(&jobs).await;
            Vec::new()
        });
    }

    fn report_when_drained(&mut self) {
        let is_drained =
            self.is_draining && self.room.is_empty() && self.looking != Looking::Claiming;
        if let Some(reply) = self.drained.take_if(|_| is_drained) {
            // Whoever waited may have lost patience.
            let _ = reply.send(());
        }
    }
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
        let per_embedder = Load {
            texts: context.config.batch_texts * BATCHES_IN_HAND,
            tokens: context.config.batch_tokens * BATCHES_IN_HAND,
        };
        let room = Room::new(per_embedder, context.model.max_tokens, embedders.len());
        Ok(DispatcherState {
            worker: Worker { context, throttler, keeper: Arc::new(keeper), let_go: Arc::default() },
            embedders,
            schedule,
            room,
            done: Vec::new(),
            storing: 0,
            last_embedded: LastDone::default(),
            looking: Looking::No,
            preparing: 0,
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
            DispatcherMsg::Looked(look) => state.looked(&myself, look),
            DispatcherMsg::Prepared { estimate, prepared } => {
                state.prepared(&myself, estimate, prepared);
            }
            DispatcherMsg::Woken => {
                state.looking = Looking::No;
                state.fill(&myself);
            }
            DispatcherMsg::Embedded { slot, id, result } => {
                state.embedded(&myself, slot, id, result);
            }
            DispatcherMsg::Stored { batches, load } => {
                state.storing -= 1;
                state.room.gave(load);
                (0..batches).for_each(|_| state.schedule.ended());
                state.store(&myself);
                state.fill(&myself);
            }
            DispatcherMsg::Finished { load, again } => {
                state.room.gave_up(load - Load::of(&again));
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
