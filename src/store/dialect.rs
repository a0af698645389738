//! Where the SQL of Postgres and of SQLite differ.
//!
//! Rows and ids travel as one JSON parameter that the database unfolds into a row source: the
//! statement is the same for every batch size, no limit on parameters is met, and both databases
//! can do it.

use sea_orm::{
    ColumnTrait, DbBackend,
    sea_query::{Condition, Expr, SimpleExpr, Value},
};
use serde::Serialize;
use uuid::Uuid;

use entity::node::Column;

use crate::domain::{NodeStatus, TenantId, TenantScope};

/// The type of a field in a row source.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Uuid,
    Text,
    Int,
    Long,
    Double,
    Bool,
    /// Any JSON value.
    Json,
    /// A JSON array of strings, stored as the column `classes` is.
    Texts,
    /// Bytes, written by [`Dialect::bytes`].
    Bytes,
}

/// The SQL of one of the two databases.
#[derive(Clone, Copy)]
pub(super) enum Dialect {
    Postgres,
    Sqlite,
}

impl Dialect {
    pub(super) fn of(backend: DbBackend) -> Self {
        match backend {
            DbBackend::Sqlite => Self::Sqlite,
            _ => Self::Postgres,
        }
    }

    /// A row source named `v` of the given fields, unfolded from the JSON array of objects in
    /// parameter `$1` (made by [`to_json`]). A field that an object lacks is null.
    pub(super) fn rows(self, fields: &[(&str, Kind)]) -> String {
        let columns: Vec<String> =
            fields.iter().map(|&(name, kind)| self.field(name, kind)).collect();
        let columns = columns.join(", ");
        match self {
            Self::Postgres => format!("jsonb_to_recordset($1::text::jsonb) AS v({columns})"),
            Self::Sqlite => format!("(SELECT {columns} FROM json_each($1)) AS v"),
        }
    }

    fn field(self, name: &str, kind: Kind) -> String {
        match self {
            Self::Postgres => {
                let sql_type = match kind {
                    Kind::Uuid => "uuid",
                    Kind::Text => "text",
                    Kind::Int => "integer",
                    Kind::Long => "bigint",
                    Kind::Double => "double precision",
                    Kind::Bool => "boolean",
                    Kind::Json => "jsonb",
                    Kind::Texts => "text[]",
                    Kind::Bytes => "bytea",
                };
                format!("{name} {sql_type}")
            }
            Self::Sqlite => match kind {
                Kind::Uuid => format!("unhex(value->>'$.{name}', '-') AS {name}"),
                Kind::Bytes => format!("unhex(value->>'$.{name}') AS {name}"),
                Kind::Json | Kind::Texts => format!("value->'$.{name}' AS {name}"),
                Kind::Text | Kind::Int | Kind::Long | Kind::Double | Kind::Bool => {
                    format!("value->>'$.{name}' AS {name}")
                }
            },
        }
    }

    /// Bytes as a row source of [`Dialect::rows`] holds them.
    pub(super) fn bytes(self, bytes: &[u8]) -> String {
        match self {
            Self::Postgres => format!("\\x{}", hex(bytes)),
            Self::Sqlite => hex(bytes),
        }
    }

