//! The protocol as a state machine: producers, editors, workers, schedulers, an operator and
//! foreign programs take their steps in any order, any of them may die between two, and Redis may
//! lose what it holds. Every step is one operation of the real queue or the real store. What must
//! hold is looked at after every step; at the end all actors die, and what is left must come to
//! rest by itself.
//!
//! `PROPTEST_CASES` sets the number of cases.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "model/act.rs"]
mod act;
#[path = "model/book.rs"]
mod book;
#[path = "model/closing.rs"]
mod closing;
#[path = "model/editor.rs"]
mod editor;
#[path = "model/foreign.rs"]
mod foreign;
#[path = "model/invariants.rs"]
mod invariants;
#[path = "model/minimal.rs"]
mod minimal;
#[path = "model/operator.rs"]
mod operator;
#[path = "model/plan.rs"]
mod plan;
#[path = "model/producer.rs"]
mod producer;
#[path = "model/scheduler.rs"]
mod scheduler;
#[path = "model/seen.rs"]
mod seen;
#[path = "model/site.rs"]
mod site;
#[path = "model/trouble.rs"]
mod trouble;
#[path = "model/worker.rs"]
mod worker;
#[path = "model/world.rs"]
mod world;

use proptest::{
    proptest,
    test_runner::{Config, FileFailurePersistence},
};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use act::Step;
use minimal::Minimal;
use plan::Plan;
use site::Site;
use world::World;

/// As many as take a minute on two cores.
const CASES: u32 = 160;

fn config() -> Config {
    let mut config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/model/regressions.txt",
        ))),
        max_shrink_iters: 4000,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    config
}

/// On SQLite, or on Postgres.
struct Protocol<const ON_POSTGRES: bool>;

impl<const ON_POSTGRES: bool> StateMachineTest for Protocol<ON_POSTGRES> {
    type SystemUnderTest = World;
    type Reference = Plan;

    fn init_test(plan: &Plan) -> World {
        let site = Site::get(ON_POSTGRES);
        site.block_on(World::new(site, plan.lost_max))
    }

    fn apply(mut world: World, _: &Plan, Step(act): Step) -> World {
        world.book.site.block_on(world.take(act));
        world
    }

    fn teardown(mut world: World, _: Plan) {
        world.book.site.block_on(world.close());
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_crash_anywhere_loses_nothing_and_leaves_nothing_on_sqlite(
        (plan, steps, taken) in Minimal(Plan::sequential_strategy(50..250))
    ) {
        Protocol::<false>::test_sequential(config(), plan, steps, taken);
    }

    #[test]
    fn a_crash_anywhere_loses_nothing_and_leaves_nothing_on_postgres(
        (plan, steps, taken) in Minimal(Plan::sequential_strategy(50..250))
    ) {
        Protocol::<true>::test_sequential(config(), plan, steps, taken);
    }
}
