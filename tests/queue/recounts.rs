//! Recounts: keys and counts that are wrong are mended from the jobs that are there.

use std::{collections::HashMap, time::Duration};

use uuid::Uuid;
use vecmill::queue::{Lock, Recount};

use crate::{
    common::wait_until,
    support::{DEADLINE, LEASE, TestQueue, held, job, jobs},
};

const ORPHAN_AFTER: Duration = Duration::from_secs(600);

/// How many tenant counts, pending keys, leases and orphans a recount mended.
async fn recount(test: &TestQueue, tenants: &[(Uuid, &str)]) -> [u64; 4] {
    recount_after(test, tenants, ORPHAN_AFTER).await
}

async fn recount_after(test: &TestQueue, tenants: &[(Uuid, &str)], orphan: Duration) -> [u64; 4] {
    let tenants: HashMap<String, String> =
        tenants.iter().map(|(node, tenant)| (node.to_string(), (*tenant).to_owned())).collect();
    match test.queue.recount(orphan, &tenants).await.unwrap() {
        Recount::Done { tenant_counts, pending_keys, leases, given_up, .. } => {
            [tenant_counts, pending_keys, leases, given_up]
        }
        other => panic!("{other:?}"),
    }
}

fn count_key(tenant: &str) -> String {
    format!("embedding:tenant:pending:{tenant}")
}

