//! The clock of Redis is set back: whatever waits for a time ends as it would have.

use std::time::Duration;

use vecmill::queue::Lock;

use super::support::*;
use crate::common::{TestRedis, wait_until};

const SHORT: Duration = Duration::from_secs(2);
/// In seconds.
const SET_BACK: i64 = -600;

/// One that notes the time, as the timers of every worker do.
async fn noted() -> TestQueue {
    let test = TestQueue::on(TestRedis::start_with_clock(), &[]).await;
    test.enqueue(&jobs("acme", 3)).await;
    test
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_retries_end_although_the_clock_was_set_back() {
    let test = noted().await;
    let mut claimed = test.queue.claim(2, SHORT, None).await.unwrap().into_iter().map(held);
    let (_lost, failed) = (claimed.next().unwrap(), claimed.next().unwrap());
    test.queue.retry(&[(failed.0, failed.1, SHORT)]).await.unwrap();
    let tenant = tenant("acme");
    test.reserved(&tenant, 5).await;
    let sweep = test.queue.lock(Lock::Sweep, SHORT).await.unwrap();
    assert!(sweep.is_some());
    test.queue.promote_due().await.unwrap();
    let reserved = score(&test, "embedding:queue:reservations");

    test.redis.shift_clock(SET_BACK);
    // Whatever looks first: here one that counts, and no timer.
    test.queue.enqueue(&jobs("acme", 1), None).await.unwrap();
    let moved = reserved - score(&test, "embedding:queue:reservations");
    assert!((570_000.0..600_001.0).contains(&moved), "a reservation moved by {moved} ms");
    wait_until(DEADLINE, async || test.reclaim_expired().await == 1).await;
    wait_until(DEADLINE, async || test.queue.promote_due().await.unwrap().0 == 1).await;
    wait_until(DEADLINE, async || test.queue.lock(Lock::Sweep, SHORT).await.unwrap().is_some())
        .await;

    // What comes after the step is not moved again.
    let late = test.queue.claim(1, LEASE, None).await.unwrap();
    assert_eq!(late.len(), 1);
    test.queue.promote_due().await.unwrap();
    assert_eq!(test.reclaim_expired().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_after_the_step_sees_it_too() {
    let test = noted().await;
    // Lost so soon that no timer ran.
    test.queue.claim(3, SHORT, None).await.unwrap();
    // Nobody is there while the clock is set back.
    let redis = test.redis;
    drop(test.queue);
    redis.shift_clock(SET_BACK);
    let test = TestQueue::on(redis, &[]).await;
    let others = TestQueue::queue_on(&test.redis).await;
    let mut reclaimed = 0;
    wait_until(DEADLINE, async || {
        let (_, _) = tokio::join!(test.queue.expired(), others.expired());
        reclaimed += test.reclaim_expired().await;
        reclaimed == 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_runs_and_one_that_is_set_right_again_move_nothing() {
    let test = noted().await;
    test.queue.claim(3, LEASE, None).await.unwrap();
    test.queue.promote_due().await.unwrap();
    let deadline = score(&test, "embedding:queue:leases");
    for shift in [1, 0, 1] {
        // A step of a second is one that time servers make.
        test.redis.shift_clock(shift);
        test.queue.promote_due().await.unwrap();
        assert_eq!(score(&test, "embedding:queue:leases"), deadline);
    }
    test.redis.shift_clock(SET_BACK);
    test.queue.promote_due().await.unwrap();
    let moved = score(&test, "embedding:queue:leases");
    test.redis.shift_clock(0);
    test.queue.promote_due().await.unwrap();
    assert_eq!(score(&test, "embedding:queue:leases"), moved);
    wait_until(DEADLINE, async || test.reclaim_expired().await == 3).await;
}

/// The lowest score of a sorted set.
fn score(test: &TestQueue, key: &str) -> f64 {
    test.lines(&["ZRANGE", key, "0", "0", "WITHSCORES"])[1].parse().unwrap()
}
