//! Retries and dead letters.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use uuid::Uuid;
use vecmill::queue::DeadLetter;

use crate::{
    common::wait_until,
    support::{DEADLINE, LEASE, TestQueue, held, jobs},
};

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_waits_under_its_time_and_then_returns() {
    let test = TestQueue::start().await;
    test.enqueue_one("acme").await;
    let (lease, mut job) = test.claim_one().await;
    job.attempts = 1;
    let delay = Duration::from_secs(40);
    let run_at = unix_now() + delay.as_secs_f64();
    assert_eq!(test.queue.retry(&[(lease, job.clone(), delay)]).await.unwrap(), 0);
    assert_eq!(test.depths().await, [0, 0, 1, 0]);
    let retry = test.lines(&["ZRANGE", "embedding:retry", "0", "-1", "WITHSCORES"]);
    assert_eq!(retry[0], job.encode(), "the member is the job itself");
    let score: f64 = retry[1].parse().unwrap();
    assert!((score - run_at).abs() < 5.0, "the score is in Unix seconds: {score}");
    assert_eq!((test.pending(job.node_id), test.count("acme")), (job.job_id.clone(), "1".into()));

    let (moved, next) = test.queue.promote_due().await.unwrap();
    assert_eq!(moved, 0, "not before its time");
    assert!(next.unwrap() <= delay && next.unwrap() > delay / 2, "{next:?}");

    test.redis.cli(&["ZADD", "embedding:retry", &(unix_now() - 1.0).to_string(), &job.encode()]);
    assert_eq!(test.queue.promote_due().await.unwrap(), (1, None));
    let (lease, again) = test.claim_one().await;
    assert_eq!(again.attempts, 1);
    assert_eq!(test.queue.ack(&[(lease, again)]).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_that_are_due_return_in_the_order_of_their_times() {
    let test = TestQueue::start().await;
    // Put there by another, with scores of whole seconds.
    let all = jobs("acme", 700);
    for (i, job) in all.iter().enumerate() {
        test.redis.cli(&["ZADD", "embedding:retry", &(1_000 + i).to_string(), &job.encode()]);
    }
    let mut moved = 0;
    wait_until(DEADLINE, async || {
        moved += test.queue.promote_due().await.unwrap().0;
        moved == 700
    })
    .await;
    let claimed = test.claim(700).await;
    assert_eq!(crate::support::claimed_nodes(&claimed), crate::support::nodes(&all));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_becomes_due_by_itself() {
    let test = TestQueue::start().await;
    test.enqueue_one("acme").await;
    let (lease, job) = test.claim_one().await;
    let delay = Duration::from_millis(150);
    test.queue.retry(&[(lease, job, delay)]).await.unwrap();
    wait_until(DEADLINE, async || test.queue.promote_due().await.unwrap().0 == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_we_do_not_know_come_through_a_retry_and_a_dead_letter() {
    let test = TestQueue::start().await;
    let node = Uuid::new_v4();
    let extra = r#""trace":{"ids":[],"none":{},"big":9007199254740993,"f":1.0},"größe":"\u0000""#;
    let entry = format!(r#"{{"node_id":"{node}","tenant_id":null,{extra}}}"#);
    let trace = r#"{"ids":[],"none":{},"big":9007199254740993,"f":1.0}"#;
    test.push(&entry);
    let (lease, mut job) = test.claim_one().await;
    assert_eq!(job.tenant_id.as_str(), "default");
    job.attempts += 1;
    test.queue.retry(&[(lease, job, Duration::ZERO)]).await.unwrap();
    wait_until(DEADLINE, async || test.queue.promote_due().await.unwrap().0 == 1).await;

    let claimed = test.claim(1).await.remove(0);
    let seen: Value = serde_json::from_slice(&claimed.entry).unwrap();
    assert_eq!(seen["trace"].to_string(), trace);
    assert_eq!((seen["größe"].as_str(), &seen["attempts"]), (Some("\0"), &Value::from(1)));

    let (lease, job) = held(claimed);
    let letter = DeadLetter::of_job(lease, &job, "it fails", 99.5);
    assert_eq!(test.queue.dead_letter(&[letter], false).await.unwrap(), (0, 0));
    let seen: Value =
        serde_json::from_str(&test.redis.cli(&["LINDEX", "embedding:dlq", "0"])).unwrap();
    assert_eq!(seen["trace"].to_string(), trace);
    assert_eq!((&seen["error"], &seen["failed_at"]), (&"it fails".into(), &99.5.into()));
    assert_eq!(seen["node_id"], node.to_string());
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_beyond_the_maximum_are_evicted_and_counted() {
    let test = TestQueue::with(&[("EMBEDDING_DLQ_MAX", "4")]).await;
    let mut evicted = Vec::new();
    for round in 0..3 {
        test.enqueue(&jobs("acme", 3)).await;
        let claimed = test.claim(3).await.into_iter().map(held);
        let letters: Vec<DeadLetter> = claimed
            .map(|(lease, job)| DeadLetter::of_job(lease, &job, &format!("round {round}"), 1.0))
            .collect();
        let (stale, gone) = test.queue.dead_letter(&letters, false).await.unwrap();
        assert_eq!(stale, 0);
        evicted.push(gone);
    }
    assert_eq!(evicted, [0, 2, 3]);
    let kept: Vec<Value> = test
        .lines(&["LRANGE", "embedding:dlq", "0", "-1"])
        .iter()
        .map(|letter| serde_json::from_str::<Value>(letter).unwrap()["error"].take())
        .collect();
    assert_eq!(kept, ["round 2", "round 2", "round 2", "round 1"], "newest on the left");
    test.assert_at_rest().await;
    // The list may be deleted at any time.
    test.redis.cli(&["DEL", "embedding:dlq"]);
    test.enqueue_one("acme").await;
    let (lease, job) = test.claim_one().await;
    let letter = DeadLetter::of_job(lease, &job, "again", 1.0);
    assert_eq!(test.queue.dead_letter(&[letter], false).await.unwrap(), (0, 0));
    assert_eq!(test.depths().await, [0, 0, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_job_is_buried_only_while_its_lease_is_expired() {
    let test = TestQueue::start().await;
    test.enqueue_one("acme").await;
    let (lease, job) = test.claim_one().await;
    test.expire_leases();
    let letter = DeadLetter::of_job(lease.clone(), &job, "worker lost", 1.0);
    assert!(test.queue.extend(std::slice::from_ref(&lease), LEASE).await.unwrap().is_empty());
    let bury = || test.queue.dead_letter(std::slice::from_ref(&letter), true);
    assert_eq!(bury().await.unwrap(), (1, 0));
    assert_eq!(test.depths().await, [0, 1, 0, 0]);
    test.expire_leases();
    assert_eq!(bury().await.unwrap(), (0, 0));
    assert_eq!(test.depths().await, [0, 0, 0, 1]);
    test.assert_at_rest().await;
}
