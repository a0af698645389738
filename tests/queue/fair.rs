//! The fair order: tenants take turns, new jobs are merged in, and each tenant's own order stays.

use vecmill::{domain::Job, queue::Claimed};

use crate::{
    common::wait_until,
    support::{DEADLINE, TestQueue, by_tenant, held, jobs, jobs_of, nodes, of_tenant},
};

/// Tenants of skewed sizes, as those of a real system are.
const WEIGHTS: [(&str, usize); 5] = [("a", 100), ("b", 60), ("c", 20), ("d", 3), ("e", 1)];

#[tokio::test(flavor = "multi_thread")]
async fn a_few_jobs_do_not_wait_behind_anothers_thousands() {
    let test = TestQueue::start().await;
    let (many, few) = (jobs("many", 2_000), jobs("few", 10));
    test.enqueue(&many).await;
    test.enqueue(&few).await;
    assert_eq!(test.depths().await[0], 2_010);

    let mut claimed = Vec::new();
    for taken in 1..=4 {
        claimed.extend(test.claim(8).await);
        assert_eq!(test.depths().await[..2], [2_010 - 8 * taken, 8 * taken]);
    }
    assert_eq!(of_tenant(&claimed, "few"), 10, "all of the few are among the first 32");

    claimed.extend(test.claim(3_000).await);
    let order = by_tenant(jobs_of(claimed));
    assert_eq!(order["many"], nodes(&many));
    assert_eq!(order["few"], nodes(&few));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_tenants_share_a_claim_equally() {
    let test = TestQueue::start().await;
    for i in 0..10 {
        test.enqueue(&jobs(&format!("t{i}"), 50)).await;
    }
    let claimed = test.claim(50).await;
    for i in 0..10 {
        assert_eq!(of_tenant(&claimed, &format!("t{i}")), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_come_after_arranging_are_merged_in() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("many", 2_000)).await;
    test.enqueue(&jobs("early", 1)).await;
    assert_eq!(of_tenant(&test.claim(10).await, "early"), 1);
    test.enqueue(&jobs("late", 5)).await;
    // Merging is done again after a pause.
    let (mut claimed, mut late) = (0, 0);
    wait_until(DEADLINE, async || {
        claimed += 1;
        late += of_tenant(&test.claim(1).await, "late");
        late == 5 || claimed == 1_000
    })
    .await;
    assert!(claimed < 60, "the late tenant waited for {claimed} claims");
}

/// Makes the next claim merge new jobs in (`merged`), or arrange all (`at`) where that is needed, as
/// it does after a pause.
pub fn pause_is_over(test: &TestQueue, of: &str) {
    test.redis.cli(&["HSET", "embedding:queue:fair", of, "0"]);
}

/// Claims so many after the pause between two merges.
pub async fn claim_merged(test: &TestQueue, wanted: usize) -> Vec<Claimed> {
    pause_is_over(test, "merged");
    test.claim(wanted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_inside_a_tenant_never_changes() {
    let test = TestQueue::start().await;
    let (mut enqueued, mut taken): (Vec<Job>, Vec<Job>) = (Vec::new(), Vec::new());
    // Periods without a common factor, so that each meets each.
    for round in 0..150 {
        if round < 75 {
            let share = |(tenant, most)| jobs(tenant, most * (round % 5) / 4);
            let new = WEIGHTS.map(share).concat();
            test.enqueue(&new).await;
            enqueued.extend(new);
        }
        pause_is_over(&test, "merged");
        if round % 13 == 0 {
            pause_is_over(&test, "at");
        }
        let claimed = test.claim([1, 300, 64][round % 3]).await;
        if round % 4 == 0 {
            let back = claimed.into_iter().map(held).map(|(lease, job)| (lease, Some(job.node_id)));
            let back: Vec<_> = back.collect();
            test.queue.hand_back(&back).await.unwrap();
        } else {
            taken.extend(jobs_of(claimed));
        }
    }
    taken.extend(jobs_of(test.claim(enqueued.len()).await));
    assert_eq!(taken.len(), enqueued.len());
    assert_eq!(by_tenant(taken), by_tenant(enqueued));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_tenant_takes_its_turns_before_a_deep_queue_is_arranged_again() {
    let test = TestQueue::start().await;
    test.enqueue(&[jobs("a", 2_000), jobs("b", 2_000), jobs("c", 700)].concat()).await;
    assert_eq!(test.claim(3).await.len(), 3);
    // More of a tenant that has jobs enough, and a few of a new one.
    test.enqueue(&[jobs("a", 300), jobs("late", 5)].concat()).await;
    let claimed = claim_merged(&test, 20).await;
    assert_eq!(of_tenant(&claimed, "late"), 5);
    // Each has as many turns as before.
    assert_eq!(["a", "b", "c"].map(|tenant| of_tenant(&claimed, tenant)), [5, 5, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_comes_back_takes_turns_again() {
    let test = TestQueue::start().await;
    test.enqueue(&[jobs("a", 2_000), jobs("t", 3)].concat()).await;
    assert_eq!(of_tenant(&test.claim(10).await, "t"), 3);
    test.enqueue(&jobs("t", 3)).await;
    assert_eq!(of_tenant(&claim_merged(&test, 10).await, "t"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_more_jobs_than_there_are_turns_near_does_not_wait_for_all_others() {
    let test = TestQueue::start().await;
    for tenant in 0..20 {
        test.enqueue(&jobs(&format!("many{tenant}"), 240)).await;
    }
    assert_eq!(test.claim(20).await.len(), 20);
    test.enqueue(&jobs("some", 50)).await;
    let (mut claimed, mut some) = (0, 0);
    while some < 50 {
        some += of_tenant(&claim_merged(&test, 64).await, "some");
        claimed += 64;
    }
    // Fifty turns of twenty-one tenants.
    assert!(claimed < 50 * 21 + 300, "the last came after {claimed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_later_jobs_wait_far_behind_gets_its_turns_back() {
    let test = TestQueue::start().await;
    // The turns of `b` reach beyond those into which new jobs are merged.
    test.enqueue(&[jobs("a", 3_000), jobs("b", 400)].concat()).await;
    assert_eq!(test.claim(2).await.len(), 2);
    test.enqueue(&jobs("b", 50)).await;
    assert_eq!(of_tenant(&claim_merged(&test, 798).await, "b"), 399);
    let (mut claimed, mut late) = (0, 0);
    wait_until(DEADLINE, async || {
        pause_is_over(&test, "at");
        late += of_tenant(&claim_merged(&test, 20).await, "b");
        claimed += 20;
        late == 50 || claimed > 3_000
    })
    .await;
    assert!(claimed < 500, "the last came after {claimed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tenants_go_on_taking_turns_in_a_queue_that_is_too_deep_to_arrange_whole() {
    let test = TestQueue::start().await;
    test.enqueue(&[jobs("a", 3_600), jobs("b", 500)].concat()).await;
    assert_eq!(test.claim(2).await.len(), 2);
    // Deeper step by step, with a tenant that runs out of turns: the oldest are arranged again.
    for _ in 0..2 {
        test.enqueue(&[jobs("a", 1_000), jobs("b", 100)].concat()).await;
        assert_eq!(claim_merged(&test, 490).await.len(), 490);
    }
    for _ in 0..3 {
        pause_is_over(&test, "at");
        assert_eq!(claim_merged(&test, 10).await.len(), 10);
    }
    assert!(test.depths().await[0] > 5_000);
    // The newest job, by which it is known what is in order, is gone.
    let newest = test.enqueue_one("a").await;
    assert_eq!(claim_merged(&test, 1).await.len(), 1);
    assert_eq!(test.queue.forget(newest.node_id, &newest.tenant_id).await.unwrap(), 1);
    test.enqueue(&jobs("late", 3)).await;
    assert_eq!(of_tenant(&claim_merged(&test, 20).await, "late"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_queue_leaves_no_books() {
    let test = TestQueue::start().await;
    test.enqueue(&[jobs("a", 3), jobs("b", 3)].concat()).await;
    assert_eq!(test.claim(4).await.len(), 4);
    assert_eq!(test.redis.cli(&["HGET", "embedding:queue:fair", "arranged"]), "2");
    assert_eq!(test.claim(4).await.len(), 2);
    assert_eq!(test.redis.cli(&["EXISTS", "embedding:queue:fair"]), "0");

    // Another program took the last.
    test.enqueue(&[jobs("a", 3), jobs("b", 3)].concat()).await;
    assert_eq!(test.claim(1).await.len(), 1);
    test.redis.cli(&["RPOP", "embedding:queue", "5"]);
    assert!(test.claim(1).await.is_empty());
    assert_eq!(test.redis.cli(&["EXISTS", "embedding:queue:fair"]), "0");
}
