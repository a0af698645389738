//! Migrations: empty databases, ours, and those that another installation made.

use futures::future::try_join_all;
use vecmill::{
    domain::{NodeStatus, TenantScope},
    store::{Cursor, NodeFilter, NodeList, OnRefusal, Store, StoreError},
};

use crate::support::{DIMENSION, TestDb, job, node, on_both_databases, read, vector};

on_both_databases!(
    a_second_migration_changes_nothing,
    processes_that_start_together_migrate_once,
    an_older_database_becomes_as_a_new_one,
    a_table_of_another_installation_gets_what_it_lacks_and_keeps_the_rest,
    another_dimension_stops_the_start,
);

/// Everything about the schema that a migration could change, as sorted text.
async fn schema(db: &TestDb) -> Vec<String> {
    let query = if db.is_sqlite() {
        "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1"
    } else {
        "SELECT format('column %s.%s %s %s %s', table_name, column_name, data_type, \
                       is_nullable, column_default) \
         FROM information_schema.columns WHERE table_schema = 'public' \
         UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public' \
         ORDER BY 1"
    };
    db.texts(query).await
}

async fn a_second_migration_changes_nothing(db: TestDb) {
    let store = db.migrated().await;
    let node = node("acme", "text");
    store
        .insert_nodes(std::slice::from_ref(&node), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    let before = schema(&db).await;
    store.migrate().await.unwrap();
    db.migrated().await;
    assert_eq!(schema(&db).await, before);
    assert_eq!(read(&store, node.id).await.summary.id, node.id);
}

async fn processes_that_start_together_migrate_once(db: TestDb) {
    let starts = (0..8).map(|_| {
        let dsn = db.dsn.clone();
        async move { Store::connect(&dsn, DIMENSION).await?.migrate().await }
    });
    try_join_all(starts.collect::<Vec<_>>()).await.unwrap();
    let applied = db.texts("SELECT version FROM vecmill_migrations").await;
    assert_eq!(applied, ["m0001_nodes", "m0002_stale", "m0003_inputs", "m0004_latest"]);
}

async fn an_older_database_becomes_as_a_new_one(db: TestDb) {
    let store = db.migrated().await;
    let new = schema(&db).await;
    db.sql(
        "DROP INDEX vecmill_nodes_latest; \
         CREATE INDEX vecmill_nodes_input ON nodes (embedding_input_hash) \
         WHERE embedding_input_hash IS NOT NULL; \
         DROP INDEX vecmill_nodes_lacking; \
         DROP INDEX vecmill_nodes_tenant_lacking; \
         DROP INDEX vecmill_nodes_backfill; \
         DROP INDEX vecmill_nodes_status; \
         CREATE INDEX vecmill_nodes_created ON nodes (created_at, id); \
         DROP INDEX vecmill_nodes_tenant; \
         CREATE INDEX vecmill_nodes_tenant_status ON nodes (tenant_id, embedding_status); \
         DELETE FROM vecmill_migrations WHERE version = 'm0004_latest'",
    )
    .await;
    store.migrate().await.unwrap();
    assert_eq!(schema(&db).await, new);
}

/// What ActiveKG may have left: some of the columns, columns, indexes and tables of its own, its
/// own migration books, and rows.
const FOREIGN_POSTGRES: &str = "
    CREATE EXTENSION vector;
    CREATE TABLE nodes (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id text,
        classes text[] NOT NULL DEFAULT '{}',
        props jsonb NOT NULL DEFAULT '{}'::jsonb,
        payload_ref text,
        embedding vector(3),
        metadata jsonb DEFAULT '{}'::jsonb,
        version int NOT NULL DEFAULT 1,
        drift_score double precision,
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now(),
        text_search_vector tsvector
    );
    CREATE INDEX idx_nodes_props ON nodes USING gin (props);
    CREATE INDEX idx_nodes_embedding ON nodes USING hnsw (embedding vector_cosine_ops);
    CREATE TABLE edges (src uuid REFERENCES nodes (id), dst uuid REFERENCES nodes (id), rel text);
    CREATE TABLE seaql_migrations (version text PRIMARY KEY, applied_at bigint NOT NULL);
    INSERT INTO seaql_migrations VALUES ('m0001_theirs', 1);
    INSERT INTO nodes (tenant_id, classes, props, embedding)
        VALUES (NULL, '{Job,\"a b\"}', '{\"text\":\"theirs\",\"content_hash\":\"h\"}', '[1,0,0]');
";

const FOREIGN_SQLITE: &str = "
    CREATE TABLE nodes (
        id blob NOT NULL PRIMARY KEY,
        tenant_id text,
        classes text,
        props text,
        embedding blob,
        created_at text,
        extra text DEFAULT 'x'
    );
    CREATE INDEX idx_nodes_extra ON nodes (extra);
    CREATE TABLE edges (src blob, dst blob, rel text);
    CREATE TABLE seaql_migrations (version text PRIMARY KEY, applied_at bigint NOT NULL);
    INSERT INTO seaql_migrations VALUES ('m0001_theirs', 1);
    INSERT INTO nodes (id, classes, props, embedding, created_at)
        VALUES (x'6f2c7a0e5d0b4f6e9a550a7d4d1c1f10', '[\"Job\",\"a b\"]',
                '{\"text\":\"theirs\",\"content_hash\":\"h\"}', x'0000803f0000000000000000',
                '2024-01-02T03:04:05.678+00:00');
";

async fn a_table_of_another_installation_gets_what_it_lacks_and_keeps_the_rest(db: TestDb) {
    db.sql(if db.is_sqlite() { FOREIGN_SQLITE } else { FOREIGN_POSTGRES }).await;
    let before = schema(&db).await;
    let store = db.migrated().await;
    let after = schema(&db).await;
    // SQLite keeps the text of the table's definition, to which columns were appended.
    let kept = |line: &&String| {
        let line = line
            .strip_prefix("table nodes ")
            .map_or(line.as_str(), |sql| sql.trim_end().trim_end_matches(')').trim_end());
        after.iter().any(|now| now.contains(line))
    };
    assert_eq!(before.iter().filter(|line| !kept(line)).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(db.texts("SELECT version FROM seaql_migrations").await, ["m0001_theirs"]);

    let everything = NodeFilter {
        scope: TenantScope::All,
        has_embedding: Some(true),
        status: None,
        limit: 10,
        from: Cursor::default(),
    };
    let NodeList { nodes: listed, .. } = store.list(&everything).await.unwrap();
    assert_eq!(listed[0].classes, ["Job", "a b"]);
    // Their row had no status column: the default of the contract is `queued`.
    assert_eq!(listed[0].status, NodeStatus::Queued);
    let found = read(&store, listed[0].id).await;
    assert_eq!(found.embedding, Some(vec![1.0, 0.0, 0.0]));
    assert_eq!(store.backfill_ready(&TenantScope::All, None).await.unwrap().nodes, 1);

    let ours = node("acme", "ours");
    store
        .insert_nodes(std::slice::from_ref(&ours), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    assert_eq!(store.begin(&[job(&ours, false)], usize::MAX).await.unwrap().len(), 1);
    let stored = store.complete(&[vector(ours.id, "ours", [0.0, 1.0, 0.0])]).await.unwrap();
    assert_eq!(stored, [ours.id]);
}

async fn another_dimension_stops_the_start(db: TestDb) {
    let store = db.migrated().await;
    let node = node("acme", "text");
    store
        .insert_nodes(std::slice::from_ref(&node), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    store.complete(&[vector(node.id, "text", [1.0, 0.0, 0.0])]).await.unwrap();

    let error = Store::connect(&db.dsn, 384).await.unwrap().migrate().await.unwrap_err();
    assert!(matches!(error, StoreError::Dimension { column: 3, model: 384 }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("vectors of 3 components"), "{message}");
    assert!(message.contains("the model makes 384"), "{message}");
    assert!(message.contains("EMBEDDING_MODEL"), "{message}");
}

/// Whoever switches a file to WAL needs it alone for a moment, and SQLite does not wait there.
#[tokio::test(flavor = "multi_thread")]
async fn many_open_a_new_file_of_sqlite_at_once() {
    for _ in 0..20 {
        let db = TestDb::sqlite().await;
        let opens = (0..8).map(|_| {
            let dsn = db.dsn.clone();
            tokio::spawn(async move { Store::connect(&dsn, DIMENSION).await.map(drop) })
        });
        for opened in opens.collect::<Vec<_>>() {
            opened.await.unwrap().unwrap();
        }
    }
}
