//! Claims: order, limits, waiting, and entries that are no jobs.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use uuid::Uuid;
use vecmill::queue::{DeadLetter, TenantLimits};

use crate::{
    common::wait_until,
    support::{
        DEADLINE, LEASE, TestQueue, by_tenant, claimed_nodes, held, job, jobs, jobs_of, nodes,
        of_tenant, tenant,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_jobs_are_claimed_first_in_first_out() {
    let test = TestQueue::start().await;
    let first = jobs("acme", 40);
    test.enqueue(&first).await;
    let mut claimed = claimed_nodes(&test.claim(7).await);
    let later = jobs("acme", 10);
    test.enqueue(&later).await;
    loop {
        let next = test.claim(7).await;
        if next.is_empty() {
            break;
        }
        claimed.extend(claimed_nodes(&next));
    }
    assert_eq!(claimed, [nodes(&first), nodes(&later)].concat());
    assert!(test.claim(0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_entry_is_claimed_twice() {
    let test = TestQueue::start().await;
    test.enqueue(&[jobs("a", 300), jobs("b", 300)].concat()).await;
    let claims = futures::future::join_all((0..100).map(|_| test.claim(7))).await;
    let claimed: Vec<Uuid> = claims.iter().flat_map(|claim| claimed_nodes(claim)).collect();
    assert_eq!(claimed.len(), 600);
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_at_its_limit_is_passed_over_and_keeps_its_order() {
    let test = TestQueue::start().await;
    let (capped, paused, free) = (jobs("capped", 200), jobs("paused", 30), jobs("free", 20));
    test.enqueue(&[capped.clone(), paused.clone(), free.clone()].concat()).await;
    let limits = |capped, paused| TenantLimits {
        default: 100,
        of_tenants: HashMap::from([(tenant("capped"), capped), (tenant("paused"), paused)]),
    };
    let claimed = test.queue.claim(16, LEASE, Some(&limits(3, 0))).await.unwrap();
    let share = |of: &str| of_tenant(&claimed, of);
    assert_eq!((share("capped"), share("paused"), share("free")), (3, 0, 13));
    assert_eq!(test.depths().await[..2], [234, 16]);

    // All others are at their limit: the claim brings less than wanted, and loses nothing.
    let rest = test.queue.claim(100, LEASE, Some(&limits(2, 0))).await.unwrap();
    assert_eq!((of_tenant(&rest, "capped"), rest.len()), (2, 9));
    assert!(test.queue.claim(100, LEASE, Some(&limits(0, 0))).await.unwrap().is_empty());
    assert_eq!(test.depths().await[..2], [225, 25]);

    let all = [claimed, rest, test.claim(1_000).await].concat();
    let order = by_tenant(jobs_of(all));
    assert_eq!(order["capped"], nodes(&capped));
    assert_eq!(order["paused"], nodes(&paused));
    assert_eq!(order["free"], nodes(&free));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_limit_holds_for_tenants_not_named() {
    let test = TestQueue::start().await;
    test.enqueue(&[jobs("a", 50), jobs("b", 50)].concat()).await;
    let limits = TenantLimits { default: 4, of_tenants: HashMap::new() };
    let claimed = test.queue.claim(20, LEASE, Some(&limits)).await.unwrap();
    assert_eq!((of_tenant(&claimed, "a"), of_tenant(&claimed, "b")), (4, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_no_jobs_become_dead_letters_with_nothing_lost() {
    let test = TestQueue::start().await;
    let good = test.enqueue_one("acme").await;
    let no_node = r#"{"job_id":"x","tenant_id":"acme","trace":"größe"}"#;
    let not_json = "not json: {\"n\": 1e400";
    test.push(no_node);
    test.push(not_json);
    // Bytes that are no text.
    let push = "return redis.call('LPUSH', KEYS[1], '\\255\\0\\254\"')";
    test.redis.cli(&["EVAL", push, "1", "embedding:queue"]);
    assert_eq!(test.depths().await[0], 4);

    let claimed = test.claim(10).await;
    let mut letters = Vec::new();
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let mut done = Vec::new();
    for claimed in claimed {
        match &claimed.job {
            Ok(_) => done.push(held(claimed)),
            Err(reason) => {
                let reason = reason.to_string();
                entries.push(claimed.entry.clone());
                letters.push(DeadLetter::of_entry(claimed.lease, &claimed.entry, &reason, 17.5));
            }
        }
    }
    let expected: [&[u8]; 3] = [no_node.as_bytes(), not_json.as_bytes(), b"\xff\0\xfe\""];
    entries.sort_by_key(|entry| expected.iter().position(|other| other == entry));
    assert_eq!(entries, expected);
    assert_eq!(done[0].1.node_id, good.node_id, "the others are not harmed");

    assert_eq!(test.queue.dead_letter(&letters, false).await.unwrap(), (0, 0));
    let mut buried: Vec<Value> = test
        .lines(&["LRANGE", "embedding:dlq", "0", "-1"])
        .iter()
        .map(|letter| serde_json::from_str(letter).unwrap())
        .collect();
    buried.sort_by_key(Value::to_string);
    let missing = "field node_id is missing or invalid";
    let mut expected = [
        json!({"raw": no_node, "error": missing, "failed_at": 17.5}),
        json!({"raw": not_json, "error": "not a JSON object", "failed_at": 17.5}),
        json!({"raw_base64": "/wD+Ig==", "error": "not a JSON object", "failed_at": 17.5}),
    ];
    expected.sort_by_key(Value::to_string);
    assert_eq!(buried, expected);

    assert_eq!(test.queue.ack(&done).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_a_foreign_push_and_takes_nothing() {
    let test = TestQueue::start().await;
    let entry = job("acme").encode();
    let (waited, ()) = tokio::join!(
        async {
            let start = Instant::now();
            test.queue.wait_for_job(DEADLINE).await.unwrap();
            start.elapsed()
        },
        async {
            wait_until(DEADLINE, async || {
                test.redis.cli(&["INFO", "clients"]).contains("blocked_clients:1")
            })
            .await;
            test.push(&entry);
        }
    );
    assert!(waited < DEADLINE / 2, "{waited:?}");
    // A queue with jobs makes nobody wait, and keeps its order.
    let newer = job("acme").encode();
    test.push(&newer);
    test.queue.wait_for_job(DEADLINE).await.unwrap();
    assert_eq!(test.lines(&["LRANGE", "embedding:queue", "0", "-1"]), [newer, entry]);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_by_itself_and_delays_nobody() {
    let test = TestQueue::start().await;
    let start = Instant::now();
    let ((), depths) = tokio::join!(
        async { test.queue.wait_for_job(Duration::from_millis(700)).await.unwrap() },
        async {
            let depths = test.depths().await;
            assert!(start.elapsed() < Duration::from_millis(600));
            depths
        }
    );
    assert!(start.elapsed() >= Duration::from_millis(600));
    assert_eq!(depths, [0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_age_is_that_of_the_oldest_job_waiting() {
    let test = TestQueue::start().await;
    assert_eq!(test.queue.depths().await.unwrap().oldest_enqueued_at, None);
    let mut newer = job("acme");
    newer.enqueued_at = newer.enqueued_at.map(|at| at + 60.0);
    let older = job("acme");
    test.enqueue(&[newer, older.clone()]).await;
    let age = test.queue.depths().await.unwrap().oldest_enqueued_at;
    assert_eq!(age, older.enqueued_at);
}
