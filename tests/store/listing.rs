//! Listings and requeues page by page: each page is the one that an unbounded look would show.

use uuid::Uuid;
use vecmill::{
    domain::{NodeStatus, TenantScope},
    store::{Cursor, NodeFilter, Position, RequeueFilter, Store, StoreError},
};

use crate::support::{TestDb, on_both_databases, only};

on_both_databases!(
    pages_by_cursor_and_by_offset_are_slices_of_one_order,
    requeue_pages_are_slices_of_the_same_order,
    a_page_goes_on_behind_a_node_that_is_gone,
    a_place_that_the_database_cannot_read_is_refused,
    where_few_of_many_match_a_page_ends_early_and_says_where_to_go_on,
    a_backfill_that_is_not_done_says_so,
);

const ALL_STATUSES: [Option<NodeStatus>; 4] =
    [None, Some(NodeStatus::Queued), Some(NodeStatus::Ready), Some(NodeStatus::Failed)];

/// 600 nodes of some owners and of none, in each status and in one of another program, with times
/// that are equal, or not there, and with current vectors, stale ones and none.
async fn motley(db: &TestDb) -> Store {
    let store = db.migrated().await;
    let (n, id, at, embedding) = if db.is_sqlite() {
        (
            "(WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 599) \
              SELECT i FROM n)",
            "unhex(printf('%032x', (i * 7919) % 600 + 1))",
            "strftime('%Y-%m-%dT%H:%M:%f+00:00', '2026-01-01', (i / 4 % 50) || ' seconds')",
            "x'0000803f0000000000000000'",
        )
    } else {
        (
            "(SELECT i FROM generate_series(0, 599) AS i)",
            "lpad(to_hex((i * 7919) % 600 + 1), 32, '0')::uuid",
            "timestamptz '2026-01-01' + (i / 4 % 50) * interval '1 second 3 microseconds'",
            "'[1,0,0]'::vector",
        )
    };
    db.sql(&format!(
        "INSERT INTO nodes (id, tenant_id, embedding_status, embedding, embedding_source_hash, \
           created_at) \
         SELECT {id}, \
           CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN 'default' WHEN 2 THEN 'acme' ELSE 'big' END, \
           CASE i % 7 WHEN 0 THEN 'queued' WHEN 1 THEN 'processing' WHEN 2 THEN 'failed' \
             WHEN 3 THEN 'skipped' WHEN 4 THEN 'pausiert' ELSE 'ready' END, \
           CASE WHEN i % 3 > 0 THEN {embedding} END, \
           CASE WHEN i % 4 = 0 THEN 'stale' WHEN i % 4 = 1 THEN 'h' END, \
           CASE WHEN i % 11 > 0 THEN {at} END \
         FROM {n} AS n"
    ))
    .await;
    store
}

/// The ids of the nodes that a condition of SQL wants, in the order of a listing.
async fn in_order(db: &TestDb, condition: &str) -> Vec<Uuid> {
    let id = if db.is_sqlite() { "hex(id)" } else { "id::text" };
    let sql = format!("SELECT {id} FROM nodes WHERE {condition} ORDER BY created_at, id");
    db.texts(&sql).await.iter().map(|id| id.parse().unwrap()).collect()
}

fn scopes() -> [(TenantScope, &'static str); 4] {
    [
        (TenantScope::All, "1 = 1"),
        (only("acme"), "tenant_id = 'acme'"),
        (only("default"), "(tenant_id = 'default' OR tenant_id IS NULL)"),
        (only("nobody"), "tenant_id = 'nobody'"),
    ]
}

fn with_status(condition: &str, status: Option<NodeStatus>) -> String {
    match status {
        Some(status) => format!("{condition} AND embedding_status = '{status}'"),
        None => condition.to_owned(),
    }
}

async fn pages_by_cursor_and_by_offset_are_slices_of_one_order(db: TestDb) {
    let store = motley(&db).await;
    for (scope, of_scope) in scopes() {
        for status in ALL_STATUSES {
            for (has_embedding, of_vector) in [
                (None, "1 = 1"),
                (Some(true), "embedding IS NOT NULL"),
                (Some(false), "embedding IS NULL"),
            ] {
                let condition = with_status(&format!("{of_scope} AND {of_vector}"), status);
                let expected = in_order(&db, &condition).await;
                let filter = |limit, from| NodeFilter {
                    scope: scope.clone(),
                    has_embedding,
                    status,
                    limit,
                    from,
                };
                let (mut seen, mut from) = (Vec::new(), Cursor::default());
                loop {
                    let page = store.list(&filter(37, from)).await.unwrap();
                    assert_eq!(page.total.nodes, expected.len() as u64, "{condition}");
                    assert!(page.total.is_exact);
                    seen.extend(page.nodes.iter().map(|node| node.id));
                    let Some(next) = page.next else { break };
                    assert_eq!(page.nodes.len(), 37, "{condition}");
                    from = next;
                }
                assert_eq!(seen, expected, "{condition}");

                for skip in [0, 1, 40, 590] {
                    let from = Cursor { after: None, skip };
                    let page = store.list(&filter(10, from)).await.unwrap();
                    let ids: Vec<Uuid> = page.nodes.iter().map(|node| node.id).collect();
                    let rest = expected.get(skip as usize..).unwrap_or_default();
                    assert_eq!(ids, rest[..rest.len().min(10)], "{condition} from {skip}");
                    assert_eq!(page.next.is_some(), rest.len() > 10);
                }
            }
        }
    }
}

async fn requeue_pages_are_slices_of_the_same_order(db: TestDb) {
    let store = motley(&db).await;
    let lacking = "(embedding IS NULL OR coalesce(embedding_source_hash, '') = 'stale')";
    for (scope, of_scope) in scopes() {
        for status in ALL_STATUSES {
            for only_missing_embedding in [false, true] {
                let of_vector = if only_missing_embedding { lacking } else { "1 = 1" };
                let condition = with_status(&format!("{of_scope} AND {of_vector}"), status);
                let expected = in_order(&db, &condition).await;
                let (mut seen, mut from) = (Vec::new(), Cursor::default());
                loop {
                    let filter = RequeueFilter {
                        scope: scope.clone(),
                        node_ids: None,
                        status,
                        only_missing_embedding,
                        limit: 37,
                        from,
                    };
                    let page = store.requeue_page(&filter).await.unwrap();
                    seen.extend(page.nodes.iter().map(|(node, _)| node.id));
                    if let Some((_, behind)) = page.nodes.last() {
                        assert!(page.next.is_none() || page.next.as_ref() == Some(behind));
                    }
                    let Some(next) = page.next else { break };
                    from = next;
                }
                assert_eq!(seen, expected, "{condition}");
            }
        }
    }
}

async fn a_page_goes_on_behind_a_node_that_is_gone(db: TestDb) {
    let store = motley(&db).await;
    let expected = in_order(&db, "1 = 1").await;
    let filter = |from| NodeFilter {
        scope: TenantScope::All,
        has_embedding: None,
        status: None,
        limit: 300,
        from,
    };
    let first = store.list(&filter(Cursor::default())).await.unwrap();
    db.sql("DELETE FROM nodes WHERE embedding_status <> 'failed'").await;
    let second = store.list(&filter(first.next.unwrap())).await.unwrap();
    let left = in_order(&db, "1 = 1").await;
    let rest: Vec<Uuid> =
        expected[300..].iter().copied().filter(|node| left.contains(node)).collect();
    assert_eq!(second.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), rest);
}

