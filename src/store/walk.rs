//! The way of listings, counts and requeues through the table: oldest first, by indexes that have
//! this order.
//!
//! A walk merges one branch for each status (and owner), each of which is a range of an index. So it
//! reads as many rows as it passes, however many match. Where no index knows what is wanted, a step
//! looks at a bounded number of rows, and says where the next one goes on.

use chrono::DateTime;
use sea_orm::{ConnectionTrait, QueryResult, Statement, Value};
use uuid::Uuid;

use super::{
    Cursor, Position, Store, StoreError,
    dialect::{Dialect, STALE},
};
use crate::domain::{NodeStatus, TenantId, TenantScope};

/// Rows that one step looks at, at most, beyond those that it shows or passes over.
const LOOK_AT: u64 = 20_000;
/// By how much more rows are looked at each time when those before were not enough.
const GROWTH: u64 = 4;
/// Kinds of status that are told apart. There are five; another program may have more.
const STATUSES_MAX: usize = 16;
/// Statuses of nodes that an index of those without a current vector leaves out: nearly all of them
/// have none.
const OPEN: [NodeStatus; 2] = [NodeStatus::Queued, NodeStatus::Processing];

/// What is asked of a node's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// Nothing.
    Any,
    /// That there is one.
    Embedded,
    /// That there is none.
    Unembedded,
    /// That there is none, or only one of an older text.
    NoCurrent,
}

/// Which nodes are walked through.
#[derive(Debug, Clone)]
pub(super) struct Walk<'a> {
    pub(super) scope: &'a TenantScope,
    /// Nodes of this status; of each when `None`.
    pub(super) status: Option<NodeStatus>,
    pub(super) wants: Wants,
}

/// A node on the way.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) id: Uuid,
    /// Where it stands.
    pub(super) position: Position,
}

/// How many nodes were found in those that were looked at.
pub(super) struct Counted {
    pub(super) found: u64,
    /// Whether there are no others.
    pub(super) is_all: bool,
}

/// Nodes of one status, and of one owner if that matters.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    owner: Owner,
    pub(super) status: String,
}

#[derive(Debug, Clone)]
enum Owner {
    Anyone,
    Nobody,
    Tenant(String),
}

/// Rows with a time and rows without one are walked one after the other: no range of an index holds
/// "behind this time, or without one".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Dated,
    Undated,
}

/// The values of a statement under construction.
#[derive(Default)]
struct Values(Vec<Value>);

impl Values {
    /// Takes a value in; answers what stands for it.
    fn add(&mut self, value: impl Into<Value>) -> String {
        self.0.push(value.into());
        format!("${}", self.0.len())
    }
}

/// What one statement saw.
struct Step {
    keys: Vec<Key>,
    looked_at: u64,
    found: u64,
    last: Option<Position>,
}

