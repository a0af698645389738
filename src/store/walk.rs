//! The way of listings, counts and requeues through the table: oldest first, by indexes that have
//! this order.
//!
//! A walk merges one branch for each status (and owner), each of which is a range of an index. So it
//! reads as many rows as it passes, however many match. Where no index knows what is wanted, a step
//! looks at a bounded number of rows, and says where the next one goes on.

use chrono::DateTime;
use sea_orm::{ConnectionTrait, QueryResult, Statement};
use uuid::Uuid;

use super::{
    Cursor, Position, Store, StoreError,
    branch::{Branch, Owner, Part, Values, Walk, Wants, is_open, owners, part_of},
    dialect::Dialect,
};

/// Rows that one step looks at, at most, beyond those that it shows or passes over.
const LOOK_AT: u64 = 20_000;
/// By how much more rows are looked at each time when those before were not enough.
const GROWTH: u64 = 4;
/// Kinds of status that are told apart. There are five; another program may have more.
const STATUSES_MAX: usize = 16;

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
    pub(super) looked_at: u64,
    /// Whether there are no others.
    pub(super) is_all: bool,
}

/// What one statement saw.
struct Step {
    keys: Vec<Key>,
    looked_at: u64,
    found: u64,
    last: Option<Position>,
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
        let first = after.as_ref().map_or(parts[0], part_of);
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
        let mut branches = self.branches(walk).await?;
        let mut counted = Counted { found: 0, looked_at: 0, is_all: true };
        if walk.wants == Wants::Embedded {
            // Those that are done nearly all have a vector: an index knows those that have none.
            let done = branches.extract_if(.., |branch| !is_open(&branch.status));
            let done: Vec<Branch> = done.collect();
            let any = Walk { wants: Wants::Any, ..walk.clone() };
            let (all, _) = self.count_together(&any, &done, most + 1).await?;
            let without = Walk { wants: Wants::Unembedded, ..walk.clone() };
            let (_, without) = self.count_together(&without, &done, most + 1).await?;
            counted =
                Counted { found: all.saturating_sub(without), looked_at: all, is_all: all <= most };
        }
        let (looked_at, found) = self.count_together(walk, &branches, most + 1).await?;
        counted.found += found;
        counted.looked_at += looked_at;
        counted.is_all &= looked_at <= most;
        Ok(counted)
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
        let dialect = self.dialect();
        let status = "embedding_status";
        let (index, order) = match owner {
            Owner::Anyone => ("vecmill_nodes_status", ""),
            Owner::Nobody | Owner::Tenant(_) => ("vecmill_nodes_tenant", "tenant_id, "),
        };
        let (all, rest) = match (owner, dialect) {
            (Owner::Anyone, _) => {
                let all = dialect.by_status();
                (all.to_owned(), format!("{all} AND {status} > found.status"))
            }
            (Owner::Nobody, _) => {
                let all = "tenant_id IS NULL".to_owned();
                (all.clone(), format!("{all} AND {status} > found.status"))
            }
            // Not as an equation: see `Walk::rows`.
            (Owner::Tenant(name), Dialect::Postgres) => {
                let name = values.add(name);
                let all = format!("tenant_id >= {name} AND tenant_id <= {name}");
                let rest = format!(
                    "(tenant_id, {status}) > ({name}, found.status) AND tenant_id <= {name}"
                );
                (all, rest)
            }
            (Owner::Tenant(name), Dialect::Sqlite) => {
                let all = format!("tenant_id = {}", values.add(name));
                (all.clone(), format!("{all} AND {status} > found.status"))
            }
        };
        let next = |condition: &str| {
            format!(
                "(SELECT {status} FROM {} WHERE {condition} ORDER BY {order}{status} LIMIT 1)",
                dialect.nodes_by(index)
            )
        };
        let (first, next) = (next(&all), next(&rest));
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
