//! Nodes that get another text, or are deleted, wherever their jobs are.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;
use vecmill::{
    domain::{Action, Job},
    queue::{DeadLetter, Lease, Recount},
};

use crate::support::{LEASE, TestQueue, held, job, nodes, same_node, tenant};

impl TestQueue {
    /// Room is reserved and the text of the node of `job` changes; the id of the job that will
    /// see it.
    async fn change(&self, job: &Job) -> String {
        let reservation = self.reserved(&job.tenant_id, 1).await;
        self.queue.change(&reservation, job).await.unwrap()
    }

    async fn forget(&self, job: &Job) -> u64 {
        self.queue.forget(job.node_id, &job.tenant_id).await.unwrap()
    }

    /// The job is live under its id, and is the only one of tenant `acme`.
    fn assert_live(&self, job: &Job) {
        assert_eq!(self.pending(job.node_id), job.job_id);
        assert_eq!(self.count("acme"), "1");
    }

    /// The job is the only one in the queue; a worker does it, and nothing is left.
    async fn assert_runs(&self, job: &Job) {
        self.assert_live(job);
        assert_eq!(self.depths().await[..3], [1, 0, 0]);
        let (lease, claimed) = self.claim_one().await;
        assert_eq!((&claimed.job_id, claimed.attempts), (&job.job_id, 0));
        assert_eq!(self.queue.ack(&[(lease, claimed)]).await.unwrap(), 0);
        self.assert_at_rest().await;
    }

    /// One job of tenant `acme` is in the hands of a worker.
    async fn in_flight(&self) -> (Lease, Job) {
        self.enqueue_one("acme").await;
        self.claim_one().await
    }
}