impl Walk<'_> {
    /// The index that a branch goes by, and whether it leaves out what is not wanted.
    fn index(&self, branch: &Branch) -> (&'static str, bool) {
        let by_tenant = !matches!(branch.owner, Owner::Anyone);
        let is_open = OPEN.iter().any(|status| status.as_str() == branch.status);
        let of_lacking = matches!(self.wants, Wants::Unembedded | Wants::NoCurrent) && !is_open;
        match (of_lacking, by_tenant) {
            (false, false) => ("vecmill_nodes_status", self.wants == Wants::Any),
            (false, true) => ("vecmill_nodes_tenant", self.wants == Wants::Any),
            (true, false) => ("vecmill_nodes_lacking", self.wants == Wants::NoCurrent),
            (true, true) => ("vecmill_nodes_tenant_lacking", self.wants == Wants::NoCurrent),
        }
    }

    /// Rows of a branch from behind a position, in order, as `created_at`, `id`, `is_wanted`.
    fn rows(
        &self,
        dialect: Dialect,
        branch: &Branch,
        place: Option<(Part, Option<&Position>)>,
        limit: u64,
        values: &mut Values,
    ) -> String {
        let (index, is_exact) = self.index(branch);
        let lacks = lacks_current();
        let is_wanted = match self.wants {
            _ if is_exact => "TRUE".to_owned(),
            Wants::Any => "TRUE".to_owned(),
            Wants::Embedded => "(embedding IS NOT NULL)".to_owned(),
            Wants::Unembedded => "(embedding IS NULL)".to_owned(),
            Wants::NoCurrent => format!("coalesce({lacks}, FALSE)"),
        };
        let mut conditions = Vec::new();
        let mut order = String::new();
        match &branch.owner {
            Owner::Anyone => {}
            Owner::Nobody => conditions.push("tenant_id IS NULL".to_owned()),
            Owner::Tenant(name) => conditions.push(format!("tenant_id = {}", values.add(name))),
        }
        if !matches!(branch.owner, Owner::Anyone) {
            order.push_str("tenant_id, ");
        }
        conditions.push(format!("embedding_status = {}", values.add(branch.status.clone())));
        if index.ends_with("lacking") {
            // As the index has it, so that it is known to hold all that is wanted.
            conditions.push("embedding_status NOT IN ('queued', 'processing')".to_owned());
            conditions.push(lacks);
        }
        match place {
            None => {}
            Some((Part::Dated, None)) => conditions.push("created_at IS NOT NULL".to_owned()),
            Some((Part::Dated, Some(position))) => {
                let at = values.add(position.created_at.clone().unwrap_or_default());
                let id = values.add(position.id);
                let at = dialect.time(&at);
                conditions.push(format!("(created_at, id) > ({at}, {id})"));
            }
            Some((Part::Undated, position)) => {
                conditions.push("created_at IS NULL".to_owned());
                if let Some(position) = position {
                    conditions.push(format!("id > {}", values.add(position.id)));
                }
            }
        }
        // The order of all columns of the index, so that no planner takes another way. SQLite can be
        // told the index, too.
        let from = match dialect {
            Dialect::Postgres => "nodes".to_owned(),
            Dialect::Sqlite => format!("nodes INDEXED BY {index}"),
        };
        format!(
            "SELECT * FROM (SELECT created_at, id, {is_wanted} AS is_wanted FROM {from} \
             WHERE {} ORDER BY {order}embedding_status, created_at, id LIMIT {limit}) AS b",
            conditions.join(" AND ")
        )
    }
}

impl Store {
    /// The next nodes of a walk, `limit` at most, and where the walk goes on behind them, if it is
    /// not at its end. There may be fewer where few of many are wanted.
    pub(super) async fn walk(
        &self,
        walk: &Walk<'_>,
        from: &Cursor,
        limit: u64,
    ) -> Result<(Vec<Key>, Option<Cursor>), StoreError> {
        let dialect = self.dialect();
        let Cursor { mut after, mut skip } = from.clone();
        let parts = match dialect {
            Dialect::Postgres => [Part::Dated, Part::Undated],
            Dialect::Sqlite => [Part::Undated, Part::Dated],
        };
        let first = after.as_ref().map_or(parts[0], |position| part_of(position));
        check_position(dialect, after.as_ref())?;
        let branches = self.branches(walk).await?;
        let mut keys: Vec<Key> = Vec::new();
        let (mut depth, mut left) = (skip + limit + 1, LOOK_AT + skip + limit + 1);
        for part in parts.into_iter().skip_while(|part| *part != first) {
            loop {
                let room = limit + 1 - keys.len() as u64;
                let place = (part, after.as_ref());
                let step = self.step(walk, &branches, place, (skip, room), depth).await?;
                skip = skip.saturating_sub(step.found);
                keys.extend(step.keys);
                if keys.len() as u64 > limit {
                    keys.truncate(limit as usize);
                    let last = keys.last().map(|key| key.position.clone());
                    return Ok((keys, Some(Cursor { after: last, skip: 0 })));
                }
                if step.looked_at < depth {
                    break;
                }
                after = step.last;
                left = left.saturating_sub(step.looked_at);
                if left == 0 {
                    return Ok((keys, Some(Cursor { after, skip })));
                }
                depth = (depth * GROWTH).min(left);
            }
            after = None;
        }
        Ok((keys, None))
    }

