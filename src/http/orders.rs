//! From a parsed body to what an operator wants done with many nodes.

use serde_json::Value;
use uuid::Uuid;

use super::{
    body::FromBody,
    cursor,
    fields::{Fields, Invalid},
    limits::{HttpConfig, REQUEUE_MAX},
    types::{RefreshRequest, RequeueRequest},
};
use crate::{
    domain::{NodeStatus, TenantId, TenantScope},
    store::RequeueFilter,
};

/// The fields of a requeue.
const REQUEUE: [&str; 7] = [
    "tenant_id",
    "node_ids",
    "status",
    "only_missing_embedding",
    "backfill_ready",
    "limit",
    "cursor",
];
/// The fields of a refresh of many nodes.
const REFRESH: [&str; 2] = ["node_ids", "tenant_id"];

/// What an operator asked to have enqueued.
#[derive(Debug)]
pub struct RequeueOrder {
    /// Which nodes.
    pub filter: RequeueFilter,
    /// Whether nodes with a vector are marked `ready` first.
    pub backfill_ready: bool,
}

impl FromBody for RequeueOrder {
    type Schema = RequeueRequest;

    fn from_body(body: Value, _config: &HttpConfig) -> Result<Self, Invalid> {
        let mut fields = Fields::of(body, "")?.only(&REQUEUE)?;
        let node_ids = read_node_ids(fields.array("node_ids")?.unwrap_or_default())?;
        let from = cursor::field(fields.any("cursor"))?;
        if from.is_some() && node_ids.is_some() {
            return Err(Invalid::new("cursor", "must not be given together with node_ids"));
        }
        let status = match fields.given("status") {
            // Who names nodes means them, whatever their status.
            None => Some(NodeStatus::Failed).filter(|_| node_ids.is_none()),
            Some(status) => read_status(&status)?,
        };
        Ok(Self {
            filter: RequeueFilter {
                scope: TenantScope::from_optional(fields.tenant("tenant_id")?),
                node_ids,
                status,
                only_missing_embedding: fields.boolean("only_missing_embedding")?.unwrap_or(false),
                limit: fields.clamped("limit", 1, REQUEUE_MAX)?.unwrap_or(REQUEUE_MAX),
                from: from.unwrap_or_default(),
            },
            backfill_ready: fields.boolean("backfill_ready")?.unwrap_or(true),
        })
    }
}

/// The one status that is meant; none means any.
fn read_status(value: &Value) -> Result<Option<NodeStatus>, Invalid> {
    let rule = "must be queued, processing, ready, failed, skipped or all";
    let invalid = || Invalid::new("status", rule);
    match value {
        Value::Null => Ok(None),
        Value::String(name) if name.eq_ignore_ascii_case("all") => Ok(None),
        Value::String(name) => name.parse().map(Some).map_err(|_| invalid()),
        _ => Err(invalid()),
    }
}

/// A list that names nobody is none.
fn read_node_ids(items: Vec<Value>) -> Result<Option<Vec<Uuid>>, Invalid> {
    let max = REQUEUE_MAX as usize;
    if items.len() > max {
        return Err(Invalid::new("node_ids", format!("must hold {max} ids at most")));
    }
    let ids = items.iter().enumerate().map(|(index, item)| {
        let id = item.as_str().and_then(|id| id.parse().ok());
        id.ok_or_else(|| Invalid::new(format!("node_ids[{index}]"), "must be a UUID"))
    });
    let ids: Vec<Uuid> = ids.collect::<Result<_, _>>()?;
    Ok(Some(ids).filter(|ids| !ids.is_empty()))
}

/// What an operator asked to have embedded again.
#[derive(Debug)]
pub struct RefreshOrder {
    /// Whose nodes, if the body says so.
    pub tenant_id: Option<TenantId>,
    /// These nodes; all that are due when `None`.
    pub node_ids: Option<Vec<Uuid>>,
}

impl FromBody for RefreshOrder {
    type Schema = RefreshRequest;

