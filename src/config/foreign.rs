//! Variables of ActiveKG that an environment may still hold, and that change nothing here.

/// Names that begin so, but for those that [`HONOURED`] holds.
const FAMILIES: [&str; 20] = [
    "ACTIVEKG_",
    "ASK_",
    "CONNECTOR_",
    "CORS_",
    "EXTRACTION_",
    "GLOBAL_EMBED_",
    "GLOBAL_MEMORY_",
    "GLOBAL_SEARCH_",
    "HNSW_",
    "HYBRID_",
    "IVFFLAT_",
    "JWT_",
    "LLM_",
    "PGVECTOR_",
    "RATE_LIMIT_",
    "RLS_",
    "SEARCH_",
    "SIGNAL_JWT_",
    "UPLOAD_",
    "WEBHOOK_",
];

/// Names that belong to no family.
const SINGLES: [&str; 16] = [
    "AUTO_INDEX_ON_STARTUP",
    "EMBEDDING_PENDING_TTL_SECONDS",
    "EMBEDDING_QUEUE_REQUIRE_REDIS",
    "EMBEDDING_TENANT_PENDING_TTL_SECONDS",
    "MAX_RERANK_BUDGET_MS",
    "METRICS_ENABLED",
    "PUBSUB_VERIFY_SECRET",
    "RAW_LOW_SIM_THRESHOLD",
    "REAL_IP_HEADER",
    "RERANK_SKIP_TOPSIM",
    "RRF_LOW_SIM_THRESHOLD",
    "RUN_GCS_POLLER",
    "RUN_SCHEDULER",
    "TRUST_PROXY",
    "WEIGHTED_SEARCH_CANDIDATE_FACTOR",
    "WORKERS",
];

/// Names of a family that do mean something here.
const HONOURED: [&str; 2] = ["ACTIVEKG_DSN", "JWT_ENABLED"];

/// Of the variables that are set, those that ActiveKG would obey and Vecmill does not, in order.
/// An empty value is none.
pub fn not_honoured(
    environment: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Vec<String> {
    let mut names: Vec<String> = environment
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| is_foreign(name))
        .collect();
    names.sort();
    names
}

fn is_foreign(name: &str) -> bool {
    !HONOURED.contains(&name)
        && (SINGLES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_nothing_is_named() {
        let environment = [
            ("RATE_LIMIT_ENABLED", "true"),
            ("ACTIVEKG_URL_ALLOWLIST", "https://a.example"),
            ("ACTIVEKG_DSN", "postgresql://h/d"),
            ("EMBEDDING_MODEL", "m"),
            ("JWT_ENABLED", "false"),
            ("JWT_SECRET_KEY", ""),
            ("HOST", "build-7"),
            ("PATH", "/bin"),
        ];
        let environment = environment.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(not_honoured(environment), ["ACTIVEKG_URL_ALLOWLIST", "RATE_LIMIT_ENABLED"]);
    }
}