    /// One statement of a walk: looks at `depth` rows, passes over the first of those that are
    /// wanted, and answers as many of the others as there is room for.
    async fn step(
        &self,
        walk: &Walk<'_>,
        branches: &[Branch],
        place: (Part, Option<&Position>),
        (skip, room): (u64, u64),
        depth: u64,
    ) -> Result<Step, StoreError> {
        if branches.is_empty() {
            return Ok(Step { keys: Vec::new(), looked_at: 0, found: 0, last: None });
        }
        let dialect = self.dialect();
        let mut values = Values::default();
        let rows: Vec<String> = branches
            .iter()
            .map(|branch| walk.rows(dialect, branch, Some(place), depth, &mut values))
            .collect();
        let rows = rows.join(" UNION ALL ");
        let placed = dialect.time_text("created_at");
        let sql = format!(
            "WITH passed AS MATERIALIZED ( \
               SELECT created_at, id, is_wanted FROM ({rows}) AS merged \
               ORDER BY created_at, id LIMIT {depth}) \
             SELECT page.id, page.placed, ends.looked_at, ends.found, last.last_id, last.last_placed \
             FROM (SELECT count(*) AS looked_at, count(CASE WHEN is_wanted THEN 1 END) AS found \
                   FROM passed) AS ends \
             LEFT JOIN (SELECT id AS last_id, {placed} AS last_placed FROM passed \
                        ORDER BY created_at DESC, id DESC LIMIT 1) AS last ON TRUE \
             LEFT JOIN (SELECT id, created_at, {placed} AS placed FROM passed WHERE is_wanted \
                        ORDER BY created_at, id LIMIT {room} OFFSET {skip}) AS page ON TRUE \
             ORDER BY page.created_at, page.id"
        );
        let found = self.operators.query_all_raw(self.statement(sql, values)).await?;
        let position = |row: &QueryResult, id: &str, placed: &str| {
            let id: Option<Uuid> = row.try_get("", id)?;
            let created_at: Option<String> = row.try_get("", placed)?;
            Ok::<_, StoreError>(id.map(|id| Position { created_at, id }))
        };
        let Some(first) = found.first() else {
            return Ok(Step { keys: Vec::new(), looked_at: 0, found: 0, last: None });
        };
        let number = |column: &str| Ok::<_, StoreError>(first.try_get::<i64>("", column)?);
        let (looked_at, wanted) = (number("looked_at")?, number("found")?);
        let last = position(first, "last_id", "last_placed")?;
        let mut keys = Vec::with_capacity(found.len());
        for row in &found {
            if let Some(position) = position(row, "id", "placed")? {
                keys.push(Key { id: position.id, position });
            }
        }
        Ok(Step { keys, looked_at: looked_at.unsigned_abs(), found: wanted.unsigned_abs(), last })
    }

    /// Counts the nodes of a walk, among `most` at most.
    pub(super) async fn count_up_to(
        &self,
        walk: &Walk<'_>,
        most: u64,
    ) -> Result<Counted, StoreError> {
        let branches = self.branches(walk).await?;
        let counted = self.count_together(walk, &branches, most + 1).await?;
        let (looked_at, found) = counted;
        Ok(Counted { found, is_all: looked_at <= most })
    }

    /// The rows of the branches, `most` at most, and how many of them are wanted.
    pub(super) async fn count_together(
        &self,
        walk: &Walk<'_>,
        branches: &[Branch],
        most: u64,
    ) -> Result<(u64, u64), StoreError> {
        if branches.is_empty() {
            return Ok((0, 0));
        }
        let dialect = self.dialect();
        let mut values = Values::default();
        let rows: Vec<String> = branches
            .iter()
            .map(|branch| walk.rows(dialect, branch, None, most, &mut values))
            .collect();
        let rows = rows.join(" UNION ALL ");
        let sql = format!(
            "SELECT count(*) AS looked_at, count(CASE WHEN is_wanted THEN 1 END) AS found \
             FROM (SELECT is_wanted FROM ({rows}) AS merged LIMIT {most}) AS counted"
        );
        let row = self.operators.query_one_raw(self.statement(sql, values)).await?;
        let Some(row) = row else { return Ok((0, 0)) };
        let number = |column: &str| row.try_get::<i64>("", column).map(i64::unsigned_abs);
        Ok((number("looked_at")?, number("found")?))
    }