    fn from_body(body: Value, _config: &HttpConfig) -> Result<Self, Invalid> {
        let (items, tenant_id) = match body {
            Value::Null => (Vec::new(), None),
            Value::Array(items) => (items, None),
            body => {
                let mut fields = Fields::of(body, "")?.only(&REFRESH)?;
                (fields.array("node_ids")?.unwrap_or_default(), fields.tenant("tenant_id")?)
            }
        };
        Ok(Self { tenant_id, node_ids: read_node_ids(items)? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::store::Cursor;

    fn requeue(body: Value) -> Result<RequeueOrder, String> {
        RequeueOrder::from_body(body, &HttpConfig::default()).map_err(|invalid| invalid.to_string())
    }

    fn field_of(error: &str) -> &str {
        error.split_once(": ").unwrap().0
    }

    #[test]
    fn the_requeue_of_the_runbook_is_understood() {
        let order = requeue(json!({"tenant_id": "default", "status": "queued",
            "only_missing_embedding": true, "backfill_ready": true, "limit": 2000}))
        .unwrap();
        assert_eq!(order.filter.scope, TenantScope::One(TenantId::default()));
        assert_eq!(order.filter.status, Some(NodeStatus::Queued));
        assert!(order.filter.only_missing_embedding && order.backfill_ready);

        let order = requeue(json!({})).unwrap();
        assert_eq!(order.filter.scope, TenantScope::All);
        assert_eq!((order.filter.status, order.filter.limit), (Some(NodeStatus::Failed), 2000));
        assert!(!order.filter.only_missing_embedding && order.backfill_ready);
    }

    #[test]
    fn a_requeue_means_what_clients_of_activekg_mean() {
        let filter = |body| requeue(body).unwrap().filter;
        let id = Uuid::new_v4();
        for body in [
            json!({"status": "all"}),
            json!({"status": "All"}),
            json!({"status": null}),
            json!({"node_ids": [id]}),
        ] {
            assert_eq!(filter(body.clone()).status, None, "{body}");
        }
        for body in [json!({}), json!({"node_ids": []}), json!({"node_ids": null})] {
            let filter = filter(body.clone());
            assert_eq!(
                (filter.status, filter.node_ids),
                (Some(NodeStatus::Failed), None),
                "{body}"
            );
        }
        let named = filter(json!({"node_ids": [id], "status": "queued", "tenant_id": ""}));
        assert_eq!((named.status, named.scope), (Some(NodeStatus::Queued), TenantScope::All));
        for (limit, taken) in [(0, 1), (-3, 1), (2001, 2000)] {
            assert_eq!(filter(json!({"limit": limit})).limit, taken);
        }
    }

    #[test]
    fn a_requeue_goes_on_where_another_ended() {
        let from = |body| requeue(body).unwrap().filter.from;
        let cursor = Cursor { after: None, skip: 7 };
        assert_eq!(from(json!({"cursor": cursor::written(&cursor)})), cursor);
        assert_eq!(from(json!({"cursor": null})), Cursor::default());
    }

    #[test]
    fn a_refresh_is_asked_for_in_three_ways() {
        let refresh = |body| RefreshOrder::from_body(body, &HttpConfig::default());
        let id = Uuid::new_v4();
        for body in [json!([id]), json!({"node_ids": [id]})] {
            assert_eq!(refresh(body).unwrap().node_ids, Some(vec![id]));
        }
        for body in [json!(null), json!([]), json!({}), json!({"node_ids": []})] {
            assert_eq!(refresh(body).unwrap().node_ids, None);
        }
        let of_one = refresh(json!({"tenant_id": "acme"})).unwrap();
        assert_eq!(of_one.tenant_id.unwrap().as_str(), "acme");
        for (field, body) in [
            ("ids", json!({"ids": [id]})),
            ("node_ids[0]", json!(["x"])),
            ("node_ids", json!(vec![id; 2001])),
            ("body", json!("all")),
        ] {
            assert_eq!(field_of(&refresh(body).unwrap_err().to_string()), field);
        }
    }

    #[test]
    fn every_rule_of_a_requeue_names_its_field() {
        for (field, body) in [
            ("status", json!({"status": "done"})),
            ("tenant", json!({"tenant": "acme"})),
            ("status", json!({"status": ""})),
            ("limit", json!({"limit": 1.5})),
            ("limit", json!({"limit": "5"})),
            ("node_ids", json!({"node_ids": "x"})),
            ("node_ids[0]", json!({"node_ids": ["x"]})),
            ("only_missing_embedding", json!({"only_missing_embedding": "yes"})),
            ("tenant_id", json!({"tenant_id": "\0"})),
            ("cursor", json!({"cursor": "x"})),
            ("cursor", json!({"cursor": 1})),
            ("cursor", json!({"cursor": "WzAsbnVsbCxudWxsXQ", "node_ids": [Uuid::nil()]})),
            ("body", json!(null)),
        ] {
            assert_eq!(field_of(&requeue(body).unwrap_err()), field);
        }
    }

    #[test]
    fn what_an_operator_says_is_understood_or_refused_whoever_the_clients_are() {
        let config = HttpConfig { activekg: true, ..HttpConfig::default() };
        assert!(RequeueOrder::from_body(json!({"tenant": "acme"}), &config).is_err());
        assert!(RefreshOrder::from_body(json!({"tenant": "acme"}), &config).is_err());
    }
}
