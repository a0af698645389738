//! The reference: how far each actor has come, as far as that does not depend on answers. It
//! decides which steps make sense next. None is forbidden: one that finds nothing to do does
//! nothing, so that a case stays one whatever is left out of it.

use std::fmt;

use proptest::{prelude::*, sample::select, strategy::Union};
use proptest_state_machine::ReferenceStateMachine;
use vecmill::domain::{Action, FailureKind, NodeStatus};

use crate::act::{Act, Lost, Step};

pub const PRODUCERS: usize = 2;
pub const EDITORS: usize = 2;
pub const WORKERS: usize = 3;
pub const SCHEDULERS: usize = 2;
/// So few that steps of different actors meet at the same one.
const NODES: usize = 8;
/// Operations on a job from its claim to its end, about.
const JOB_STEPS: usize = 5;
/// Operations of one reclaim.
const RECLAIM_STEPS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Producing {
    Idle,
    Reserved { nodes: usize },
    Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Editing {
    Idle,
    Reserved,
    Written,
    Deleted,
}

/// See the module.
#[derive(Clone)]
pub struct Plan {
    /// Workers that a job may lose: fewer than in the program, so that it comes to pass.
    pub lost_max: u32,
    /// Whether foreign programs take part.
    foreigners: bool,
    /// Whether keys get lost.
    faults: bool,
    producers: [Producing; PRODUCERS],
    editors: [Editing; EDITORS],
    /// Jobs that wait to be claimed, about.
    waiting: usize,
    /// Operations that are left to do on the jobs in the hands of workers, about.
    in_hand: usize,
    /// Whether a job may wait for its next attempt.
    retries: bool,
    /// Operations on leases that ran out that are left, about.
    reclaim: usize,
    /// Operations that a requeue, the foreign producer and the foreign consumer have left.
    requeue: usize,
    their_producer: usize,
    their_consumer: usize,
    /// Rows that were written, at most.
    rows: usize,
}

impl Plan {
    /// The steps that make sense, each with its weight among them.
    fn choices(&self) -> Vec<(u32, BoxedStrategy<Act>)> {
        let mut choices = self.of_producers();
        choices.extend(self.of_editors());
        choices.extend(self.of_workers());
        choices.extend(self.of_schedulers());
        choices.extend(self.of_others());
        choices
    }

    fn of_producers(&self) -> Vec<(u32, BoxedStrategy<Act>)> {
        let mut choices = Vec::new();
        for producer in 0..PRODUCERS {
            match self.producers[producer] {
                Producing::Idle if self.rows < NODES => {
                    let reserve =
                        (1..=2_usize).prop_map(move |nodes| Act::Reserve { producer, nodes });
                    choices.push((10, reserve.boxed()));
                }
                Producing::Idle => {}
                Producing::Reserved { .. } => {
                    let insert = prop::bool::weighted(0.9)
                        .prop_map(move |with_text| Act::Insert { producer, with_text });
                    choices.push((16, insert.boxed()));
                    choices.push((1, Just(Act::Cancel { producer }).boxed()));
                    choices.push((1, Just(Act::ProducerDies { producer }).boxed()));
                }
                Producing::Written => {
                    choices.push((16, Just(Act::Publish { producer }).boxed()));
                    choices.push((1, Just(Act::ProducerDies { producer }).boxed()));
                }
            }
        }
        choices
    }

    fn of_editors(&self) -> Vec<(u32, BoxedStrategy<Act>)> {
        let mut choices = Vec::new();
        for editor in 0..EDITORS {
            match self.editors[editor] {
                Editing::Idle if self.rows > 0 => {
                    let edit = (0..NODES).prop_map(move |node| Act::ReserveEdit { editor, node });
                    let delete = (0..NODES).prop_map(move |node| Act::DeleteRow { editor, node });
                    choices.push((4, edit.boxed()));
                    choices.push((1, delete.boxed()));
                }
                Editing::Idle => {}
                Editing::Reserved => {
                    let write = prop::bool::weighted(0.9)
                        .prop_map(move |with_text| Act::WriteEdit { editor, with_text });
                    choices.push((16, write.boxed()));
                }
                Editing::Written => choices.push((16, Just(Act::PublishEdit { editor }).boxed())),
                Editing::Deleted => choices.push((4, Just(Act::ForgetJobs { editor }).boxed())),
            }
            if self.editors[editor] != Editing::Idle {
                choices.push((1, Just(Act::EditorDies { editor }).boxed()));
            }
        }
        choices
    }

    fn of_workers(&self) -> Vec<(u32, BoxedStrategy<Act>)> {
        let mut choices = Vec::new();
        if self.waiting > 0 {
            let claim = (0..WORKERS, 1..=3_usize, prop::bool::weighted(0.2));
            let claim = claim.prop_map(|(worker, wanted, one_a_tenant)| Act::Claim {
                worker,
                wanted,
                one_a_tenant,
            });
            choices.push((12, claim.boxed()));
        }
        if self.in_hand > 0 {
            let job = 0..NODES;
            let kinds = select(vec![FailureKind::Transient, FailureKind::Permanent]);
            let fail = (job.clone(), kinds).prop_map(|(job, kind)| Act::Fail { job, kind });
            let give_back = (job.clone(), any::<bool>());
            let give_back = give_back.prop_map(|(job, row_first)| Act::GiveBack { job, row_first });
            let extend = (0..WORKERS).prop_map(|worker| Act::Extend { worker });
            let die = (0..WORKERS).prop_map(|worker| Act::WorkerDies { worker });
            choices.push((40, job.prop_map(|job| Act::Advance { job }).boxed()));
            choices.push((8, fail.boxed()));
            choices.push((2, give_back.boxed()));
            choices.push((1, extend.boxed()));
            choices.push((1, die.boxed()));
        }
        choices
    }

    fn of_schedulers(&self) -> Vec<(u32, BoxedStrategy<Act>)> {
        let scheduler = || 0..SCHEDULERS;
        let mut choices = vec![
            (1, scheduler().prop_map(|scheduler| Act::Recount { scheduler }).boxed()),
            (6, scheduler().prop_map(|scheduler| Act::Sweep { scheduler }).boxed()),
            (1, scheduler().prop_map(|scheduler| Act::SchedulerDies { scheduler }).boxed()),
        ];
        if self.reclaim > 0 {
            let reclaim = scheduler().prop_map(|scheduler| Act::Reclaim { scheduler });
            choices.push((16, reclaim.boxed()));
        }
        if self.in_hand > 0 {
            let run_out = (0..3_usize).prop_map(|lease| Act::LeaseRunsOut { lease });
            choices.push((6, run_out.boxed()));
        }
        if self.retries {
            let come_due = (0..NODES).prop_map(|retry| Act::RetryComesDue { retry });
            choices.push((6, come_due.boxed()));
            choices.push((4, Just(Act::Promote).boxed()));
        }
        choices
    }

    fn of_others(&self) -> Vec<(u32, BoxedStrategy<Act>)> {
        let any_of = 0..NODES;
        let mut choices = vec![
            (1, Just(Act::ReservationRunsOut { reservation: 0 }).boxed()),
            (1, Just(Act::DropDeadLetters).boxed()),
        ];
        if self.requeue > 0 {
            choices.push((8, Just(Act::Requeue).boxed()));
        } else {
            let statuses = select(vec![
                Some(NodeStatus::Failed),
                Some(NodeStatus::Queued),
                Some(NodeStatus::Ready),
                None,
            ]);
            let find = (statuses, select(vec![Action::Embed, Action::Refresh]))
                .prop_map(|(status, action)| Act::FindForRequeue { status, action });
            choices.push((4, find.boxed()));
        }
        if self.foreigners {
            let node = (prop::option::of(any_of.clone()), any::<bool>())
                .prop_map(|(node, tenant_is_null)| Act::TheirNode { node, tenant_is_null });
            choices.push((2, node.boxed()));
        }
        if self.foreigners && self.waiting > 0 {
            choices.push((3, Just(Act::TheyTake).boxed()));
        }
        if self.their_producer > 0 {
            choices.push((10, Just(Act::TheirCommand).boxed()));
            choices.push((1, Just(Act::TheirProducerDies).boxed()));
        }
        if self.their_consumer > 0 {
            choices.push((10, Just(Act::TheyAdvance).boxed()));
            choices.push((1, Just(Act::TheirConsumerDies).boxed()));
        }
        if self.faults {
            let keys = select(vec![Lost::Leases, Lost::Fair, Lost::Started, Lost::Changed]);
            let pending = any_of.prop_map(|node| Act::Lose(Lost::Pending { node }));
            let counts = (0..2_usize, select(vec!["nonsense", "-4", "0", "99"]))
                .prop_map(|(tenant, count)| Act::Miscount { tenant, count });
            choices.push((1, Just(Act::Flush).boxed()));
            choices.push((2, keys.prop_map(Act::Lose).boxed()));
            choices.push((1, pending.boxed()));
            choices.push((1, counts.boxed()));
        }
        choices
    }
}

impl fmt::Debug for Plan {
    /// What a case begins with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost_max, foreigners, faults, .. } = self;
        write!(f, "Plan {{ lost_max: {lost_max}, foreigners: {foreigners}, faults: {faults} }}")
    }
}

