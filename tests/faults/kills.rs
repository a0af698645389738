//! Processes that end without a word.

use std::time::{Duration, Instant};

use super::{
    checker::{Expected, check},
    faulty::CRASH,
    plan::{Plan, Row, short_or_full},
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::wait_until;

/// Batches in the hands of a process at most, of 8 texts each.
const IN_HAND: usize = 8 * 8;

async fn a_worker_killed_again_and_again_loses_nothing(stores: Stores) {
    let mut plan = Plan::new("kill -9 of the worker").await;
    let (nodes, kills) = short_or_full((800, 6), (5_989, 25));
    let mut row = Row::new(format!("`kill -9` of the worker, {kills} in a drain"), stores.name());
    let mut site = Site::new(stores, &[]).await;
    let batch_time = Duration::from_millis(5);
    let (mut worker, url) = site.start_all(batch_time).await;
    let ids = site.ingest(&url, &texts(nodes)).await;
    let progress = site.progress().await;
    let share = nodes as u64 / (kills + 1);
    for kill in 0..kills {
        let until = kill * share + plan.pick(1..share);
        progress.reach(until).await;
        site.program(worker).kill();
        let fault_gone = Instant::now();
        worker = site.start_worker(batch_time);
        row.recovered(progress.recovery(fault_gone).await.expect("killed at work"));
    }
    let expected = Expected {
        ids: &ids,
        embedded_again: Some(kills as usize * IN_HAND),
        ..Expected::default()
    };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_nothing_on_private_stores() {
    a_worker_killed_again_and_again_loses_nothing(Stores::Private).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_nothing_on_shared_stores() {
    a_worker_killed_again_and_again_loses_nothing(Stores::Shared).await;
}

async fn what_was_acknowledged_outlives_the_process_that_said_so(stores: Stores) {
    let mut plan = Plan::new("kill -9 of the API during ingest").await;
    let kills = short_or_full(4, 20);
    let mut row =
        Row::new(format!("`kill -9` of the API during ingest, {kills} times"), stores.name());
    let mut site = Site::new(stores, &[]).await;
    if stores == Stores::Shared {
        site.start_faulty("worker", Duration::from_millis(1), &[]);
    }
    let role = if stores == Stores::Shared { "api" } else { "serve" };
    let mut acknowledged = Vec::new();
    for round in 0..kills {
        let api = site.start(role);
        let url = site.url(api).await;
        let after = Duration::from_micros(plan.pick(1_000..60_000));
        // It is killed by somebody who does not look where it is.
        let pid = site.program(api).id();
        let killer = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            crate::common::send_signal("KILL", pid);
        });
        for request in 0.. {
            let texts: Vec<String> =
                (0..20).map(|i| format!("round{round} request{request} text{i}")).collect();
            match site.try_ingest(&url, &texts).await {
                Ok(ids) => acknowledged.extend(ids),
                Err(_) => break,
            }
        }
        killer.await.unwrap();
        site.program(api).kill();
    }
    assert!(!acknowledged.is_empty(), "every API was killed before its first answer");
    let last = site.start(role);
    site.url(last).await;
    // Only a `serve` has work in hand that its end makes worthless.
    let again = if stores == Stores::Shared { 0 } else { kills * IN_HAND };
    let expected =
        Expected { ids: &acknowledged, embedded_again: Some(again), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_serve_acknowledged_is_embedded() {
    what_was_acknowledged_outlives_the_process_that_said_so(Stores::Private).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_api_acknowledged_is_embedded() {
    what_was_acknowledged_outlives_the_process_that_said_so(Stores::Shared).await;
}

async fn a_text_that_kills_its_process_is_buried_and_its_batch_mates_are_not(stores: Stores) {
    let _plan = Plan::new("a text that ends its process").await;
    let mut row = Row::new("a text that ends its process", stores.name());
    let mut site = Site::new(stores, &[("EMBEDDING_LEASE_SECONDS", "1")]).await;
    let (mut worker, url) = site.start_all(Duration::ZERO).await;
    let mut texts = texts(40);
    texts[17] = CRASH.to_owned();
    // A `serve` may be gone before it has answered.
    let ids = site.try_ingest(&url, &texts).await.unwrap_or_default();
    let (mut deaths, progress) = (0, site.progress().await);
    wait_until(DEADLINE, async || {
        if !site.program(worker).is_running() {
            deaths += 1;
            worker = site.start_worker(Duration::ZERO);
        }
        progress.ready().await == Some(39) && site.redis("LLEN embedding:dlq") == "1"
    })
    .await;
    let expected = Expected {
        ids: &ids,
        failing: &[CRASH],
        // All others, each time that it ends their process.
        embedded_again: Some(3 * 40),
        ..Expected::default()
    };
    let checked = check(&site, &expected).await;
    assert_eq!(deaths, 4, "one with its batch, three alone, and no fifth");
    let letter = site.redis("LINDEX embedding:dlq 0");
    assert!(letter.contains("worker lost 3 times"), "{letter}");
    row.checked(checked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_kills_its_workers_is_buried_alone_on_private_stores() {
    a_text_that_kills_its_process_is_buried_and_its_batch_mates_are_not(Stores::Private).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_kills_its_workers_is_buried_alone_on_shared_stores() {
    a_text_that_kills_its_process_is_buried_and_its_batch_mates_are_not(Stores::Shared).await;
}
