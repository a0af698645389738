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
pub const INDEXES: [Index; 5] = [
    // For the sweep.
    Index {
        name: "vecmill_nodes_open",
        of: "nodes (id) WHERE embedding_status IN ('queued', 'processing')",
    },
    // For counts and filters by status.
    Index { name: "vecmill_nodes_tenant_status", of: "nodes (tenant_id, embedding_status)" },
    // For the listing.
    Index { name: "vecmill_nodes_created", of: "nodes (created_at, id)" },
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
pub const OBSOLETE: [&str; 1] = ["vecmill_nodes_input"];
