//! The RetryScheduler: the clock that brings jobs back.

use std::{sync::Arc, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::{
    context::Context,
    sweep::{self, SweepError, report},
};
use crate::telemetry::metrics;

/// A retry that becomes due while no earlier one was known is found after this time at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the RetryScheduler understands; each message is its own timer, armed again when its
/// work is done.
pub enum RetrySchedulerMsg {
    /// Move retries that are due to the queue.
    Promote,
    /// Look for lost leases.
    Reclaim,
    /// Look for everything else.
    Sweep,
    /// The sweep is over.
    Swept(Result<(), SweepError>),
}

/// The actor.
pub struct RetryScheduler;

impl RetryScheduler {
    async fn promote(context: &Context) -> Duration {
        match context.queue.promote_due().await {
            Ok((moved, next)) => {
                metrics::retries_promoted(moved);
                next.unwrap_or(LOOK_AGAIN).clamp(Duration::from_millis(5), LOOK_AGAIN)
            }
            Err(error) => {
                report("promote", &error.into());
                LOOK_AGAIN
            }
        }
    }
}

impl Actor for RetryScheduler {
    type Msg = RetrySchedulerMsg;
    type State = Arc<Context>;
    type Arguments = Arc<Context>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        context: Arc<Context>,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(RetrySchedulerMsg::Promote)?;
        myself.cast(RetrySchedulerMsg::Reclaim)?;
        myself.cast(RetrySchedulerMsg::Sweep)?;
        Ok(context)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        context: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RetrySchedulerMsg::Promote => {
                let pause = Self::promote(context).await;
                myself.send_after(pause, || RetrySchedulerMsg::Promote);
            }
            RetrySchedulerMsg::Reclaim => {
                if let Err(error) = sweep::reclaim(context).await {
                    report("reclaim", &error);
                }
                let pause = (context.config.lease / 4).min(LOOK_AGAIN);
                myself.send_after(pause, || RetrySchedulerMsg::Reclaim);
            }
            RetrySchedulerMsg::Sweep => {
                // It may take seconds, and retries must not wait for it.
                let context = Arc::clone(context);
                tokio::spawn(async move {
                    let outcome = tokio::spawn(async move { sweep::sweep(&context).await }).await;
                    // A sweep that panicked is not armed again by itself.
                    let message = RetrySchedulerMsg::Swept(outcome.unwrap_or(Ok(())));
                    let _ = myself.cast(message);
                });
            }
            RetrySchedulerMsg::Swept(outcome) => {
                if let Err(error) = outcome {
                    report("sweep", &error);
                }
                myself.send_after(context.config.sweep_interval, || RetrySchedulerMsg::Sweep);
            }
        }
        Ok(())
    }
}
