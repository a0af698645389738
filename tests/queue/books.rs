//! The books of the fair order: whatever they say, no job is lost, none waits for ever, and they do
//! not grow.

use std::collections::HashMap;

use vecmill::{domain::Job, queue::TenantLimits};

use crate::{
    fair::{claim_merged, pause_is_over},
    support::{LEASE, TestQueue, by_tenant, jobs, jobs_of, of_tenant, tenant},
};

const BOOKS: &str = "embedding:queue:fair";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_tenant_is_seen_though_another_program_took_jobs() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("a", 3_000)).await;
    assert_eq!(test.claim(1).await.len(), 1);
    test.redis.cli(&["RPOP", "embedding:queue", "20"]);
    test.enqueue(&jobs("t", 5)).await;
    assert_eq!(of_tenant(&claim_merged(&test, 20).await, "t"), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_another_program_emptied_is_arranged_anew() {
    let test = TestQueue::start().await;
    test.enqueue(&[jobs("a", 2_990), jobs("b", 10)].concat()).await;
    assert_eq!(test.claim(4).await.len(), 4);
    test.redis.cli(&["RPOP", "embedding:queue", "3000"]);
    test.enqueue(&[jobs("a", 2_500), jobs("t", 10)].concat()).await;
    pause_is_over(&test, "at");
    assert_eq!(of_tenant(&claim_merged(&test, 40).await, "t"), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_tenant_survives_that_a_job_is_forgotten() {
    let test = TestQueue::start().await;
    let jobs_of_t = jobs("t", 700);
    let (early, late) = jobs_of_t.split_at(600);
    test.enqueue(early).await;
    assert_eq!(test.claim(1).await.len(), 1);
    for gone in &early[10..30] {
        assert_eq!(test.queue.forget(gone.node_id, &tenant("t")).await.unwrap(), 1);
    }
    let mut taken: Vec<Job> = Vec::new();
    for new in late.chunks(20) {
        test.enqueue(new).await;
        test.enqueue(&jobs("other", 3)).await;
        taken.extend(jobs_of(claim_merged(&test, 5).await));
    }
    taken.extend(jobs_of(claim_merged(&test, 1_000).await));
    let expected = [&early[1..10], &early[30..], late].concat();
    assert_eq!(by_tenant(taken)["t"], by_tenant(expected)["t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_tenant_survives_limits() {
    let test = TestQueue::start().await;
    let limits = TenantLimits { default: 100, of_tenants: HashMap::from([(tenant("a"), 0)]) };
    let jobs_of_t = jobs("t", 200);
    test.enqueue(&jobs("a", 1_000)).await;
    assert_eq!(test.claim(1).await.len(), 1);
    let mut taken: Vec<Job> = Vec::new();
    for new in jobs_of_t.chunks(10) {
        test.enqueue(new).await;
        let claimed = test.queue.claim(4, LEASE, Some(&limits)).await.unwrap();
        taken.extend(jobs_of(claimed));
        pause_is_over(&test, "merged");
    }
    taken.extend(jobs_of(claim_merged(&test, 2_000).await));
    assert_eq!(by_tenant(taken)["t"], by_tenant(jobs_of_t)["t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_behind_those_of_a_tenant_at_its_limit_are_found() {
    let test = TestQueue::start().await;
    let limits = TenantLimits { default: 1_000, of_tenants: HashMap::from([(tenant("a"), 0)]) };
    test.enqueue(&jobs("a", 4_500)).await;
    assert_eq!(test.claim(1).await.len(), 1);
    test.enqueue(&jobs("t", 700)).await;
    let mut found = 0;
    for _ in 0..5 {
        pause_is_over(&test, "merged");
        found += test.queue.claim(500, LEASE, Some(&limits)).await.unwrap().len();
    }
    assert_eq!(found, 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn books_that_make_no_sense_hold_nothing_up() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("a", 3_000)).await;
    assert_eq!(test.claim(1).await.len(), 1);
    let hour_to_come = "4102444800000";
    for (field, junk) in [
        ("arranged", "1.5"),
        ("arranged", "1e300"),
        ("arranged", "nan"),
        ("arranged", "-7"),
        ("arranged", "many"),
        ("of a", "0.5"),
        ("of t", "inf"),
        ("edge", "no entry"),
        ("edge", ""),
        ("at", hour_to_come),
    ] {
        test.redis.cli(&["HSET", BOOKS, field, junk, "merged", hour_to_come]);
        test.enqueue(&jobs("t", 2)).await;
        let (mut claimed, mut found) = (0, 0);
        while found < 2 && claimed < 200 {
            found += of_tenant(&test.claim(10).await, "t");
            claimed += 10;
            pause_is_over(&test, "at");
        }
        assert!(claimed < 200, "{field} = {junk}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_in_the_place_of_the_books_stays() {
    let test = TestQueue::start().await;
    test.redis.cli(&["SET", BOOKS, "theirs"]);
    test.enqueue(&[jobs("a", 3_000), jobs("t", 5)].concat()).await;
    assert_eq!(of_tenant(&test.claim(20).await, "t"), 5);
    assert_eq!(test.redis.cli(&["GET", BOOKS]), "theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_are_gone_leave_nothing_in_the_books() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("a", 1_000)).await;
    for visitor in 0..100 {
        test.enqueue(&jobs(&format!("visitor{visitor}"), 1)).await;
        assert_eq!(claim_merged(&test, 2).await.len(), 2);
    }
    let fields: usize = test.redis.cli(&["HLEN", BOOKS]).parse().unwrap();
    assert!(fields < 10, "{fields}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tenants_take_turns_too() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("a", 1_500)).await;
    for number in 0..400 {
        test.enqueue(&jobs(&format!("t{number}"), 2)).await;
    }
    pause_is_over(&test, "at");
    let claimed = [claim_merged(&test, 401).await, test.claim(401).await].concat();
    assert_eq!(of_tenant(&claimed, "a"), 2);
    test.enqueue(&jobs("late", 1)).await;
    pause_is_over(&test, "at");
    assert_eq!(of_tenant(&claim_merged(&test, 10).await, "late"), 1);
}