async fn a_place_that_the_database_cannot_read_is_refused(db: TestDb) {
    let store = motley(&db).await;
    let place = Position { created_at: Some("when?".to_owned()), id: Uuid::nil() };
    let filter = NodeFilter {
        scope: TenantScope::All,
        has_embedding: None,
        status: None,
        limit: 10,
        from: Cursor { after: Some(place), skip: 0 },
    };
    let listed = store.list(&filter).await;
    // In SQLite any text may stand for a time.
    assert_eq!(matches!(listed, Err(StoreError::Cursor)), !db.is_sqlite(), "{listed:?}");
}

/// 60,000 nodes that wait for their first vector, and behind them one that has one.
async fn one_of_many(db: &TestDb) -> Store {
    let store = db.migrated().await;
    let (n, id, embedding) = if db.is_sqlite() {
        (
            "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60001) \
              SELECT i FROM n)",
            "unhex(printf('%032x', i))",
            "x'0000803f0000000000000000'",
        )
    } else {
        (
            "(SELECT i FROM generate_series(1, 60001) AS i)",
            "lpad(to_hex(i), 32, '0')::uuid",
            "'[1,0,0]'::vector",
        )
    };
    db.sql(&format!(
        "INSERT INTO nodes (id, tenant_id, embedding, created_at) \
         SELECT {id}, 'acme', CASE WHEN i > 60000 THEN {embedding} END, '2026-01-01T00:00:00Z' \
         FROM {n} AS n"
    ))
    .await;
    store
}

async fn where_few_of_many_match_a_page_ends_early_and_says_where_to_go_on(db: TestDb) {
    let store = one_of_many(&db).await;
    for skip in [0, 1] {
        let mut filter = NodeFilter {
            scope: TenantScope::All,
            has_embedding: Some(true),
            status: Some(NodeStatus::Queued),
            limit: 10,
            from: Cursor { after: None, skip },
        };
        let (mut found, mut calls) = (0, 0);
        loop {
            let page = store.list(&filter).await.unwrap();
            calls += 1;
            found += page.nodes.len() as u64;
            assert_eq!((page.total.nodes, page.total.is_exact), (1, true));
            let Some(next) = page.next else { break };
            assert!(page.nodes.is_empty());
            filter.from = next;
        }
        // What was to be passed over is passed over in whichever call it is met.
        assert_eq!(found, 1 - skip);
        assert!((3..=4).contains(&calls), "{calls} calls");
    }
}

async fn a_backfill_that_is_not_done_says_so(db: TestDb) {
    let store = one_of_many(&db).await;
    let embedding = if db.is_sqlite() { "x'0000803f0000000000000000'" } else { "'[1,0,0]'" };
    db.sql(&format!("UPDATE nodes SET embedding = {embedding}, embedding_status = 'failed'")).await;
    let first = store.backfill_ready(&only("acme"), None).await.unwrap();
    assert_eq!((first.nodes, first.is_all), (5000, false));
    let mut nodes = first.nodes;
    loop {
        let next = store.backfill_ready(&TenantScope::All, None).await.unwrap();
        nodes += next.nodes;
        if next.is_all {
            break;
        }
    }
    assert_eq!(nodes, 60001);
    assert_eq!(store.status_counts(&TenantScope::All).await.unwrap().ready, 60001);
}
