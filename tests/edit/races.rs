//! A text that changes while a job of its node is somewhere else.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use vecmill::{
    config::Settings,
    domain::Job,
    inference::EmbedError,
    queue::{Lease, Queue},
    store::{BeginJob, Store, Vector, text_hash},
};

use super::{DEADLINE, Gate, OpensAtEnd, Site, assert_ready, node_with, patch, text};
use crate::common::{faulty_model, hash_model, ids_of, vector_of, wait_until};

const LONG_RETRIES: [(&str, &str); 2] =
    [("EMBEDDING_RETRY_BASE_SECONDS", "1000"), ("EMBEDDING_RETRY_MAX_SECONDS", "1000")];

#[tokio::test(flavor = "multi_thread")]
async fn a_new_text_does_not_wait_for_the_retry_of_an_older_one() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let model = faulty_model(|batch| match batch.iter().any(|t| t.ids == ids_of("bad")) {
            true => Err(EmbedError::Model("planned".to_owned())),
            false => Ok(()),
        });
        let worker = site.worker(&LONG_RETRIES, model).await;
        let id = node_with(&app, "bad").await;
        wait_until(DEADLINE, async || app.status().await["queue"]["retry"] == 1).await;
        assert_eq!(app.node(&id).await["embedding_attempts"], 1);
        let unchanged = patch(&app, &id, &json!({"metadata": 1}), 200).await;
        assert_eq!(unchanged["embedding_status"], "queued");
        let kept = app.node(&id).await;
        assert_eq!((&kept["embedding_attempts"], &kept["version"]), (&json!(1), &json!(2)));
        assert!(kept["embedding_error"].is_string());

        patch(&app, &id, &text("good"), 202).await;
        app.settled(DEADLINE).await;
        assert_ready(&app.node(&id).await, "good");
        site.nothing_is_live();
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_changes_while_the_old_one_is_in_the_model_is_embedded_next() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let gate = Gate::closed();
        let _end = OpensAtEnd(gate.clone());
        let worker = site.worker(&[], gate.model("old", Ok(()))).await;
        let id = node_with(&app, "old").await;
        gate.reached().await;
        patch(&app, &id, &text("new"), 202).await;
        assert_eq!(app.node(&id).await["embedding_status"], "queued");
        gate.open();
        app.settled(DEADLINE).await;
        assert_ready(&app.node(&id).await, "new");
        site.nothing_is_live();
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_old_text_does_not_end_the_new_one() {
    for site in Site::of_both_kinds().await {
        for attempts in ["1", "2"] {
            let app = site.api(&[]).await;
            let gate = Gate::closed();
            let _end = OpensAtEnd(gate.clone());
            let mut settings = LONG_RETRIES.to_vec();
            settings.push(("EMBEDDING_MAX_ATTEMPTS", attempts));
            let worker = site.worker(&settings, gate.model("old", Err("planned"))).await;
            let id = node_with(&app, "old").await;
            gate.reached().await;
            patch(&app, &id, &text("new"), 202).await;
            gate.open();
            app.settled(DEADLINE).await;
            assert_ready(&app.node(&id).await, "new");
            site.nothing_is_live();
            worker.stop().await;
            app.stop().await;
        }
        assert_eq!(site.dead_letters(), "0", "no row has failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_old_text_does_not_end_a_new_one_that_could_not_be_enqueued() {
    let site = Site::on_sqlite();
    let app = site.api(&[]).await;
    let gate = Gate::closed();
    let _end = OpensAtEnd(gate.clone());
    let settings = [("EMBEDDING_MAX_ATTEMPTS", "1"), ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "0.3")];
    let worker = site.worker(&settings, gate.model("old", Err("planned"))).await;
    let id = node_with(&app, "old").await;
    gate.reached().await;
    site.redis.cli(&["SET", "embedding:queue:changed", "of another program"]);
    patch(&app, &id, &text("new"), 202).await;
    site.redis.cli(&["DEL", "embedding:queue:changed"]);
    gate.open();
    app.settled(DEADLINE).await;
    assert_ready(&app.node(&id).await, "new");
    worker.stop().await;
    app.stop().await;
}

/// A worker made by hand, which stops wherever the test wants it to.
struct HandWorker {
    queue: Queue,
    store: Store,
}

impl HandWorker {
    async fn on(site: &Site) -> Self {
        let config = Settings::with(&[]).unwrap();
        let queue = Queue::connect(&site.redis.url(), &config.queue).await.unwrap();
        let store = Store::connect(&site.dsn, vector_of("any").len()).await.unwrap();
        Self { queue, store }
    }

    /// Claims the one job that is there, and marks its row.
    async fn begin(&self) -> (Lease, Job, String) {
        let lease = Duration::from_secs(3600);
        let claimed = self.queue.claim(1, lease, None).await.unwrap().remove(0);
        let job = claimed.job.unwrap();
        let begin = BeginJob {
            id: job.node_id,
            tenant_id: job.tenant_id.clone(),
            refresh: false,
            failed_attempts: 0,
        };
        let row = self.store.begin(&[begin], usize::MAX).await.unwrap().remove(0);
        (claimed.lease, job, row.text.unwrap())
    }

    /// Stores the vector of what it began.
    async fn complete(&self, job: &Job, text: &str) {
        let vector = Vector {
            id: job.node_id,
            source_hash: format!("hash of {text}"),
            input_hash: None,
            values: vector_of(text),
            text_hash: Some(text_hash(text)),
            truncated: false,
            failed_attempts: 0,
        };
        assert_eq!(self.store.complete(&[vector]).await.unwrap(), [job.node_id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_changes_between_vector_and_ack_is_embedded_next() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let id = node_with(&app, "old").await;
        let by_hand = HandWorker::on(&site).await;
        let (lease, job, text_of_job) = by_hand.begin().await;
        by_hand.complete(&job, &text_of_job).await;
        assert_eq!(app.node(&id).await["embedding_status"], "ready");
        let answer = patch(&app, &id, &text("new"), 202).await;
        assert_eq!(by_hand.queue.ack(&[(lease, job)]).await.unwrap(), 0);
        assert_eq!(site.redis.cli(&["LLEN", "embedding:queue"]), "1", "{}", site.name);
        let pending = site.redis.cli(&["GET", &format!("embedding:pending:{id}")]);
        assert_eq!(
            (pending.as_str(), site.tenant_count("acme")),
            (answer["job_id"].as_str().unwrap(), "1".to_owned())
        );
        by_hand.queue.close().await;

        let worker = site.worker(&[], hash_model()).await;
        app.settled(DEADLINE).await;
        assert_ready(&app.node(&id).await, "new");
        site.nothing_is_live();
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_changes_at_once_the_last_has_its_vector() {
    const CHANGES: usize = 100;
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let workers = join_all((0..2).map(|_| site.worker(&[], hash_model()))).await;
        let id = node_with(&app, "old").await;
        let other = app.ingest("other", &["left alone".to_owned()]).await.remove(0);
        let bodies: Vec<Value> = (0..CHANGES).map(|i| text(&format!("text {i}"))).collect();
        join_all(bodies.iter().map(|body| patch(&app, &id, body, 202))).await;
        app.settled(DEADLINE).await;
        let node = app.node(&id).await;
        let last = node["props"]["text"].as_str().unwrap();
        assert!(last.starts_with("text "), "{last}");
        assert_ready(&node, last);
        assert_eq!(node["version"], CHANGES + 1, "{}", site.name);
        assert_ready(&app.node(&other).await, "left alone");
        site.nothing_is_live();
        assert_eq!(site.dead_letters(), "0");
        for worker in workers {
            worker.stop().await;
        }
        app.stop().await;
    }
}

/// Redis loses its memory, so that two workers hold jobs of one node, for two texts of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_an_old_text_leaves_the_work_on_a_newer_one_alone() {
    for site in Site::of_both_kinds().await {
        for old_ends in [Ok(()), Err("planned")] {
            let app = site.api(&[]).await;
            let gate = Gate::closed();
            let _end = OpensAtEnd(gate.clone());
            // It claims nothing else of the tenant meanwhile.
            let one_each = [("EMBEDDING_TENANT_MAX_INFLIGHT", "1")];
            let worker = site.worker(&one_each, gate.model("old", old_ends)).await;
            let id = node_with(&app, "old").await;
            gate.reached().await;
            site.redis.flush();
            patch(&app, &id, &text("new"), 202).await;
            let by_hand = HandWorker::on(&site).await;
            let (lease, job, newer) = by_hand.begin().await;
            assert_eq!(newer, "new");
            gate.open();
            // The next job of the tenant is done after the old one is let go.
            let next = node_with(&app, "next").await;
            wait_until(DEADLINE, async || app.node(&next).await["embedding_status"] == "ready")
                .await;
            assert_eq!(app.node(&id).await["embedding_status"], "processing", "{}", site.name);
            by_hand.complete(&job, &newer).await;
            assert_eq!(by_hand.queue.ack(&[(lease, job)]).await.unwrap(), 0);
            by_hand.queue.close().await;
            app.settled(DEADLINE).await;
            assert_ready(&app.node(&id).await, "new");
            site.nothing_is_live();
            worker.stop().await;
            app.stop().await;
        }
    }
}
