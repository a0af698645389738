//! Its row-level security.

use reqwest::StatusCode;
use serde_json::json;
use vecmill::{
    app::Role,
    domain::TenantId,
    store::{BeginJob, Store},
};

use crate::{
    common::{hash_model, wait_until},
    site::{DEADLINE, Site},
};

fn role_of(dsn: &str) -> String {
    dsn.split("://").nth(1).unwrap().split('@').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_the_role_that_sees_all_does_the_main_job() {
    let (site, [_, member]) = Site::secured().await;
    let app = site.start(Role::Serve, &member, &[]).await.unwrap();
    assert_eq!(app.get("/readyz").await.0, StatusCode::OK);
    for tenant in ["acme", "other"] {
        app.ingest(tenant, &["a".to_owned(), "b".to_owned()]).await;
    }
    assert_eq!(app.settled(DEADLINE).await["ready"], 4);
    assert_eq!(site.find("SELECT 1 FROM embedding_history").await.len(), 4);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_does_the_main_job_unless_security_is_forced() {
    let (site, [_, member]) = Site::secured().await;
    let app = site.serve().await;
    app.ingest("acme", &["a".to_owned()]).await;
    assert_eq!(app.settled(DEADLINE).await["ready"], 1);
    app.stop().await;
    // A policy that keeps rows back is looked at, whatever others let pass.
    site.sql("CREATE POLICY less ON nodes AS RESTRICTIVE USING (tenant_id <> 'acme')").await;
    let error = site.start(Role::Serve, &member, &[]).await.err().unwrap();
    assert!(error.contains("row-level security"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_does_not_see_all_is_refused_with_what_to_grant() {
    let (site, [plain, _]) = Site::secured().await;
    for role in [Role::Serve, Role::Worker, Role::Api] {
        let error = site.start(role, &plain, &[]).await.err().unwrap();
        assert!(error.contains("GRANT admin_role TO plain_"), "{error}");
        assert!(!error.contains('\n') && error.contains("row-level security"), "{error}");
    }
    // Without a role that sees all, the line says how to make one.
    site.sql("DROP POLICY admin_all_nodes ON nodes").await;
    let error = site.start(Role::Worker, &plain, &[]).await.err().unwrap();
    assert!(error.contains("CREATE POLICY vecmill_all ON nodes TO plain_"), "{error}");
    let policy = error.split("run ").last().unwrap();
    site.sql(policy).await;
    site.start(Role::Worker, &plain, &[]).await.unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_loses_no_job() {
    let (site, [plain, _]) = Site::secured().await;
    let role = role_of(&plain);
    site.sql(&format!("GRANT admin_role TO {role}")).await;
    let app = site.start(Role::Serve, &plain, &[]).await.unwrap();
    app.ingest("acme", &["first".to_owned()]).await;
    assert_eq!(app.settled(DEADLINE).await["ready"], 1);

    site.sql(&format!("REVOKE admin_role FROM {role}")).await;
    wait_until(DEADLINE, async || app.get("/readyz").await.0 == StatusCode::SERVICE_UNAVAILABLE)
        .await;
    let ready = app.get("/readyz").await.1;
    assert!(ready["detail"].as_str().unwrap().contains("GRANT admin_role"), "{ready}");
    let node = json!({"classes": ["a"], "props": {"text": "x"}, "tenant_id": "acme"});
    // A session that has planned the statement keeps its plan, and the right with it.
    let (status, answer) = app.post("/nodes", &node).await;
    assert!([503, 202].contains(&status.as_u16()), "it is not the node's fault: {answer}");
    let taken = u64::from(status == StatusCode::ACCEPTED);
    // Jobs of nodes that are there, and out of sight.
    for i in 0..20_u128 {
        let id = uuid::Uuid::from_u128(i + 1);
        site.sql(&format!(
            "INSERT INTO nodes (id, tenant_id, props) VALUES ('{id}', 'acme', '{{\"text\": \"{i}\"}}')"
        ))
        .await;
        let job = json!({"job_id": "j", "node_id": id, "tenant_id": "acme", "action": "embed"});
        site.redis.cli(&["LPUSH", "embedding:queue", &job.to_string()]);
    }
    // Claiming waits for the right, and no job is ended meanwhile but by a vector.
    let waiting = site.waiting() as usize;
    let ready = site.find("SELECT 1 FROM nodes WHERE embedding_status = 'ready'").await.len();
    assert!(waiting + ready > 20, "{waiting} wait, {ready} are ready");
    site.sql(&format!("GRANT admin_role TO {role}")).await;
    wait_until(DEADLINE, async || app.count("ready").await == 21 + taken).await;
    app.stop().await;
}

/// The server does not plan a statement again for a right that is given. Nobody asks about rights here, so
/// that only time helps.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_planned_without_the_right_is_planned_again_with_it() {
    let (site, [plain, _]) = Site::secured().await;
    let (role, id) = (role_of(&plain), uuid::Uuid::from_u128(1));
    site.sql(&format!(
        "INSERT INTO nodes (id, tenant_id, props) VALUES ('{id}', 'acme', '{{\"text\": \"x\"}}')"
    ))
    .await;
    let store = Store::connect(&plain, hash_model().backend.dimension()).await.unwrap();
    let tenant_id = TenantId::new("acme").unwrap();
    let jobs = [BeginJob { id, tenant_id, refresh: false, failed_attempts: 0 }];
    let found = async || store.begin(&jobs, usize::MAX).await.unwrap().len();
    assert_eq!(found().await, 0);
    site.sql(&format!("GRANT admin_role TO {role}")).await;
    wait_until(DEADLINE, async || found().await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_on_the_table_that_is_taken_away_is_no_failure_of_nodes() {
    let (site, [_, member]) = Site::secured().await;
    let role = role_of(&member);
    let api = site.start(Role::Api, &member, &[]).await.unwrap();
    let texts: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    api.ingest("acme", &texts).await;
    let worker =
        site.start(Role::Worker, &member, &[("EMBEDDING_MAX_ATTEMPTS", "1")]).await.unwrap();
    api.settled(DEADLINE).await;
    site.sql(&format!("REVOKE UPDATE ON nodes FROM {role}")).await;
    let ids = api.ingest("acme", &texts).await;
    wait_until(DEADLINE, async || api.get("/readyz").await.0 == StatusCode::SERVICE_UNAVAILABLE)
        .await;
    // Claimed, and handed back.
    wait_until(DEADLINE, async || {
        site.redis.cli(&["HLEN", "embedding:queue:inflight"]) == "0"
            && site.redis.cli(&["LLEN", "embedding:queue"]) == "20"
    })
    .await;
    assert_eq!(site.redis.cli(&["LLEN", "embedding:dlq"]), "0");
    site.sql(&format!("GRANT UPDATE ON nodes TO {role}")).await;
    assert_eq!(api.settled(DEADLINE).await["ready"], 40);
    assert_eq!(api.node(&ids[0]).await["embedding_attempts"], 1);
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn security_is_switched_on_only_when_asked_for() {
    let site = Site::new().await;
    site.serve().await.stop().await;
    let is_on = "SELECT relrowsecurity AS is_on FROM pg_class WHERE relname = 'nodes'";
    assert_eq!(site.find(is_on).await, [json!({"is_on": false})]);
    let store = vecmill::store::Store::connect(&site.dsn, 384).await.unwrap();
    let admin = store.enable_row_level_security().await.unwrap();
    assert_eq!(admin.as_deref(), Some("admin_role"));
    assert_eq!(site.find(is_on).await, [json!({"is_on": true})]);
    // Once more changes nothing.
    store.enable_row_level_security().await.unwrap();
    assert_eq!(site.find("SELECT 1 FROM pg_policy").await.len(), 2);
}
