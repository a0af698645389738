//! Connections that are cut in the middle of a reply, and replies that take their time.

use std::time::{Duration, Instant};

use super::{
    checker::{Expected, check},
    plan::{Plan, Row, is_full, short_or_full},
    proxy::behind_a_proxy,
    site::{DEADLINE, Stores, texts},
};
use crate::common::wait_until;

const BATCH_TIME: Duration = Duration::from_millis(10);

async fn cuts(fault: &'static str, of_redis: bool) {
    let mut plan = Plan::new(fault).await;
    let (nodes, cuts) = short_or_full((600, 12), (5_989, 150));
    let mut row = Row::new(format!("{fault}, {cuts} times"), Stores::Shared.name());
    let (mut site, proxy) = behind_a_proxy(of_redis).await;
    let (_, url) = site.start_all(BATCH_TIME).await;
    let (mut ids, mut acknowledged_all) = (Vec::new(), true);
    let texts = texts(nodes);
    let progress = site.progress().await;
    // Both processes are up: one that cannot reach its stores at the start ends and says so.
    ids.extend(site.ingest(&url, &["first".to_owned()]).await);
    progress.reach(1).await;
    for cut in 0..cuts {
        let share = nodes / cuts;
        // Less than what the nodes of one request make the store answer.
        proxy.cut_after(plan.pick(0..if of_redis { 10_000 } else { 1_500 }));
        // The client is answered 503 when the cut hits its own request, and the nodes of that
        // request may have come in all the same.
        match site.try_ingest(&url, &texts[cut * share..(cut + 1) * share]).await {
            Ok(new) => ids.extend(new),
            Err(refused) => {
                assert!(refused.starts_with("503"), "{refused}");
                acknowledged_all = false;
            }
        }
        wait_until(DEADLINE, async || proxy.cut() > cut).await;
        let fault_gone = Instant::now();
        if let Some(recovery) = progress.recovery(fault_gone).await {
            row.recovered(recovery);
        }
    }
    println!("all requests acknowledged: {acknowledged_all}");
    // A cut makes a batch worthless at most: the one whose end was not heard of.
    let expected = Expected { ids: &ids, embedded_again: Some(cuts * 8), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_redis_cut_in_the_middle_of_a_reply_lose_nothing() {
    cuts("connections to Redis cut in the middle of a reply", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_postgres_cut_in_the_middle_of_a_reply_lose_nothing() {
    cuts("connections to Postgres cut in the middle of a reply", false).await;
}

async fn slow_replies(fault: &'static str, of_redis: bool) {
    let mut plan = Plan::new(fault).await;
    let mut row = Row::new(fault, Stores::Shared.name());
    let nodes = short_or_full(300, 1_200);
    let (mut site, proxy) = behind_a_proxy(of_redis).await;
    let (_, url) = site.start_all(BATCH_TIME).await;
    let ids = site.ingest(&url, &texts(nodes)).await;
    let progress = site.progress().await;
    progress.reach(plan.pick(8..nodes as u64 / 4)).await;
    proxy.delay(Duration::from_millis(plan.pick(200..400)));
    let slow_until = progress.ready().await.unwrap() + 40;
    progress.reach(slow_until).await;
    proxy.delay(Duration::ZERO);
    let recovery = progress.recovery(Instant::now()).await;
    row.recovered(recovery.expect("it was slow under load"));
    // Nobody was lost, so that nothing had to be done again.
    let expected = Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_redis_makes_nothing_happen_twice() {
    slow_replies("slow replies of Redis", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_postgres_makes_nothing_happen_twice() {
    slow_replies("slow replies of Postgres", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_vanishes_holds_nobody_for_ever() {
    if !is_full() {
        // It takes longer than the limit on an answer, 12 seconds, several times over.
        return;
    }
    let mut plan = Plan::new("Postgres vanishes without a word").await;
    let mut row = Row::new("Postgres vanishes without a word", Stores::Shared.name());
    let nodes = 600;
    let (mut site, proxy) = behind_a_proxy(false).await;
    let (_, url) = site.start_all(BATCH_TIME).await;
    let ids = site.ingest(&url, &texts(nodes)).await;
    let progress = site.progress().await;
    progress.reach(plan.pick(8..nodes as u64 / 4)).await;
    proxy.vanish();
    let vanished = Instant::now();
    let recovery = progress.recovery(vanished).await;
    // Every connection of both processes was lost, and none of them keeps its place.
    let mut refused = 0;
    wait_until(DEADLINE, async || {
        let answer = site.try_ingest(&url, &["after".to_owned()]).await;
        refused += usize::from(answer.is_err());
        answer.is_ok()
    })
    .await;
    println!("{refused} requests refused; ingest goes on after {:?}", vanished.elapsed());
    row.recovered(recovery.expect("it vanished under load"));
    let expected = Expected { ids: &ids, embedded_again: Some(64), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}
