//! The steps that actors take.

use std::fmt;

use vecmill::domain::{Action, FailureKind, NodeStatus};

/// One step of one actor. A number that picks one of several things is taken modulo how many
/// there are, so that a step stays one when others before it are left out.
#[derive(Clone)]
pub struct Step(pub Act);

impl fmt::Debug for Step {
    /// A line a step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Step {
    /// The same step with the first of what it may pick; none if it picks that already.
    pub fn plain(&self) -> Option<Self> {
        let mut act = self.0.clone();
        let pick = match &mut act {
            Act::ReserveEdit { node: pick, .. }
            | Act::DeleteRow { node: pick, .. }
            | Act::Advance { job: pick }
            | Act::Fail { job: pick, .. }
            | Act::GiveBack { job: pick, .. }
            | Act::LeaseRunsOut { lease: pick }
            | Act::ReservationRunsOut { reservation: pick }
            | Act::RetryComesDue { retry: pick } => pick,
            Act::Reserve { nodes: many, .. } | Act::Claim { wanted: many, .. } if *many > 1 => {
                *many = 1;
                return Some(Self(act));
            }
            _ => return None,
        };
        (std::mem::take(pick) > 0).then_some(Self(act))
    }
}

/// A key of Redis that gets lost.
#[derive(Debug, Clone, Copy)]
pub enum Lost {
    Leases,
    Fair,
    Started,
    Changed,
    Pending { node: usize },
}

/// See [`Step`].
#[derive(Debug, Clone)]
pub enum Act {
    /// A producer asks for room.
    Reserve {
        producer: usize,
        nodes: usize,
    },
    /// It writes the rows.
    Insert {
        producer: usize,
        with_text: bool,
    },
    /// It puts the jobs on the queue.
    Publish {
        producer: usize,
    },
    /// It gives the room back, because the rows could not be written.
    Cancel {
        producer: usize,
    },
    ProducerDies {
        producer: usize,
    },

    /// An editor asks for room for the new text of a node.
    ReserveEdit {
        editor: usize,
        node: usize,
    },
    /// It writes the new text.
    WriteEdit {
        editor: usize,
        with_text: bool,
    },
    /// It makes sure that the new text gets a job.
    PublishEdit {
        editor: usize,
    },
    /// It deletes a node.
    DeleteRow {
        editor: usize,
        node: usize,
    },
    /// It ends the jobs of the node that it deleted.
    ForgetJobs {
        editor: usize,
    },
    EditorDies {
        editor: usize,
    },

    Claim {
        worker: usize,
        wanted: usize,
        one_a_tenant: bool,
    },
    /// The next operation on one of the jobs in the hands of workers, when nothing goes wrong.
    Advance {
        job: usize,
    },
    /// One of the jobs in hand fails: its row says so.
    Fail {
        job: usize,
        kind: FailureKind,
    },
    /// One of the jobs in hand is to be handed back: first its row or first its lease.
    GiveBack {
        job: usize,
        row_first: bool,
    },
    Extend {
        worker: usize,
    },
    WorkerDies {
        worker: usize,
    },

    /// Retries that are due come back to the queue.
    Promote,
    /// The next operation of giving the jobs of lost workers to others.
    Reclaim {
        scheduler: usize,
    },
    /// The next operation of comparing keys and counts with the jobs that are there.
    Recount {
        scheduler: usize,
    },
    /// The next operation of enqueueing rows that have no job.
    Sweep {
        scheduler: usize,
    },
    SchedulerDies {
        scheduler: usize,
    },

    /// An operator looks for nodes to enqueue again.
    FindForRequeue {
        status: Option<NodeStatus>,
        action: Action,
    },
    /// The next operation of enqueueing those found.
    Requeue,
    DropDeadLetters,

    /// A foreign producer turns to a node, or to a new one whose row it writes.
    TheirNode {
        node: Option<usize>,
        tenant_is_null: bool,
    },
    /// Its next command.
    TheirCommand,
    TheirProducerDies,
    /// A foreign consumer takes a job.
    TheyTake,
    /// Its next command or statement.
    TheyAdvance,
    TheirConsumerDies,

    /// Time passes: a lease runs out.
    LeaseRunsOut {
        lease: usize,
    },
    ReservationRunsOut {
        reservation: usize,
    },
    RetryComesDue {
        retry: usize,
    },

    /// Redis loses its memory.
    Flush,
    Lose(Lost),
    /// Somebody writes nonsense into the count of a tenant.
    Miscount {
        tenant: usize,
        count: &'static str,
    },
}
