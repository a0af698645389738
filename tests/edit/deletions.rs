//! Nodes that are deleted wherever their jobs are.

use serde_json::json;
use vecmill::inference::EmbedError;

use super::{DEADLINE, Gate, OpensAtEnd, Site, assert_ready, node_with, patch, text};
use crate::common::{TestApp, faulty_model, hash_model, ids_of, wait_until};

async fn delete(app: &TestApp, id: &str) {
    let (status, body) = app.delete(&format!("/nodes/{id}?tenant_id=acme")).await;
    assert_eq!((status.as_u16(), body.as_str()), (204, ""));
    assert_eq!(app.get(&format!("/nodes/{id}")).await.0.as_u16(), 404);
    assert_eq!(app.delete(&format!("/nodes/{id}?tenant_id=acme")).await.0.as_u16(), 404);
    assert_eq!(
        app.patch(&format!("/nodes/{id}?tenant_id=acme"), &text("too late")).await.0.as_u16(),
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_is_gone_with_its_job() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let first = node_with(&app, "first").await;
        let id = node_with(&app, "gone").await;
        let last = node_with(&app, "last").await;
        delete(&app, &id).await;
        assert_eq!(site.redis.cli(&["LLEN", "embedding:queue"]), "2", "{}", site.name);
        assert_eq!(site.redis.cli(&["EXISTS", &format!("embedding:pending:{id}")]), "0");
        assert_eq!(site.tenant_count("acme"), "2");
        let worker = site.worker(&[], hash_model()).await;
        assert_eq!(app.settled(DEADLINE).await["ready"], 2);
        assert_ready(&app.node(&first).await, "first");
        assert_ready(&app.node(&last).await, "last");

        delete(&app, &last).await;
        assert_ready(&app.node(&first).await, "first");
        site.nothing_is_live();
        assert_eq!(site.dead_letters(), "0");
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_a_retry_is_gone_with_its_job() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let model = faulty_model(|batch| match batch.iter().any(|t| t.ids == ids_of("bad")) {
            true => Err(EmbedError::Model("planned".to_owned())),
            false => Ok(()),
        });
        let worker = site.worker(&[("EMBEDDING_RETRY_BASE_SECONDS", "300")], model).await;
        let (id, other) = (node_with(&app, "bad").await, node_with(&app, "bad").await);
        wait_until(DEADLINE, async || app.status().await["queue"]["retry"] == 2).await;
        delete(&app, &id).await;
        assert_eq!(site.redis.cli(&["ZCARD", "embedding:retry"]), "1", "{}", site.name);
        assert!(site.redis.cli(&["ZRANGE", "embedding:retry", "0", "-1"]).contains(&other));
        assert_eq!(site.tenant_count("acme"), "1");
        delete(&app, &other).await;
        site.nothing_is_live();
        assert_eq!(site.dead_letters(), "0");
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_a_deleted_node_in_hand_lets_it_go() {
    for site in Site::of_both_kinds().await {
        for end in [Ok(()), Err("planned")] {
            for is_changed_first in [false, true] {
                let app = site.api(&[]).await;
                let gate = Gate::closed();
                let _end = OpensAtEnd(gate.clone());
                let settings =
                    [("EMBEDDING_BATCH_TEXTS", "1"), ("EMBEDDING_RETRY_BASE_SECONDS", "0.05")];
                let worker = site.worker(&settings, gate.model("gone", end)).await;
                let id = node_with(&app, "gone").await;
                gate.reached().await;
                let others = [node_with(&app, "one").await, node_with(&app, "two").await];
                if is_changed_first {
                    patch(&app, &id, &text("gone soon"), 202).await;
                }
                delete(&app, &id).await;
                gate.open();
                let counts = app.settled(DEADLINE).await;
                assert_eq!(
                    counts,
                    json!({"queued": 0, "processing": 0, "ready": 2, "failed": 0, "skipped": 0})
                );
                assert_ready(&app.node(&others[0]).await, "one");
                assert_ready(&app.node(&others[1]).await, "two");
                site.nothing_is_live();
                assert_eq!(site.dead_letters(), "0", "{}", site.name);
                for other in others {
                    delete(&app, &other).await;
                }
                worker.stop().await;
                app.stop().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_changes_as_its_node_is_deleted_leaves_nothing() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let worker = site.worker(&[], hash_model()).await;
        for i in 0..20 {
            let id = node_with(&app, &format!("text {i}")).await;
            let (path, new) = (format!("/nodes/{id}?tenant_id=acme"), text("new"));
            let ((changed, _), (deleted, _)) =
                tokio::join!(app.patch(&path, &new), app.delete(&path));
            assert!([202, 404].contains(&changed.as_u16()), "{changed}");
            assert_eq!(deleted.as_u16(), 204);
        }
        app.settled(DEADLINE).await;
        assert_eq!(app.get("/nodes").await.1["total"], 0, "{}", site.name);
        site.nothing_is_live();
        assert_eq!(site.dead_letters(), "0");
        worker.stop().await;
        app.stop().await;
    }
}
