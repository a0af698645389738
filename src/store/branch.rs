//! The parts of a walk, each of which is a range of an index, and their SQL.

use sea_orm::Value;

use super::{
    Position,
    dialect::{Dialect, STALE},
};
use crate::domain::{NodeStatus, TenantId, TenantScope};

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

/// Nodes of one status, and of one owner if that matters.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) owner: Owner,
    pub(super) status: String,
}

#[derive(Debug, Clone)]
pub(super) enum Owner {
    Anyone,
    Nobody,
    Tenant(String),
}

/// Rows with a time and rows without one are walked one after the other: no range of an index holds
/// "behind this time, or without one".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Dated,
    Undated,
}

/// Whose nodes a scope means.
pub(super) fn owners(scope: &TenantScope) -> Vec<Owner> {
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

/// The part in which a position is.
pub(super) fn part_of(position: &Position) -> Part {
    match position.created_at {
        Some(_) => Part::Dated,
        None => Part::Undated,
    }
}

/// The values of a statement under construction.
#[derive(Default)]
pub(super) struct Values(pub(super) Vec<Value>);

impl Values {
    /// Takes a value in; answers what stands for it.
    pub(super) fn add(&mut self, value: impl Into<Value>) -> String {
        self.0.push(value.into());
        format!("${}", self.0.len())
    }
}

impl Walk<'_> {
    /// The index that a branch goes by, and whether it leaves out what is not wanted.
    fn index(&self, branch: &Branch) -> (&'static str, bool) {
        let is_any = self.wants == Wants::Any;
        let by_tenant = !matches!(branch.owner, Owner::Anyone);
        let of_lacking =
            matches!(self.wants, Wants::Unembedded | Wants::NoCurrent) && !is_open(&branch.status);
        match (of_lacking, by_tenant) {
            (false, false) => ("vecmill_nodes_status", is_any),
            (false, true) => ("vecmill_nodes_tenant", is_any),
            (true, false) => ("vecmill_nodes_lacking", self.wants == Wants::NoCurrent),
            (true, true) => ("vecmill_nodes_tenant_lacking", self.wants == Wants::NoCurrent),
        }
    }

    /// Rows of a branch from behind a position, in order, as `created_at`, `id`, `is_wanted`.
    pub(super) fn rows(
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
            Wants::Any => "TRUE".to_owned(),
            Wants::NoCurrent if is_exact => "TRUE".to_owned(),
            Wants::Embedded => "(embedding IS NOT NULL)".to_owned(),
            Wants::Unembedded => "(embedding IS NULL)".to_owned(),
            Wants::NoCurrent => format!("coalesce({lacks}, FALSE)"),
        };
        let mut key = Vec::new();
        let mut conditions = match &branch.owner {
            Owner::Anyone => Vec::new(),
            Owner::Nobody => vec!["tenant_id IS NULL".to_owned()],
            Owner::Tenant(name) => {
                key.push(("tenant_id", values.add(name)));
                Vec::new()
            }
        };
        key.push(("embedding_status", values.add(branch.status.clone())));
        if index == "vecmill_nodes_status" {
            conditions.push(dialect.by_status().to_owned());
        }
        if index.ends_with("lacking") {
            // As the index has it, so that it is known to hold all that is wanted.
            conditions.push("embedding_status NOT IN ('queued', 'processing')".to_owned());
            conditions.push(lacks);
        }
        let mut behind = Vec::new();
        match place {
            None => {}
            Some((Part::Dated, None)) => conditions.push("created_at IS NOT NULL".to_owned()),
            Some((Part::Dated, Some(position))) => {
                conditions.push("created_at IS NOT NULL".to_owned());
                let at = values.add(position.created_at.clone().unwrap_or_default());
                behind = vec![("created_at", dialect.time(&at)), ("id", values.add(position.id))];
            }
            Some((Part::Undated, position)) => {
                conditions.push("created_at IS NULL".to_owned());
                if let Some(position) = position {
                    conditions.push(format!("id > {}", values.add(position.id)));
                }
            }
        }
        // Whatever the planner of Postgres believes, only this index has the order of the range, from
        // its first column on. An equation would leave that column out of the order, and other indexes
        // with a sort or a filter would do as well. SQLite is told the index.
        let is_range = !matches!(branch.owner, Owner::Nobody)
            && !matches!(place, Some((Part::Undated, _)))
            && matches!(dialect, Dialect::Postgres);
        if is_range {
            conditions.push(format!("{} <= {}", row(&key, true), row(&key, false)));
            let sign = if behind.is_empty() { ">=" } else { ">" };
            key.append(&mut behind);
            conditions.push(format!("{} {sign} {}", row(&key, true), row(&key, false)));
        } else {
            conditions.extend(key.iter().map(|(column, value)| format!("{column} = {value}")));
            if !behind.is_empty() {
                conditions.push(format!("{} > {}", row(&behind, true), row(&behind, false)));
            }
        }
        let order = if matches!(branch.owner, Owner::Anyone) { "" } else { "tenant_id, " };
        format!(
            "SELECT * FROM (SELECT created_at, id, {is_wanted} AS is_wanted FROM {} \
             WHERE {} ORDER BY {order}embedding_status, created_at, id LIMIT {limit}) AS b",
            dialect.nodes_by(index),
            conditions.join(" AND ")
        )
    }
}

/// Some columns, or their values, as one.
fn row(key: &[(&'static str, String)], is_columns: bool) -> String {
    let part = |(column, value): &(&'static str, String)| match is_columns {
        true => (*column).to_owned(),
        false => value.clone(),
    };
    let parts: Vec<String> = key.iter().map(part).collect();
    format!("({})", parts.join(", "))
}

/// That no vector of the current text is stored, in the words of the indexes.
fn lacks_current() -> String {
    format!("(embedding IS NULL OR embedding_source_hash = '{STALE}')")
}

/// Whether an index of nodes without a current vector leaves those of this status out.
pub(super) fn is_open(status: &str) -> bool {
    OPEN.iter().any(|open| open.as_str() == status)
}
