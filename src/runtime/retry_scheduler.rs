//! The RetryScheduler: the clock that brings jobs back.

use std::{sync::Arc, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::error;

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
    /// The look for lost leases is over.
    Reclaimed,
    /// The sweep is over.
    Swept,
}

/// The actor.
pub struct RetryScheduler;

/// Does a repair, and logs why it could not be done; the next one tries again.
async fn repair<F: Future<Output = Result<(), SweepError>> + Send>(
    what: &'static str,
    context: Arc<Context>,
    work: impl FnOnce(Arc<Context>) -> F + Send,
) {
    if let Err(error) = work(context).await {
        report(what, &error);
    }
}

/// Runs work as a task and sends the message when it is over, also when it panicked: the timer
/// must be armed again.
fn then(
    myself: ActorRef<RetrySchedulerMsg>,
    work: impl Future<Output = ()> + Send + 'static,
    message: RetrySchedulerMsg,
) {
    let task = tokio::spawn(work);
    tokio::spawn(async move {
        if task.await.is_err() {
            error!("a repair panicked");
        }
        // A RetryScheduler that is gone has a successor with timers of its own.
        let _ = myself.cast(message);
    });
}

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
            // These two wait for the database, and retries must not wait with them.
            RetrySchedulerMsg::Reclaim => {
                let work = repair("reclaim", Arc::clone(context), sweep::reclaim);
                then(myself, work, RetrySchedulerMsg::Reclaimed);
            }
            RetrySchedulerMsg::Reclaimed => {
                let pause = (context.config.lease / 4).min(LOOK_AGAIN);
                myself.send_after(pause, || RetrySchedulerMsg::Reclaim);
            }
            RetrySchedulerMsg::Sweep => {
                let work = repair("sweep", Arc::clone(context), sweep::sweep);
                then(myself, work, RetrySchedulerMsg::Swept);
            }
            RetrySchedulerMsg::Swept => {
                myself.send_after(context.config.sweep_interval, || RetrySchedulerMsg::Sweep);
            }
        }
        Ok(())
    }
}