/// The entry of a job that mentions a node which it is not for.
fn entry_that_mentions(node: Uuid, job: &Job) -> String {
    let mut entry: Value = serde_json::from_str(&job.encode()).unwrap();
    entry["parent"] = serde_json::json!({ "node_id": node });
    entry.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_text_of_a_node_without_a_job_gets_one() {
    let test = TestQueue::start().await;
    let new = job("acme");
    assert_eq!(test.change(&new).await, new.job_id);
    test.assert_runs(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_in_the_queue_gives_its_place_to_that_of_the_new_text() {
    let test = TestQueue::start().await;
    let old = test.enqueue_one("acme").await;
    let new = same_node(&old);
    assert_eq!(test.change(&new).await, new.job_id);
    test.assert_live(&old);
    assert_eq!(test.depths().await[..3], [1, 0, 0], "nothing waits twice");
    let (lease, claimed) = test.claim_one().await;
    assert_eq!(claimed.encode(), new.encode());
    test.assert_live(&new);
    assert_eq!(test.queue.ack(&[(lease, claimed)]).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_text_does_not_wait_for_the_retry_of_an_older_one() {
    let test = TestQueue::start().await;
    let (lease, mut failed) = test.in_flight().await;
    failed.attempts = 4;
    test.queue.retry(&[(lease, failed.clone(), LEASE)]).await.unwrap();
    let new = same_node(&failed);
    assert_eq!(test.change(&new).await, new.job_id);
    test.assert_runs(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_ends_the_job_of_an_older_text_puts_the_newer_in_its_place() {
    for ending in ["ack", "retry", "dead letter"] {
        let test = TestQueue::start().await;
        let (lease, old) = test.in_flight().await;
        let (first, new) = (same_node(&old), same_node(&old));
        assert_eq!(test.change(&first).await, first.job_id);
        assert_eq!(test.change(&new).await, new.job_id, "the newest is the one that counts");
        assert_eq!(test.depths().await, [0, 1, 0, 0]);
        test.assert_live(&old);

        let stale = match ending {
            "ack" => test.queue.ack(&[(lease, old)]).await.unwrap(),
            "retry" => test.queue.retry(&[(lease, old, LEASE)]).await.unwrap(),
            _ => {
                let letter = DeadLetter::of_job(lease, &old, "it fails", 1.0);
                test.queue.dead_letter(&[letter], false).await.unwrap().0
            }
        };
        assert_eq!(stale, 0, "{ending}");
        assert_eq!(test.depths().await[3], 0, "{ending}: the newer text speaks for the node");
        test.assert_runs(&new).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_comes_back_gives_way_to_that_of_the_newer_text() {
    for reclaimed in [false, true] {
        let test = TestQueue::start().await;
        let (lease, old) = test.in_flight().await;
        let new = same_node(&old);
        test.change(&new).await;
        if reclaimed {
            test.expire_leases();
            assert_eq!(test.reclaim_expired().await, 1);
        } else {
            let held = (lease.clone(), Some(old.node_id));
            assert_eq!(test.queue.hand_back(&[held]).await.unwrap(), 1);
        }
        // A holder whose lease was lost ends nothing.
        assert_eq!(test.queue.ack(&[(lease, old)]).await.unwrap(), 1);
        test.assert_runs(&new).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_text_does_not_inherit_the_failures_of_the_older_one() {
    let test = TestQueue::start().await;
    let others = crate::support::jobs("acme", 2);
    test.enqueue(&others[..1]).await;
    let mut failed = job("acme");
    (failed.attempts, failed.lost) = (4, 2);
    test.enqueue(&[failed.clone(), others[1].clone()]).await;
    let new = same_node(&failed);
    assert_eq!(test.change(&new).await, new.job_id);
    let claimed: Vec<Job> = test.claim(3).await.into_iter().map(|c| held(c).1).collect();
    let expected = [others[0].clone(), new.clone(), others[1].clone()];
    assert!(claimed.iter().map(Job::encode).eq(expected.iter().map(Job::encode)), "in its place");
    assert_eq!(test.pending(new.node_id), new.job_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_ran_out_is_not_counted_back_twice() {
    let test = TestQueue::start().await;
    let (_lease, old) = test.in_flight().await;
    let reservation = test.reserved(&tenant("acme"), 1).await;
    test.expire_reservations();
    // A look at the depth gives its room back.
    test.enqueue_one("other").await;
    assert_eq!(test.count("acme"), "1");
    test.queue.change(&reservation, &same_node(&old)).await.unwrap();
    assert_eq!(test.count("acme"), "1", "in flight");
    let without_job = job("acme");
    test.queue.change(&reservation, &without_job).await.unwrap();
    assert_eq!(test.count("acme"), "2", "a new job is counted all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_whose_job_is_gone_is_forgotten_by_the_recount() {
    let test = TestQueue::start().await;
    let (_lease, old) = test.in_flight().await;
    test.change(&same_node(&old)).await;
    test.redis.cli(&["DEL", "embedding:queue:inflight", "embedding:queue:leases"]);
    test.redis.cli(&["DEL", &format!("embedding:pending:{}", old.node_id)]);
    let recount = test.queue.recount(LEASE, &Default::default()).await.unwrap();
    assert!(matches!(recount, Recount::Done { tenant_counts: 1, .. }), "{recount:?}");
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_only_mention_a_node_are_not_its_jobs() {
    let test = TestQueue::start().await;
    let node = test.enqueue_one("acme").await;
    let others = [job("other"), job("other"), job("other")];
    let mentions = others.each_ref().map(|other| entry_that_mentions(node.node_id, other));
    test.redis.cli(&["RPUSH", "embedding:queue", &mentions[0]]);
    let in_flight = test.claim(1).await.remove(0);
    assert_eq!(in_flight.entry, mentions[0].as_bytes());
    test.redis.cli(&["ZADD", "embedding:retry", "9999999999", &mentions[1]]);
    test.push(&mentions[2]);

    test.change(&same_node(&node)).await;
    assert_eq!(test.depths().await, [2, 1, 1, 0]);
    assert_eq!(test.forget(&node).await, 1);
    assert_eq!(test.depths().await, [1, 1, 1, 0]);
    assert_eq!(test.redis.cli(&["LINDEX", "embedding:queue", "0"]), mentions[2]);
    assert_eq!((test.pending(node.node_id), test.count("acme")), (String::new(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_node_that_is_gone_end_where_they_wait() {
    let test = TestQueue::start().await;
    let all: Vec<Job> = (0..5).map(|_| job("acme")).collect();
    test.enqueue(&all).await;
    let mut claimed = test.claim(2).await.into_iter().map(held);
    let (lease, retried) = claimed.next().unwrap();
    test.queue.retry(&[(lease, retried.clone(), LEASE)]).await.unwrap();
    let (lease, in_flight) = claimed.next().unwrap();
    let queued = all[3].clone();
    test.change(&same_node(&in_flight)).await;

    assert_eq!(test.forget(&queued).await, 1);
    assert_eq!((test.depths().await, test.count("acme").as_str()), ([2, 1, 1, 0], "4"));
    assert_eq!(test.forget(&retried).await, 1);
    assert_eq!((test.depths().await, test.count("acme").as_str()), ([2, 1, 0, 0], "3"));
    assert_eq!(test.forget(&in_flight).await, 0, "its holder ends it");
    assert_eq!((test.depths().await, test.count("acme").as_str()), ([2, 1, 0, 0], "3"));
    assert_eq!(test.pending(in_flight.node_id), in_flight.job_id);
    assert_eq!(test.forget(&job("acme")).await, 0, "it never had a job");
    for gone in [&queued, &retried] {
        assert_eq!(test.pending(gone.node_id), "");
        assert_eq!(test.forget(gone).await, 0);
    }

    // What its newer text was to get went with it.
    assert_eq!(test.queue.ack(&[(lease, in_flight)]).await.unwrap(), 0);
    let left: Vec<_> = test.claim(10).await.into_iter().map(held).collect();
    let left_nodes: Vec<_> = left.iter().map(|(_, job)| job.node_id).collect();
    assert_eq!(left_nodes, nodes(&[all[2].clone(), all[4].clone()]), "the others, in their order");
    assert_eq!(test.queue.ack(&left).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_another_program_enqueued_twice_is_forgotten_whole() {
    let test = TestQueue::start().await;
    let twice = test.enqueue_one("acme").await;
    test.push(&twice.encode());
    test.push(&Job::new(twice.node_id, tenant("acme"), Action::Refresh, 1.0).encode());
    let other = test.enqueue_one("acme").await;
    assert_eq!(test.forget(&twice).await, 3);
    assert_eq!(test.depths().await, [1, 0, 0, 0]);
    // The two were never counted; the recount puts right what they took off.
    test.queue.recount(Duration::ZERO, &Default::default()).await.unwrap();
    test.assert_runs(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_nodes_that_are_gone_are_ended_however_deep_they_wait() {
    let test = TestQueue::start().await;
    let (deep, new) = (crate::support::jobs("acme", 5), crate::support::jobs("other", 30_000));
    test.enqueue(&deep).await;
    for jobs in new.chunks(5_000) {
        test.enqueue(jobs).await;
    }
    let gone = &deep[2];
    assert_eq!(test.forget(gone).await, 0, "it is found when it is claimed");
    // A node that is enqueued again has an ordinary job.
    let changed = same_node(&deep[3]);
    test.change(&changed).await;
    let mut claimed = Vec::new();
    while claimed.len() < 4 {
        let new = test.claim(10).await.into_iter().map(held);
        claimed.extend(new.filter(|(_, job)| job.tenant_id.as_str() == "acme"));
    }
    let claimed_ids: Vec<_> = claimed.iter().map(|(_, job)| job.job_id.as_str()).collect();
    let expected = [&deep[0], &deep[1], &changed, &deep[4]].map(|job| job.job_id.as_str());
    assert_eq!(claimed_ids, expected);
    assert_eq!((test.pending(gone.node_id).as_str(), test.count("acme").as_str()), ("", "4"));
    assert_eq!(test.redis.cli(&["EXISTS", "embedding:queue:changed"]), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_ends_with_its_holder_whatever_that_does() {
    for ending in ["ack", "hand back", "reclaim"] {
        let test = TestQueue::start().await;
        let (lease, job) = test.in_flight().await;
        assert_eq!(test.forget(&job).await, 0);
        match ending {
            "ack" => drop(test.queue.ack(&[(lease, job.clone())]).await.unwrap()),
            "hand back" => {
                let held = (lease, Some(job.node_id));
                assert_eq!(test.queue.hand_back(&[held]).await.unwrap(), 1);
                assert!(test.claim(1).await.is_empty(), "{ending}");
            }
            _ => {
                test.expire_leases();
                assert_eq!(test.reclaim_expired().await, 1);
                assert!(test.claim(1).await.is_empty(), "{ending}");
            }
        }
        test.assert_at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_found_among_many_also_one_of_another_program() {
    let test = TestQueue::start().await;
    let all = crate::support::jobs("acme", 4_000);
    test.enqueue(&all).await;
    let claimed: Vec<_> = test.claim(4_000).await.into_iter().map(held).collect();
    let failed: Vec<_> =
        claimed.iter().map(|(lease, job)| (lease.clone(), job.clone(), LEASE)).collect();
    for failed in failed.chunks(1_000) {
        test.queue.retry(failed).await.unwrap();
    }
    let new = same_node(&all[2_000]);
    assert_eq!(test.change(&new).await, new.job_id);
    assert_eq!(test.depths().await[..3], [1, 0, 3_999]);
    assert_eq!(test.forget(&all[3_000]).await, 1);
    assert_eq!(test.depths().await[2], 3_998);
    assert_eq!(test.redis.cli(&["HLEN", "embedding:queue:retrying"]), "3998");
    // One that was removed by hand leaves a note, until that is looked at.
    let entry = test.redis.cli(&["HGET", "embedding:queue:retrying", &all[7].node_id.to_string()]);
    test.redis.cli(&["ZREM", "embedding:retry", &entry]);
    test.queue.tidy().await.unwrap();
    assert_eq!(test.redis.cli(&["HLEN", "embedding:queue:retrying"]), "3997");
}
