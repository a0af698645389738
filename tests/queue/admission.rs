//! Reservations, publication and enqueueing.

use std::collections::{BTreeMap, HashMap};

use futures::future::join_all;
use vecmill::{
    domain::TenantId,
    queue::{Admission, Enqueued, Limits, Recount},
};

use crate::support::{LEASE, TestQueue, claimed_nodes, held, job, jobs, nodes, same_node, tenant};

async fn reserve(test: &TestQueue, of_tenant: &TenantId, n: u64, limits: Limits) -> Admission {
    test.queue.reserve(&BTreeMap::from([(of_tenant, n)]), limits).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_at_once_cannot_pass_the_depth_together() {
    let test = TestQueue::start().await;
    let limits = Limits { max_depth: 50, tenant_max_pending: 0 };
    // Jobs waiting, in flight and waiting for a retry count too.
    test.enqueue(&jobs("old", 9)).await;
    let claimed = test.claim(6).await;
    let mut claimed = claimed.into_iter().map(held);
    let (lease, failed) = claimed.next().unwrap();
    test.queue.retry(&[(lease, failed, LEASE)]).await.unwrap();
    assert_eq!(test.depths().await, [3, 5, 1, 0]);

    let tenants: Vec<TenantId> = (0..100).map(|i| tenant(&format!("t{}", i % 7))).collect();
    let answers = join_all(tenants.iter().map(|tenant| reserve(&test, tenant, 3, limits))).await;
    let admitted = answers.iter().filter(|a| matches!(a, Admission::Admitted(_))).count();
    let full = answers.iter().filter(|a| **a == Admission::QueueFull).count();
    assert_eq!((admitted, full), (13, 87), "9 + 13 · 3 = 48 of 50");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_at_once_cannot_pass_a_tenants_limit_together() {
    let test = TestQueue::start().await;
    let limits = Limits { max_depth: 1_000, tenant_max_pending: 20 };
    test.enqueue(&jobs("busy", 4)).await;
    let busy = tenant("busy");
    let answers = join_all((0..100).map(|_| reserve(&test, &busy, 1, limits))).await;
    let (admitted, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| matches!(answer, Admission::Admitted(_)));
    assert_eq!(admitted.len(), 16);
    assert!(refused.iter().all(|answer| *answer == Admission::TenantFull(busy.clone())));
    assert_eq!(test.count("busy"), "20");
    assert!(
        matches!(reserve(&test, &tenant("idle"), 20, limits).await, Admission::Admitted(_)),
        "another tenant has its own room"
    );
    let idle = tenant("idle");
    assert_eq!(reserve(&test, &idle, 1, limits).await, Admission::TenantFull(idle));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_leaves_nothing_behind() {
    let test = TestQueue::start().await;
    let (one, two) = (tenant("one"), tenant("two"));
    let wanted = BTreeMap::from([(&one, 1), (&two, 5)]);
    let tenant_full = Limits { max_depth: 1_000, tenant_max_pending: 4 };
    let answer = test.queue.reserve(&wanted, tenant_full).await.unwrap();
    assert_eq!(answer, Admission::TenantFull(two.clone()));
    let queue_full = Limits { max_depth: 5, tenant_max_pending: 0 };
    let answer = test.queue.reserve(&wanted, queue_full).await.unwrap();
    assert_eq!(answer, Admission::QueueFull);
    assert_eq!(test.redis.cli(&["KEYS", "*"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_uses_the_reservation_and_cancelling_gives_it_back() {
    let test = TestQueue::start().await;
    let acme = tenant("acme");
    let published = test.reserved(&acme, 2).await;
    let cancelled = test.reserved(&acme, 3).await;
    assert_eq!(test.count("acme"), "5");
    assert_eq!(test.depths().await, [0, 0, 0, 0], "nothing waits yet");

    let new = jobs("acme", 2);
    assert_eq!(test.queue.publish(&published, &new).await.unwrap(), 2);
    test.queue.cancel(&cancelled).await.unwrap();
    test.queue.cancel(&cancelled).await.unwrap();
    assert_eq!(test.count("acme"), "2", "a reservation counts once");
    assert_eq!(test.depths().await, [2, 0, 0, 0]);
    for job in &new {
        assert_eq!(test.pending(job.node_id), job.job_id);
    }

    let done: Vec<_> = test.claim(2).await.into_iter().map(held).collect();
    assert_eq!(test.queue.ack(&done).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_passes_over_a_node_that_has_a_live_job() {
    let test = TestQueue::start().await;
    let (live, new) = (test.enqueue_one("acme").await, job("acme"));
    let reservation = test.reserved(&tenant("acme"), 2).await;
    let again = same_node(&live);
    assert_eq!(test.queue.publish(&reservation, &[again, new]).await.unwrap(), 1);
    assert_eq!(test.depths().await, [2, 0, 0, 0]);
    assert_eq!(test.count("acme"), "2", "what was not put is not counted");
    assert_eq!(test.pending(live.node_id), live.job_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_was_never_published_gives_its_counts_back() {
    let test = TestQueue::start().await;
    let limits = Limits { max_depth: 10, tenant_max_pending: 10 };
    let (lost, other) = (tenant("lost"), tenant("other"));
    assert!(matches!(reserve(&test, &lost, 10, limits).await, Admission::Admitted(_)));
    assert_eq!(reserve(&test, &other, 1, limits).await, Admission::QueueFull);
    test.expire_reservations();
    assert!(matches!(reserve(&test, &other, 10, limits).await, Admission::Admitted(_)));
    assert_eq!((test.count("lost").as_str(), test.count("other").as_str()), ("", "10"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_too_gives_back_what_a_dead_process_reserved() {
    let test = TestQueue::start().await;
    test.reserved(&tenant("lost"), 10).await;
    let no_tenants = HashMap::new();
    let recount = || test.queue.recount(LEASE, &no_tenants);
    assert!(matches!(recount().await.unwrap(), Recount::Done { tenant_counts: 0, .. }));
    assert_eq!(test.count("lost"), "10", "it may still be published");
    test.expire_reservations();
    assert!(matches!(recount().await.unwrap(), Recount::Done { .. }));
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_ran_out_can_still_be_published() {
    let test = TestQueue::start().await;
    let (slow, other) = (tenant("slow"), tenant("other"));
    let reservation = test.reserved(&slow, 2).await;
    test.expire_reservations();
    test.reserved(&other, 1).await;
    assert_eq!(test.count("slow"), "");
    let new = jobs("slow", 2);
    assert_eq!(test.queue.publish(&reservation, &new).await.unwrap(), 2);
    assert_eq!(test.count("slow"), "2");
    // Published once more, as after an answer that was lost.
    assert_eq!(test.queue.publish(&reservation, &new).await.unwrap(), 0);
    assert_eq!((test.count("slow").as_str(), test.depths().await[0]), ("2", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueueing_answers_new_live_and_full_in_order() {
    let test = TestQueue::start().await;
    let live = test.enqueue_one("acme").await;
    let again = same_node(&live);
    let (fits, rival) = (job("acme"), job("other"));
    let fits_again = same_node(&fits);
    let batch = [again.clone(), fits.clone(), fits_again, job("acme"), rival, job("other")];

    let limits = Limits { max_depth: 3, tenant_max_pending: 2 };
    let answers = test.queue.enqueue(&batch, Some(limits)).await.unwrap();
    let expected = [
        Enqueued::Live(live.job_id.clone()),
        Enqueued::New,
        Enqueued::Live(fits.job_id.clone()),
        Enqueued::TenantFull,
        Enqueued::New,
        Enqueued::QueueFull,
    ];
    assert_eq!(answers, expected);
    assert_eq!((test.count("acme").as_str(), test.count("other").as_str()), ("2", "1"));
    assert_eq!(test.depths().await, [3, 0, 0, 0]);

    // Live means waiting, in flight, and waiting for a retry.
    let claimed = test.claim(1).await.remove(0);
    let (lease, claimed) = held(claimed);
    assert_eq!(claimed.node_id, live.node_id);
    let is_live = || async {
        let answer = test.queue.enqueue(std::slice::from_ref(&again), None).await.unwrap();
        answer == [Enqueued::Live(live.job_id.clone())]
    };
    assert!(is_live().await);
    test.queue.retry(&[(lease, claimed, LEASE)]).await.unwrap();
    assert!(is_live().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueueing_leaves_room_for_what_is_reserved() {
    let test = TestQueue::start().await;
    let limits = Limits { max_depth: 5, tenant_max_pending: 0 };
    reserve(&test, &tenant("acme"), 4, limits).await;
    let answers = test.queue.enqueue(&jobs("other", 3), Some(limits)).await.unwrap();
    assert_eq!(answers, [Enqueued::New, Enqueued::QueueFull, Enqueued::QueueFull]);
    assert!(test.queue.enqueue(&jobs("other", 3), None).await.unwrap().contains(&Enqueued::New));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_are_enqueued_in_order() {
    let test = TestQueue::start().await;
    let many = jobs("acme", 2_500);
    test.enqueue(&many).await;
    assert_eq!((test.depths().await[0], test.count("acme").as_str()), (2_500, "2500"));
    let claimed = test.claim(2_500).await;
    assert_eq!(claimed_nodes(&claimed), nodes(&many));
}
