//! The indexes of table `nodes`. They are no part of a migration: on a table with rows Postgres
//! builds them outside of transactions, so that nobody who reads or writes waits for them.

/// An index: its name, and what follows `ON`.
#[derive(Debug, Clone, Copy)]
pub struct Index {
    /// Its name.
    pub name: &'static str,
    /// The table with columns and condition.
    pub of: &'static str,
}

/// All that there must be.
pub const INDEXES: [Index; 8] = [
    // For the sweep.
    Index {
        name: "vecmill_nodes_open",
        of: "nodes (id) WHERE embedding_status IN ('queued', 'processing')",
    },
    // For listings, counts and requeues, in the order in which they show nodes: of all owners, and of
    // one.
    Index { name: "vecmill_nodes_status", of: "nodes (embedding_status, created_at, id)" },
    Index {
        name: "vecmill_nodes_tenant",
        of: "nodes (tenant_id, embedding_status, created_at, id)",
    },
    // The same for nodes that are done and lack a vector of their text all the same. While a node
    // goes its usual way, it is in neither of them.
    Index {
        name: "vecmill_nodes_lacking",
        of: "nodes (embedding_status, created_at, id) \
             WHERE embedding_status NOT IN ('queued', 'processing') \
             AND (embedding IS NULL OR embedding_source_hash = 'stale')",
    },
    Index {
        name: "vecmill_nodes_tenant_lacking",
        of: "nodes (tenant_id, embedding_status, created_at, id) \
             WHERE embedding_status NOT IN ('queued', 'processing') \
             AND (embedding IS NULL OR embedding_source_hash = 'stale')",
    },
    // Nodes that have their vector and do not look as if they had.
    Index {
        name: "vecmill_nodes_backfill",
        of: "nodes (tenant_id, id) \
             WHERE embedding IS NOT NULL AND embedding_source_hash IS DISTINCT FROM 'stale' \
             AND embedding_status IN ('queued', 'failed')",
    },
    // Rows whose vector is known to be of an older text, for the sweep.
    Index { name: "vecmill_nodes_stale", of: "nodes (id) WHERE embedding_source_hash = 'stale'" },
    // What the vectors were made of, with when they were: the last node of an input is one step in
    // it, however many nodes have that input.
    Index {
        name: "vecmill_nodes_latest",
        of: "nodes (embedding_input_hash, embedding_updated_at) \
             WHERE embedding_input_hash IS NOT NULL",
    },
];

/// Indexes of older releases that another has taken the place of.
pub const OBSOLETE: [&str; 3] =
    ["vecmill_nodes_input", "vecmill_nodes_tenant_status", "vecmill_nodes_created"];
