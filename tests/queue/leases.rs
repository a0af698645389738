//! Leases: only their holder can end a job, and a lost one gives it back.

use uuid::Uuid;
use vecmill::queue::{DeadLetter, Lease};

use crate::support::{LEASE, TestQueue, claimed_nodes, held, jobs, nodes};

/// A worker that lost its job, and the job as another holds it now.
async fn stale_and_new(test: &TestQueue) -> (Lease, Lease, vecmill::domain::Job) {
    let enqueued = test.enqueue_one("acme").await;
    let (stale, _) = test.claim_one().await;
    test.expire_leases();
    assert_eq!(test.reclaim_expired().await, 1);
    let (new, job) = test.claim_one().await;
    assert_eq!(job.encode(), enqueued.encode());
    assert_ne!(stale, new);
    (stale, new, job)
}

/// The new holder's job, pending key and tenant count are as they were, and it can end it.
async fn the_new_holder_is_undisturbed(test: &TestQueue, new: Lease, job: vecmill::domain::Job) {
    assert_eq!(test.depths().await, [0, 1, 0, 0]);
    assert_eq!((test.pending(job.node_id), test.count("acme")), (job.job_id.clone(), "1".into()));
    assert_eq!(test.queue.ack(&[(new, job)]).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_ack_is_refused_and_counted() {
    let test = TestQueue::start().await;
    let (stale, new, job) = stale_and_new(&test).await;
    assert_eq!(test.queue.ack(&[(stale, job.clone())]).await.unwrap(), 1);
    the_new_holder_is_undisturbed(&test, new, job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_retry_is_refused_and_counted() {
    let test = TestQueue::start().await;
    let (stale, new, job) = stale_and_new(&test).await;
    assert_eq!(test.queue.retry(&[(stale, job.clone(), LEASE)]).await.unwrap(), 1);
    the_new_holder_is_undisturbed(&test, new, job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_dead_letter_is_refused_and_counted() {
    let test = TestQueue::start().await;
    let (stale, new, job) = stale_and_new(&test).await;
    let letter = DeadLetter::of_job(stale, &job, "too late", 1.0);
    assert_eq!(test.queue.dead_letter(&[letter], false).await.unwrap(), (1, 0));
    the_new_holder_is_undisturbed(&test, new, job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_hand_back_or_extension_does_nothing() {
    let test = TestQueue::start().await;
    let (stale, new, job) = stale_and_new(&test).await;
    assert_eq!(test.queue.hand_back(&[(stale.clone(), Some(job.node_id))]).await.unwrap(), 0);
    let lost = test.queue.extend(&[new.clone(), stale.clone()], LEASE).await.unwrap();
    assert_eq!(lost, std::slice::from_ref(&stale));
    test.queue.start(&[stale]).await.unwrap();
    assert_eq!(test.redis.cli(&["KEYS", "*started*"]), "");
    the_new_holder_is_undisturbed(&test, new, job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn among_many_only_the_stale_ones_are_refused() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("acme", 3)).await;
    let mut done: Vec<_> = test.claim(3).await.into_iter().map(held).collect();
    done[1].0 = Lease::from(Uuid::new_v4());
    assert_eq!(test.queue.ack(&done).await.unwrap(), 1);
    assert_eq!((test.depths().await, test.count("acme").as_str()), ([0, 1, 0, 0], "1"));
    assert_eq!(test.queue.ack(&done).await.unwrap(), 3, "an ack counts once");
    assert_eq!(test.count("acme"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_handed_back_keep_their_place_and_stay_live() {
    let test = TestQueue::start().await;
    let all = jobs("acme", 30);
    test.enqueue(&all).await;
    let claimed = test.claim(14).await;
    let leases: Vec<(Lease, Option<Uuid>)> =
        claimed.iter().map(|claimed| (claimed.lease.clone(), None)).collect();
    assert_eq!(test.queue.hand_back(&leases).await.unwrap(), 14);
    assert_eq!((test.depths().await, test.count("acme").as_str()), ([30, 0, 0, 0], "30"));
    assert_eq!(test.redis.cli(&["KEYS", "*leases*"]), "");
    let again = test.claim(30).await;
    assert_eq!(claimed_nodes(&again), nodes(&all));
    assert!(again.iter().all(|claimed| claimed.job.as_ref().unwrap().attempts == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_lease_does_not_expire() {
    let test = TestQueue::start().await;
    test.enqueue_one("acme").await;
    let (lease, job) = test.claim_one().await;
    assert!(test.queue.expired().await.unwrap().is_empty());
    test.expire_leases();
    assert_eq!(test.queue.expired().await.unwrap().len(), 1);
    assert!(test.queue.extend(std::slice::from_ref(&lease), LEASE).await.unwrap().is_empty());
    assert!(test.queue.expired().await.unwrap().is_empty());

    // Found expired, but extended before it could be taken away.
    assert_eq!(test.queue.reclaim(&[(lease.clone(), job.clone())]).await.unwrap(), 0);
    let letter = DeadLetter::of_job(lease.clone(), &job, "lost", 1.0);
    assert_eq!(test.queue.dead_letter(&[letter], true).await.unwrap(), (1, 0));
    assert_eq!(test.queue.ack(&[(lease, job)]).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_job_returns_to_its_place_unchanged() {
    let test = TestQueue::start().await;
    let all = jobs("acme", 30);
    test.enqueue(&all).await;
    let claimed = test.claim(14).await;
    test.expire_leases();
    assert_eq!(test.reclaim_expired().await, 14);
    assert_eq!((test.depths().await, test.count("acme").as_str()), ([30, 0, 0, 0], "30"));
    let again = test.claim(30).await;
    assert_eq!(claimed_nodes(&again), nodes(&all), "as if they had not been claimed");
    let unchanged: Vec<_> = again.iter().map(|claimed| claimed.job.clone().unwrap()).collect();
    assert_eq!(unchanged[..14], claimed.iter().map(|c| c.job.clone().unwrap()).collect::<Vec<_>>());
    for job in &all {
        assert_eq!(test.pending(job.node_id), job.job_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_known_whether_a_model_had_begun_on_a_lost_job() {
    let test = TestQueue::start().await;
    test.enqueue(&jobs("acme", 2)).await;
    let claimed = test.claim(2).await;
    test.queue.start(&[claimed[1].lease.clone()]).await.unwrap();
    test.expire_leases();
    let started = |expired: Vec<vecmill::queue::Expired>| -> Vec<bool> {
        expired.iter().map(|found| found.started).collect()
    };
    assert_eq!(started(test.queue.expired().await.unwrap()), [false, true]);
    test.reclaim_expired().await;
    assert_eq!(test.redis.cli(&["KEYS", "*started*"]), "");
    test.claim(2).await;
    test.expire_leases();
    assert_eq!(started(test.queue.expired().await.unwrap()), [false, false]);
}