    /// The time of the statement, as the timestamp columns hold it.
    pub(super) fn now(self) -> &'static str {
        match self {
            Self::Postgres => "now()",
            Self::Sqlite => "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')",
        }
    }

    /// What holds for every row, and lets a statement use `vecmill_nodes_status`.
    pub(super) fn by_status(self) -> &'static str {
        match self {
            Self::Postgres => "TRUE",
            Self::Sqlite => "length(embedding_status) >= 0",
        }
    }

    /// The table, read by this index where the database can be told.
    pub(super) fn nodes_by(self, index: &str) -> String {
        match self {
            Self::Postgres => "nodes".to_owned(),
            Self::Sqlite => format!("nodes INDEXED BY {index}"),
        }
    }

    /// The time that stands in a parameter.
    pub(super) fn time(self, parameter: &str) -> String {
        match self {
            Self::Postgres => format!("{parameter}::text::timestamptz"),
            Self::Sqlite => parameter.to_owned(),
        }
    }

    /// A time as a text that [`Dialect::time`] takes for the same one.
    pub(super) fn time_text(self, column: &str) -> String {
        match self {
            // Whatever the session's time zone and style of dates.
            Self::Postgres => format!("(to_json({column}) #>> '{{}}')"),
            Self::Sqlite => column.to_owned(),
        }
    }

    /// A text that is another one after each change of the row.
    pub(super) fn changed(self) -> &'static str {
        match self {
            // Not as a date: that depends on the session's time zone.
            Self::Postgres => "extract(epoch FROM nodes.updated_at)::text",
            Self::Sqlite => "nodes.updated_at",
        }
    }

    /// That the row was last changed more than `seconds` ago.
    pub(super) fn unchanged_for(self, seconds: f64) -> SimpleExpr {
        match self {
            Self::Postgres => Expr::cust_with_values(
                "coalesce(updated_at, created_at, '-infinity') < now() - make_interval(secs => $1)",
                [seconds],
            ),
            Self::Sqlite => Expr::cust_with_values(
                "coalesce(updated_at, created_at, '') \
                 < strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', ?)",
                [format!("{} seconds", -seconds)],
            ),
        }
    }

    /// That the row is one of the first `limit` open ones, by their ids from behind `after`.
    ///
    /// Left to itself, the planner of Postgres may read all open rows, and sort them, for each page.
    /// So the statement goes from one to the next by the partial index.
    pub(super) fn next_open(self, after: Option<Uuid>, limit: u64) -> SimpleExpr {
        // Spelled out, because a parameter would hide the partial index from the planner.
        let open = "embedding_status IN ('queued', 'processing')";
        let behind = if after.is_some() { ">" } else { ">=" };
        let after = after.unwrap_or_default();
        match self {
            Self::Postgres => {
                let step = |behind: &str| {
                    format!("SELECT id FROM nodes WHERE {open} AND id {behind} ORDER BY id LIMIT 1")
                };
                let (first, next) = (step(&format!("{behind} $1")), step("> walk.id"));
                let walk = format!(
                    "id = ANY(ARRAY(WITH RECURSIVE walk AS (({first}) UNION ALL \
                       SELECT next.id FROM walk CROSS JOIN LATERAL ({next}) AS next) \
                     SELECT id FROM walk LIMIT $2))"
                );
                let values: [Value; 2] = [after.into(), limit.into()];
                Expr::cust_with_values(walk, values)
            }
            Self::Sqlite => Expr::cust_with_values(format!("{open} AND id {behind} ?"), [after]),
        }
    }

    /// The labels as the text of a JSON array.
    pub(super) fn classes(self) -> SimpleExpr {
        match self {
            Self::Postgres => Expr::cust("to_jsonb(classes)::text"),
            Self::Sqlite => Expr::cust("classes"),
        }
    }

    /// The vector, as [`super::results::read_embedding`] reads it.
    pub(super) fn embedding(self) -> &'static str {
        match self {
            Self::Postgres => "embedding::real[]",
            Self::Sqlite => "embedding",
        }
    }

    /// That the row is one of these.
    pub(super) fn id_in(self, ids: &[Uuid]) -> SimpleExpr {
        match self {
            // The planner takes an array that it does not know for a short one, and goes by the ids.
            Self::Postgres => {
                Expr::cust_with_values("id = ANY(ARRAY(SELECT unnest($1)))", [ids.to_vec()])
            }
            Self::Sqlite => Expr::cust_with_values(
                "id IN (SELECT unhex(value, '-') FROM json_each(?))",
                [to_json(ids)],
            ),
        }
    }

    /// That the row is one of these, and no other session holds it: what nobody waits for, nobody
    /// waits for in a circle.
    pub(super) fn id_in_unlocked(self, ids: &[Uuid]) -> SimpleExpr {
        match self {
            Self::Postgres => Expr::cust_with_values(
                "id = ANY(ARRAY(SELECT held.id FROM nodes AS held WHERE held.id = ANY($1) \
                 FOR NO KEY UPDATE OF held SKIP LOCKED))",
                [ids.to_vec()],
            ),
            Self::Sqlite => self.id_in(ids),
        }
    }

    /// That the tenant of the row can be one of ours. Another installation may have let a name
    /// pass that no job can carry.
    pub(super) fn tenant_is_valid(self) -> SimpleExpr {
        match self {
            Self::Postgres => Expr::cust(
                "(tenant_id IS NULL OR (length(tenant_id) BETWEEN 1 AND 200 \
                 AND tenant_id !~ '[[:cntrl:]]'))",
            ),
            Self::Sqlite => {
                Expr::cust("(tenant_id IS NULL OR length(tenant_id) BETWEEN 1 AND 200)")
            }
        }
    }
}

/// That a vector is stored.
pub(super) fn has_embedding() -> SimpleExpr {
    Expr::cust("embedding IS NOT NULL")
}

/// Stands in `embedding_source_hash` of a row whose text was changed since its vector was made. No
/// hash is like it, so that the next embedding takes the text for another one.
pub(super) const STALE: &str = "stale";

/// That a vector is stored, and not known to be one of an older text.
pub(super) fn has_current_embedding() -> SimpleExpr {
    // Spelled out, because a parameter has no type here.
    Expr::cust(format!(
        "(embedding IS NOT NULL AND embedding_source_hash IS DISTINCT FROM '{STALE}')"
    ))
}

/// That the row is in the scope; rows without a tenant are the default tenant's.
pub(super) fn in_scope(scope: &TenantScope) -> Condition {
    match scope.tenant() {
        None => Condition::all(),
        Some(tenant) => Condition::any()
            .add(Column::TenantId.eq(tenant.as_str()))
            .add_option((*tenant == TenantId::default()).then(|| Column::TenantId.is_null())),
    }
}

/// The tenant of a row; none if its name is not valid.
pub(super) fn tenant_of(column: Option<String>) -> Option<TenantId> {
    column.map_or_else(|| Some(TenantId::default()), |name| TenantId::new(name).ok())
}

/// The status of a row. One that we do not know, which only another program can have written,
/// counts as failed, so that an operator sees it and nothing waits for it.
pub(super) fn status_of(column: &str) -> NodeStatus {
    column.parse().unwrap_or(NodeStatus::Failed)
}

/// The parameter of [`Dialect::rows`].
pub(super) fn to_json<T: Serialize + ?Sized>(rows: &T) -> String {
    // Plain data with string keys always serialises; an empty source changes no row.
    serde_json::to_string(rows).unwrap_or_else(|_| "[]".to_owned())
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
