//! The indexes of table `nodes`. They are no part of a migration: on a table with rows Postgres
//! builds them outside of transactions, so that nobody who reads or writes waits for them.

/// An index: its name, and what follows `ON`.
#[derive(Debug, Clone, Copy)]
pub struct Index {
    /// Its name.
    pub name: &'static str,
    /// The table with columns and condition.
    pub of: &'static str,
    /// The same in SQLite, where that differs.
    pub of_in_sqlite: Option<&'static str>,
}

impl Index {
    const fn new(name: &'static str, of: &'static str) -> Self {
        Self { name, of, of_in_sqlite: None }
    }
}

/// All that there must be.
pub const INDEXES: [Index; 8] = [
    // For the sweep.
    Index::new(
        "vecmill_nodes_open",
        "nodes (id) WHERE embedding_status IN ('queued', 'processing')",
    ),
    // For listings, counts and requeues, in the order in which they show nodes: of all owners, and of
    // one.
    Index {
        // SQLite takes an index by status for many a statement that another is better for. So it has
        // a condition here that holds for every row, and stands in those statements alone that are to
        // use it.
        of_in_sqlite: Some(
            "nodes (embedding_status, created_at, id) WHERE length(embedding_status) >= 0",
        ),
        ..Index::new("vecmill_nodes_status", "nodes (embedding_status, created_at, id)")
    },
    Index::new("vecmill_nodes_tenant", "nodes (tenant_id, embedding_status, created_at, id)"),
    // The same for nodes that are done and lack a vector of their text all the same. While a node
    // goes its usual way, it is in neither of them.
    Index::new(
        "vecmill_nodes_lacking",
        "nodes (embedding_status, created_at, id) \
             WHERE embedding_status NOT IN ('queued', 'processing') \
             AND (embedding IS NULL OR embedding_source_hash = 'stale')",
    ),
    Index::new(
        "vecmill_nodes_tenant_lacking",
        "nodes (tenant_id, embedding_status, created_at, id) \
             WHERE embedding_status NOT IN ('queued', 'processing') \
             AND (embedding IS NULL OR embedding_source_hash = 'stale')",
    ),
    // Nodes that have their vector and do not look as if they had.
    Index::new(
        "vecmill_nodes_backfill",
        "nodes (tenant_id, id) \
             WHERE embedding IS NOT NULL AND embedding_source_hash IS DISTINCT FROM 'stale' \
             AND embedding_status IN ('queued', 'failed')",
    ),
    // Rows whose vector is known to be of an older text, for the sweep.
    Index::new("vecmill_nodes_stale", "nodes (id) WHERE embedding_source_hash = 'stale'"),
    // What the vectors were made of, with when they were: the last node of an input is one step in
    // it, however many nodes have that input.
    Index::new(
        "vecmill_nodes_latest",
        "nodes (embedding_input_hash, embedding_updated_at) \
             WHERE embedding_input_hash IS NOT NULL",
    ),
];

/// Indexes of older releases that another has taken the place of.
pub const OBSOLETE: [&str; 3] =
    ["vecmill_nodes_input", "vecmill_nodes_tenant_status", "vecmill_nodes_created"];
