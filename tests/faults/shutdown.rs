//! Processes that are asked to stop while they work.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    checker::{Expected, check},
    faulty::HANG,
    plan::{Plan, Row, short_or_full},
    proxy::behind_a_proxy,
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::{send_signal, wait_until};

const BATCH_TIME: Duration = Duration::from_millis(15);
const GRACE: Duration = Duration::from_secs(2);
/// How much longer a busy machine may take.
const BUSY: Duration = Duration::from_secs(3);
/// Texts of a batch, which may be on its way when a process ends.
const BATCH: usize = 8;

async fn sigterm_under_load_loses_nothing_and_wastes_nothing(stores: Stores) {
    let mut plan = Plan::new("SIGTERM under load").await;
    let (nodes, stops) = short_or_full((600, 3), (3_000, 20));
    let mut row = Row::new(format!("SIGTERM under load, {stops} in a drain"), stores.name());
    // What a process leaves must have been handed back: no lease runs out in the time of a test.
    let settings =
        [("EMBEDDING_LEASE_SECONDS", "600"), ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "600")];
    let mut site = Site::new(stores, &settings).await;
    let (mut worker, url) = site.start_all(BATCH_TIME).await;
    let ids = site.ingest(&url, &texts(nodes)).await;
    let progress = site.progress().await;
    let share = nodes as u64 / (stops + 1);
    for stop in 0..stops {
        progress.reach(stop * share + plan.pick(1..share)).await;
        let asked = Instant::now();
        site.program(worker).signal("TERM");
        assert_eq!(site.program(worker).exit_code(DEADLINE).await, Some(0));
        let ready = progress.ready().await.unwrap();
        println!("exit 0 after {:?}, {ready} of {nodes} ready", asked.elapsed());
        if stores == Stores::Shared {
            assert_eq!(site.redis("HLEN embedding:queue:inflight"), "0");
            let waiting: u64 = site.redis("LLEN embedding:queue").parse().unwrap();
            assert_eq!(waiting + ready, nodes as u64, "all that is not done waits");
        }
        let started = Instant::now();
        worker = site.start_worker(BATCH_TIME);
        row.recovered(progress.recovery(started).await.expect("stopped at work"));
    }
    let expected = Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serve_that_is_stopped_loses_nothing_and_wastes_nothing() {
    sigterm_under_load_loses_nothing_and_wastes_nothing(Stores::Private).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stopped_loses_nothing_and_wastes_nothing() {
    sigterm_under_load_loses_nothing_and_wastes_nothing(Stores::Shared).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_embeds_nothing_twice() {
    let _plan = Plan::new("rolling restart of two workers").await;
    let rounds = short_or_full(3, 10);
    let fault = format!("rolling restart of 2 workers, {rounds} times");
    let mut row = Row::new(fault, Stores::Shared.name());
    let settings =
        [("EMBEDDING_LEASE_SECONDS", "600"), ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "600")];
    let mut site = Site::new(Stores::Shared, &settings).await;
    let api = site.start("api");
    let url = site.url(api).await;
    let mut workers = [site.start_worker(BATCH_TIME), site.start_worker(BATCH_TIME)];
    let (mut ids, progress) = (Vec::new(), site.progress().await);
    for round in 0..rounds {
        for worker in &mut workers {
            let new: Vec<String> = (0..200).map(|i| format!("round{round} {worker} {i}")).collect();
            ids.extend(site.ingest(&url, &new).await);
            let before = progress.ready().await.unwrap();
            progress.reach(before + 20).await;
            site.program(*worker).signal("TERM");
            assert_eq!(site.program(*worker).exit_code(DEADLINE).await, Some(0));
            *worker = site.start_worker(BATCH_TIME);
        }
    }
    let expected = Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

/// A worker whose model has a batch that will not end; the node is removed at the end.
async fn hanging() -> (Site, usize, Vec<String>) {
    // Nothing but the hand-back may bring the work back.
    let settings =
        [("EMBEDDING_LEASE_SECONDS", "600"), ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "600")];
    let mut site = Site::new(Stores::Shared, &settings).await;
    let api = site.start("api");
    let url = site.url(api).await;
    let seconds = GRACE.as_secs().to_string();
    let grace = [("VECMILL_SHUTDOWN_GRACE", seconds.as_str())];
    let worker = site.start_faulty("worker", Duration::ZERO, &grace);
    let mut texts = texts(30);
    texts.push(HANG.to_owned());
    let ids = site.ingest(&url, &texts).await;
    // The model has begun on the text that hangs, and all batches before it are done.
    let seen = AtomicBool::new(false);
    wait_until(DEADLINE, async || {
        let in_flight = site.redis("HLEN embedding:queue:inflight");
        let waiting = site.redis("LLEN embedding:queue");
        let begun = site.redis("SCARD embedding:queue:started");
        let hangs = waiting == "0" && begun != "0" && in_flight != "0";
        // Twice in a row: what is only on its way has moved on by then.
        hangs && seen.swap(hangs, Ordering::Relaxed)
    })
    .await;
    (site, worker, ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_within_the_grace_is_handed_back() {
    let _plan = Plan::new("SIGTERM with a batch longer than the grace").await;
    let mut row = Row::new("SIGTERM, batch longer than the grace", Stores::Shared.name());
    let (mut site, worker, ids) = hanging().await;
    let asked = Instant::now();
    site.program(worker).signal("TERM");
    assert_eq!(site.program(worker).exit_code(DEADLINE).await, Some(0));
    let took = asked.elapsed();
    println!("exit 0 after {took:?} of a grace of {GRACE:?}");
    assert!(took <= GRACE + BUSY, "{took:?}");
    assert_eq!(site.redis("HLEN embedding:queue:inflight"), "0", "handed back");
    assert_ne!(site.redis("LLEN embedding:queue"), "0");
    // The program itself has no text that hangs.
    site.start("worker");
    let expected = Expected { ids: &ids, embedded_again: Some(BATCH), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_at_once_and_loses_nothing() {
    let _plan = Plan::new("a second SIGTERM").await;
    let mut row = Row::new("a second SIGTERM", Stores::Shared.name());
    let (mut site, worker, ids) = hanging().await;
    let in_flight = site.redis("HLEN embedding:queue:inflight");
    site.program(worker).signal("TERM");
    wait_until(DEADLINE, async || {
        // Until the first is heard; the process is gone when the second is.
        site.program(worker).signal("TERM");
        !site.program(worker).is_running()
    })
    .await;
    assert_ne!(site.program(worker).exit_code(DEADLINE).await, Some(0));
    assert_ne!(in_flight, "0");
    // Its leases run out; they do not have to be waited for.
    let leases = site.redis("ZRANGE embedding:queue:leases 0 -1");
    for lease in leases.lines() {
        site.redis(&format!("ZADD embedding:queue:leases XX 1 {lease}"));
    }
    site.start("worker");
    let expected = Expected { ids: &ids, embedded_again: Some(BATCH), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_progress_are_answered_before_the_end() {
    let _plan = Plan::new("SIGTERM of the API under load").await;
    let mut row = Row::new("SIGTERM of the API, requests in progress", Stores::Shared.name());
    let (mut site, proxy) = behind_a_proxy(false).await;
    let api = site.start("api");
    let url = site.url(api).await;
    let mut ids = site.ingest(&url, &texts(200)).await;
    let (first, second) = (texts(50), texts(150));
    let pid = site.program(api).id();
    // What a request has begun on cannot end before the signal has come.
    proxy.silence(true);
    let signal = async {
        let inside = || site.redis("ZCARD embedding:queue:reservations");
        wait_until(DEADLINE, async || inside() == "2").await;
        assert!(send_signal("TERM", pid));
        // It takes no further requests; so it has heard the signal.
        wait_until(DEADLINE, async || {
            let answer = site.http().get(format!("{url}/health")).send().await;
            answer.is_err_and(|error| error.is_connect())
        })
        .await;
        assert_eq!(inside(), "2", "both are still in progress");
        proxy.silence(false);
    };
    let (first, second, ()) =
        tokio::join!(site.try_ingest(&url, &first), site.try_ingest(&url, &second), signal);
    ids.extend(first.expect("a 202"));
    ids.extend(second.expect("a 202"));
    assert_eq!(site.program(api).exit_code(DEADLINE).await, Some(0));
    assert_eq!(ids.len(), 400);
    site.start("worker");
    let expected = Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}
