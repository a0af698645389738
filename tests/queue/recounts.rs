//! Recounts: keys and counts that are wrong are mended from the jobs that are there.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use uuid::Uuid;
use vecmill::queue::{Counted, Lock, Recount, Structure};

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

/// What the steps of a long recount mended: pending keys, leases and tenant counts; all nodes seen.
async fn in_steps(test: &TestQueue, tenants: &[(&str, u64)]) -> ([u64; 3], HashSet<Uuid>) {
    let (mut keys, mut leases, mut nodes) = (0, 0, HashSet::new());
    for structure in [Structure::Retry, Structure::Queue, Structure::InFlight] {
        let mut cursor: Option<String> = None;
        loop {
            let passed = test.queue.pass(structure, cursor.as_deref()).await.unwrap();
            assert!(passed.nodes.len() <= 1_100, "a step is small");
            keys += passed.pending_keys;
            leases += passed.leases;
            nodes.extend(passed.nodes);
            cursor = passed.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    let tenants: Vec<(String, u64)> =
        tenants.iter().map(|(tenant, foreign)| ((*tenant).to_owned(), *foreign)).collect();
    match test.queue.recount_tenants(&tenants).await.unwrap() {
        Counted::Done { mended, mistyped } => {
            assert_eq!(mistyped.len(), 0);
            ([keys, leases, mended], nodes)
        }
        Counted::Unknown => panic!("the jobs are known"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_queue_is_recounted_in_steps() {
    let test = TestQueue::start().await;
    let all = [jobs("acme", 20_000), jobs("other", 3_000)].concat();
    for jobs in all.chunks(1_500) {
        test.enqueue(jobs).await;
        // Whoever claims has read what is new.
        crate::fair::claim_merged(&test, 1).await;
    }
    let claimed: Vec<_> = test.claim(40).await.into_iter().map(held).collect();
    for (lease, job) in &claimed[..20] {
        test.queue.retry(&[(lease.clone(), job.clone(), LEASE)]).await.unwrap();
    }
    test.enqueue(&jobs("new", 10)).await;
    let deep = test.queue.recount(ORPHAN_AFTER, &HashMap::new()).await.unwrap();
    assert_eq!(deep, Recount::TooDeep);
    let tenants = [("acme", 0), ("other", 0), ("gone", 0), ("new", 0)];
    assert_eq!(in_steps(&test, &tenants).await.0, [0, 0, 0], "what is right is left alone");

    test.redis.cli(&["SET", &count_key("acme"), "7"]);
    test.redis.cli(&["DEL", &count_key("other")]);
    test.redis.cli(&["SET", &count_key("gone"), "3"]);
    for lost in [&all[5_000], &all[22_999]] {
        test.redis.cli(&["DEL", &format!("embedding:pending:{}", lost.node_id)]);
    }
    let expiring = format!("embedding:pending:{}", all[10_000].node_id);
    test.redis.cli(&["EXPIRE", &expiring, "3600"]);
    test.redis.cli(&["DEL", "embedding:queue:leases"]);
    let in_flight = test.redis.cli(&["HLEN", "embedding:queue:inflight"]).parse().unwrap();
    let (mended, nodes) = in_steps(&test, &tenants).await;
    assert_eq!(mended, [2, in_flight, 3]);
    assert_eq!(["acme", "other", "gone"].map(|t| test.count(t)), ["20000", "3000", ""]);
    assert_eq!(nodes.len(), 23_010, "all were seen");
    assert_eq!(test.pending(all[5_000].node_id), all[5_000].job_id);
    assert_eq!(test.redis.cli(&["TTL", &expiring]), "-1");
    // A job with a foreign consumer counts too.
    assert_eq!(in_steps(&test, &[("acme", 2)]).await.0, [0, 0, 1]);
    assert_eq!(test.count("acme"), "20002");
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_left_alone_while_jobs_are_not_known() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("acme", 6_000)).await;
    let acme = [("acme".to_owned(), 0)];
    assert_eq!(test.queue.recount_tenants(&acme).await.unwrap(), Counted::Unknown, "no books");
    for _ in 0..3 {
        crate::fair::claim_merged(&test, 1).await;
    }
    let done = Counted::Done { mended: 0, mistyped: Vec::new() };
    assert_eq!(test.queue.recount_tenants(&acme).await.unwrap(), done);
    test.redis.cli(&["RPOP", "embedding:queue", "3"]);
    crate::fair::claim_merged(&test, 1).await;
    assert_eq!(test.queue.recount_tenants(&acme).await.unwrap(), Counted::Unknown, "others took");
    assert_eq!(test.count("acme"), "6000");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_without_a_job_are_given_up_at_any_depth() {
    let test = TestQueue::start().await;
    let live = test.enqueue_one("acme").await.node_id;
    let orphans: Vec<Uuid> = (0..1_200).map(|_| Uuid::new_v4()).collect();
    for orphan in &orphans {
        test.redis.cli(&["SET", &format!("embedding:pending:{orphan}"), "1"]);
    }
    let mut keys = HashSet::new();
    let mut pages = test.queue.pending_pages();
    while let Some(page) = test.queue.next_page(&mut pages).await.unwrap() {
        keys.extend(page);
    }
    assert_eq!(keys.len(), 1_201);
    let marked = [&orphans[..], &[live, Uuid::new_v4()]].concat();
    test.queue.mark_orphans(&marked).await.unwrap();
    // A job that was missed once is seen the next time.
    in_steps(&test, &[]).await;
    let (given_up, left) = test.queue.give_up_orphans(ORPHAN_AFTER, 10_000).await.unwrap();
    assert_eq!((given_up, left.len()), (0, 1_200));
    let (given_up, left) = test.queue.give_up_orphans(Duration::ZERO, 10_000).await.unwrap();
    assert_eq!((given_up, left.len()), (1_200, 0));
    assert_eq!(test.lines(&["KEYS", "embedding:pending:*"]), [format!("embedding:pending:{live}")]);
    assert_eq!(test.redis.cli(&["KEYS", "*orphans*"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_held_on_is_kept() {
    let test = TestQueue::start().await;
    let short = Duration::from_millis(200);
    let lock = test.queue.lock(Lock::Sweep, short).await.unwrap().unwrap();
    assert!(test.queue.hold(Lock::Sweep, &lock, LEASE).await.unwrap());
    let left: i64 = test.redis.cli(&["PTTL", "embedding:queue:sweep-lock"]).parse().unwrap();
    assert!(left > 1_000, "{left}");
    assert!(!test.queue.hold(Lock::Sweep, "another's", LEASE).await.unwrap());
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