    /// The branches of a walk: the statuses that there are, or the one that is wanted, of each owner
    /// that the scope means.
    pub(super) async fn branches(&self, walk: &Walk<'_>) -> Result<Vec<Branch>, StoreError> {
        let mut branches = Vec::new();
        for owner in owners(walk.scope) {
            let statuses = match walk.status {
                Some(status) => vec![status.as_str().to_owned()],
                None => self.statuses(&owner).await?,
            };
            let branch = |status| Branch { owner: owner.clone(), status };
            branches.extend(statuses.into_iter().map(branch));
        }
        Ok(branches)
    }

    /// The statuses that nodes of an owner have: each is one step in an index.
    async fn statuses(&self, owner: &Owner) -> Result<Vec<String>, StoreError> {
        let mut values = Values::default();
        let (of_owner, order, index) = match owner {
            Owner::Anyone => ("TRUE".to_owned(), "", "vecmill_nodes_status"),
            Owner::Nobody => ("tenant_id IS NULL".to_owned(), "tenant_id, ", "vecmill_nodes_tenant"),
            Owner::Tenant(name) => {
                let of_owner = format!("tenant_id = {}", values.add(name));
                (of_owner, "tenant_id, ", "vecmill_nodes_tenant")
            }
        };
        let from = match self.dialect() {
            Dialect::Postgres => "nodes".to_owned(),
            Dialect::Sqlite => format!("nodes INDEXED BY {index}"),
        };
        let next = |behind: &str| {
            format!(
                "(SELECT embedding_status FROM {from} WHERE {of_owner} {behind} \
                 ORDER BY {order}embedding_status LIMIT 1)"
            )
        };
        let (first, next) = (next(""), next("AND embedding_status > found.status"));
        let sql = format!(
            "WITH RECURSIVE found(status) AS (SELECT {first} UNION ALL \
               SELECT {next} FROM found WHERE found.status IS NOT NULL) \
             SELECT status FROM found WHERE status IS NOT NULL LIMIT {STATUSES_MAX}"
        );
        let rows = self.operators.query_all_raw(self.statement(sql, values)).await?;
        Ok(rows.iter().map(|row| row.try_get("", "status")).collect::<Result<_, _>>()?)
    }

    fn statement(&self, sql: String, values: Values) -> Statement {
        Statement::from_sql_and_values(self.operators.get_database_backend(), sql, values.0)
    }
}

/// That no vector of the current text is stored, in the words of the indexes.
fn lacks_current() -> String {
    format!("(embedding IS NULL OR embedding_source_hash = '{STALE}')")
}

fn owners(scope: &TenantScope) -> Vec<Owner> {
    match scope.tenant() {
        None => vec![Owner::Anyone],
        Some(tenant) => {
            let mut owners = vec![Owner::Tenant(tenant.as_str().to_owned())];
            if *tenant == TenantId::default() {
                owners.push(Owner::Nobody);
            }
            owners
        }
    }
}

fn part_of(position: &Position) -> Part {
    match position.created_at {
        Some(_) => Part::Dated,
        None => Part::Undated,
    }
}

/// Postgres reads the time of a position; SQLite holds any text.
fn check_position(dialect: Dialect, position: Option<&Position>) -> Result<(), StoreError> {
    let time = position.and_then(|position| position.created_at.as_deref());
    let is_time = |text: &str| {
        matches!(text, "infinity" | "-infinity") || DateTime::parse_from_rfc3339(text).is_ok()
    };
    match (dialect, time) {
        (Dialect::Postgres, Some(text)) if !is_time(text) => Err(StoreError::Cursor),
        _ => Ok(()),
    }
}