impl ReferenceStateMachine for Plan {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        (1..=2_u32, any::<bool>(), any::<bool>())
            .prop_map(|(lost_max, foreigners, faults)| Self {
                lost_max,
                foreigners,
                faults,
                producers: [Producing::Idle; PRODUCERS],
                editors: [Editing::Idle; EDITORS],
                waiting: 0,
                in_hand: 0,
                retries: false,
                reclaim: 0,
                requeue: 0,
                their_producer: 0,
                their_consumer: 0,
                rows: 0,
            })
            .boxed()
    }

    fn transitions(plan: &Self) -> BoxedStrategy<Step> {
        Union::new_weighted(plan.choices()).prop_map(Step).boxed()
    }

    fn apply(mut plan: Self, Step(act): &Step) -> Self {
        match *act {
            Act::Publish { .. }
            | Act::PublishEdit { .. }
            | Act::GiveBack { .. }
            | Act::Promote
            | Act::Reclaim { .. }
            | Act::Sweep { .. }
            | Act::Requeue
            | Act::TheirCommand => plan.waiting = NODES.min(plan.waiting + 1),
            Act::Claim { wanted, .. } => plan.waiting = plan.waiting.saturating_sub(wanted),
            Act::TheyTake => plan.waiting = plan.waiting.saturating_sub(1),
            _ => {}
        }
        match *act {
            Act::Reserve { producer, nodes } => {
                plan.producers[producer] = Producing::Reserved { nodes };
            }
            Act::Insert { producer, .. } => {
                if let Producing::Reserved { nodes } = plan.producers[producer] {
                    plan.rows += nodes;
                }
                plan.producers[producer] = Producing::Written;
            }
            Act::Publish { producer }
            | Act::Cancel { producer }
            | Act::ProducerDies { producer } => {
                plan.producers[producer] = Producing::Idle;
            }
            Act::ReserveEdit { editor, .. } => plan.editors[editor] = Editing::Reserved,
            Act::WriteEdit { editor, .. } => plan.editors[editor] = Editing::Written,
            Act::DeleteRow { editor, .. } => {
                plan.editors[editor] = Editing::Deleted;
                plan.rows = plan.rows.saturating_sub(1);
            }
            Act::PublishEdit { editor }
            | Act::ForgetJobs { editor }
            | Act::EditorDies { editor } => {
                plan.editors[editor] = Editing::Idle;
            }
            Act::Claim { wanted, .. } => plan.in_hand += wanted * JOB_STEPS,
            Act::Advance { .. } => plan.in_hand = plan.in_hand.saturating_sub(1),
            Act::Fail { .. } => plan.retries = true,
            Act::LeaseRunsOut { .. } | Act::Lose(Lost::Leases) => plan.reclaim += RECLAIM_STEPS,
            Act::Reclaim { .. } => plan.reclaim = plan.reclaim.saturating_sub(1),
            Act::FindForRequeue { .. } => plan.requeue = 2,
            Act::Requeue => plan.requeue = plan.requeue.saturating_sub(1),
            Act::TheirNode { node, .. } => {
                plan.their_producer = 4;
                plan.rows += usize::from(node.is_none());
            }
            Act::TheirCommand => plan.their_producer = plan.their_producer.saturating_sub(1),
            Act::TheirProducerDies => plan.their_producer = 0,
            Act::TheyTake => plan.their_consumer = 4,
            Act::TheyAdvance => plan.their_consumer = plan.their_consumer.saturating_sub(1),
            Act::TheirConsumerDies => plan.their_consumer = 0,
            _ => {}
        }
        plan
    }
}