/// A job in each of the structures: waiting, in flight, waiting for a retry.
async fn everywhere(test: &TestQueue, tenant: &str) {
    test.enqueue(&jobs(tenant, 3)).await;
    let mut claimed = test.claim(2).await.into_iter().map(held);
    let (lease, failed) = claimed.next().unwrap();
    test.queue.retry(&[(lease, failed, LEASE)]).await.unwrap();
    assert_eq!(test.depths().await[..3], [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_right_is_left_alone() {
    let test = TestQueue::start().await;
    everywhere(&test, "größe 1").await;
    assert_eq!(recount(&test, &[]).await, [0, 0, 0, 0]);
    assert_eq!(test.count("größe 1"), "3");
    assert_eq!(test.depths().await[..3], [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenant_counts_become_what_is_really_there() {
    let test = TestQueue::start().await;
    for wrong in ["17", "-4", "nonsense"] {
        test.redis.cli(&["SET", &count_key("gone"), wrong]);
        assert_eq!(recount(&test, &[]).await, [1, 0, 0, 0], "{wrong}");
        assert_eq!(test.count("gone"), "");
    }
    everywhere(&test, "acme").await;
    for wrong in ["1", "99", "-1", "0", "nonsense"] {
        test.redis.cli(&["SET", &count_key("acme"), wrong]);
        assert_eq!(recount(&test, &[]).await, [1, 0, 0, 0], "{wrong}");
        assert_eq!(test.count("acme"), "3");
    }
    test.redis.cli(&["DEL", &count_key("acme")]);
    assert_eq!(recount(&test, &[]).await, [1, 0, 0, 0]);
    assert_eq!(test.count("acme"), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_consumers_zero_is_removed() {
    let test = TestQueue::start().await;
    let entry = job("acme").encode();
    test.push(&entry);
    test.redis.cli(&["INCRBY", &count_key("acme"), "1"]);
    test.redis.cli(&["BRPOP", "embedding:queue", "1"]);
    test.redis.cli(&["DECRBY", &count_key("acme"), "1"]);
    recount(&test, &[]).await;
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_jobs_get_the_pending_keys_that_they_lack() {
    let test = TestQueue::start().await;
    everywhere(&test, "acme").await;
    let keys = test.lines(&["KEYS", "embedding:pending:*"]);
    let before: Vec<String> = keys.iter().map(|key| test.redis.cli(&["GET", key])).collect();
    for key in &keys {
        test.redis.cli(&["DEL", key]);
    }
    assert_eq!(recount(&test, &[]).await, [0, 3, 0, 0]);
    let after: Vec<String> = keys.iter().map(|key| test.redis.cli(&["GET", key])).collect();
    assert_eq!(after, before, "each names the job that is live");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_jobs_pending_key_does_not_expire_before_the_job_ends() {
    let test = TestQueue::start().await;
    let foreign = job("acme");
    let key = format!("embedding:pending:{}", foreign.node_id);
    test.redis.cli(&["SET", &key, "1", "NX", "EX", "3600"]);
    test.push(&foreign.encode());
    test.redis.cli(&["INCRBY", &count_key("acme"), "1"]);
    test.redis.cli(&["EXPIRE", &count_key("acme"), "3600"]);
    assert_eq!(recount(&test, &[]).await, [0, 0, 0, 0]);
    assert_eq!(test.redis.cli(&["TTL", &key]), "-1");
    assert_eq!(test.pending(foreign.node_id), "1");
    let done = test.claim_one().await;
    assert_eq!(test.queue.ack(&[done]).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_flight_without_a_lease_is_found_by_the_next_reclaim() {
    let test = TestQueue::start().await;
    let lost = test.enqueue_one("acme").await;
    test.claim_one().await;
    test.redis.cli(&["DEL", "embedding:queue:leases"]);
    assert!(test.queue.expired().await.unwrap().is_empty());
    assert_eq!(recount(&test, &[]).await, [0, 0, 1, 0]);
    assert_eq!(test.reclaim_expired().await, 1);
    assert_eq!(test.claim_one().await.1.encode(), lost.encode());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_without_a_job_is_dropped() {
    let test = TestQueue::start().await;
    test.enqueue_one("acme").await;
    test.claim_one().await;
    test.redis.cli(&["DEL", "embedding:queue:inflight"]);
    test.expire_leases();
    assert!(test.queue.expired().await.unwrap().is_empty());
    assert_eq!(test.redis.cli(&["KEYS", "*leases*"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_key_without_a_job_is_left_to_a_foreign_consumer_for_a_while() {
    let test = TestQueue::start().await;
    let foreign = job("acme");
    test.enqueue(std::slice::from_ref(&foreign)).await;
    test.redis.cli(&["BRPOP", "embedding:queue", "1"]);
    let node = foreign.node_id;

    // The tenant is asked for, and nothing is changed before it is known.
    test.redis.cli(&["SET", &count_key("other"), "5"]);
    let asked = test.queue.recount(ORPHAN_AFTER, &HashMap::new()).await.unwrap();
    assert_eq!(asked, Recount::Ask(vec![node.to_string()]));
    assert_eq!((test.count("acme").as_str(), test.count("other").as_str()), ("1", "5"));

    assert_eq!(recount(&test, &[(node, "acme")]).await, [1, 0, 0, 0]);
    assert_eq!((test.count("acme").as_str(), test.count("other").as_str()), ("1", ""));
    assert_eq!(test.pending(node), foreign.job_id, "younger than the age of an orphan");

    // Older than that age it is given up, and so is its count.
    let first_seen = test.redis.cli(&["ZSCORE", "embedding:queue:orphans", &node.to_string()]);
    let long_ago = (first_seen.parse::<f64>().unwrap() - 600_000.0).to_string();
    test.redis.cli(&["ZADD", "embedding:queue:orphans", &long_ago, &node.to_string()]);
    assert_eq!(recount(&test, &[(node, "acme")]).await, [1, 0, 0, 1]);
    test.assert_at_rest().await;
    assert_eq!(test.redis.cli(&["KEYS", "*orphans*"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_that_gets_a_job_again_starts_its_age_anew() {
    let test = TestQueue::start().await;
    let foreign = test.enqueue_one("acme").await;
    let take = || test.redis.cli(&["RPOP", "embedding:queue"]);
    let known = [(foreign.node_id, "acme")];
    take();
    recount(&test, &known).await;
    test.redis.cli(&["ZADD", "embedding:queue:orphans", "1", &foreign.node_id.to_string()]);
    // A foreign worker that retries puts its job back.
    test.push(&foreign.encode());
    assert_eq!(recount(&test, &[]).await, [0, 0, 0, 0]);
    take();
    assert_eq!(recount(&test, &known).await, [0, 0, 0, 0]);
    assert_eq!(test.pending(foreign.node_id), foreign.job_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_of_no_known_node_counts_for_nobody() {
    let test = TestQueue::start().await;
    let node = Uuid::new_v4();
    test.redis.cli(&["SET", &format!("embedding:pending:{node}"), "1"]);
    assert_eq!(recount(&test, &[(node, "")]).await, [0, 0, 0, 0]);
    assert_eq!(test.redis.cli(&["KEYS", "embedding:tenant:*"]), "");
    wait_until(DEADLINE, async || {
        recount_after(&test, &[(node, "")], Duration::from_millis(1)).await[3] == 1
    })
    .await;
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_unknown_shape_are_counted_as_far_as_they_can_be() {
    let test = TestQueue::start().await;
    test.push("no json");
    test.push("[1, 2]");
    test.push(r#"{"tenant_id":"acme"}"#);
    let node = Uuid::new_v4();
    test.push(&format!(r#"{{"node_id":"{node}","tenant_id":null}}"#));
    assert_eq!(recount(&test, &[]).await, [1, 1, 0, 0]);
    assert_eq!((test.count("default").as_str(), test.pending(node).as_str()), ("1", "1"));
    assert_eq!(test.depths().await[0], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_too_deep_is_left_alone() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("acme", 20_001)).await;
    test.redis.cli(&["SET", &count_key("acme"), "7"]);
    let deep = test.queue.recount(ORPHAN_AFTER, &HashMap::new()).await.unwrap();
    assert_eq!(deep, Recount::TooDeep);
    test.claim(1).await.into_iter().map(held).for_each(drop);
    assert_eq!(test.queue.recount(ORPHAN_AFTER, &HashMap::new()).await.unwrap(), Recount::TooDeep);
    let done: Vec<_> = test.claim(1).await.into_iter().map(held).collect();
    test.queue.ack(&done).await.unwrap();
    assert_eq!(recount(&test, &[]).await[0], 1);
    assert_eq!(test.count("acme"), "20000");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_sweeps_at_a_time() {
    let test = TestQueue::start().await;
    let lock = test.queue.lock(Lock::Sweep, LEASE).await.unwrap().unwrap();
    assert_eq!(test.queue.lock(Lock::Sweep, LEASE).await.unwrap(), None);
    test.queue.unlock(Lock::Sweep, "another's").await.unwrap();
    assert_eq!(
        test.queue.lock(Lock::Sweep, LEASE).await.unwrap(),
        None,
        "it is not theirs to give back"
    );
    test.queue.unlock(Lock::Sweep, &lock).await.unwrap();

    let short = Duration::from_millis(100);
    let dead = test.queue.lock(Lock::Sweep, short).await.unwrap().unwrap();
    let mut next = None;
    wait_until(DEADLINE, async || {
        next = test.queue.lock(Lock::Sweep, LEASE).await.unwrap();
        next.is_some()
    })
    .await;
    test.queue.unlock(Lock::Sweep, &dead).await.unwrap();
    assert_eq!(
        test.queue.lock(Lock::Sweep, LEASE).await.unwrap(),
        None,
        "a late unlock harms nobody"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_live_job_are_told_apart() {
    let test = TestQueue::start().await;
    let live = test.enqueue_one("acme").await.node_id;
    let (lost, other) = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(test.queue.without_job(&[lost, live, other]).await.unwrap(), [lost, other]);
    assert!(test.queue.without_job(&[]).await.unwrap().is_empty());
}
