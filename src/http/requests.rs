//! From a parsed body to nodes and changes of nodes: every rule on their content is here.

use serde_json::Value;
use uuid::Uuid;

use super::{
    body::FromBody,
    fields::{Fields, Invalid, refuse_nul},
    limits::{CLASS_MAX_CHARS, CLASSES_MAX, HttpConfig},
    types::{BatchRequest, NodeRequest, PatchRequest},
};
use crate::{
    domain::{NewNode, NodePatch, TenantId, node::json_bytes},
    store::OnRefusal,
};

/// What a client of ActiveKG may say of a node, or of a batch of them, that means nothing here.
const IGNORED: [&str; 2] = ["extract", "extract_before_embed"];
/// The fields of a node.
const NODE: [&str; 7] =
    ["classes", "props", "payload_ref", "metadata", "refresh_policy", "triggers", "tenant_id"];
/// The fields of a batch.
const BATCH: [&str; 3] = ["nodes", "tenant_id", "continue_on_error"];
/// The fields of a change.
const PATCH: [&str; 3] = ["props", "metadata", "payload_ref"];

/// The fields of a node, a batch or a change. What is not known is refused, unless clients that
/// may say more than we understand are to be served.
fn node_fields(
    value: Value,
    path: &str,
    known: &[&str],
    config: &HttpConfig,
) -> Result<Fields, Invalid> {
    let mut fields = Fields::of(value, path)?;
    if config.activekg {
        return Ok(fields);
    }
    for name in IGNORED {
        fields.any(name);
    }
    fields.only(known)
}

/// Reads the node at `path` in the body. The tenant of its batch, if that has one, owns it, whatever
/// it says itself.
fn read_node(
    value: Value,
    path: &str,
    of_batch: Option<&TenantId>,
    config: &HttpConfig,
) -> Result<NewNode, Invalid> {
    refuse_nul(&value, path)?;
    let mut fields = node_fields(value, path, &NODE, config)?;
    let classes = read_classes(&mut fields)?;
    let props_path = fields.path("props");
    let Value::Object(props) = fields.required("props")? else {
        return Err(Invalid::new(props_path, "must be an object"));
    };
    let own = fields.tenant("tenant_id")?;
    let node = NewNode {
        id: Uuid::new_v4(),
        tenant_id: of_batch.cloned().or(own).unwrap_or_default(),
        classes,
        props,
        payload_ref: fields.string("payload_ref")?.filter(|place| !place.is_empty()),
        metadata: fields.any("metadata"),
        refresh_policy: fields.any("refresh_policy"),
        triggers: fields.any("triggers"),
    };
    let json = (&node.props, &node.metadata, &node.refresh_policy, &node.triggers);
    if json_bytes(&json) > config.node_bytes {
        return Err(Invalid::too_large(path, config.node_bytes));
    }
    Ok(node)
}

fn read_classes(fields: &mut Fields) -> Result<Vec<String>, Invalid> {
    let path = fields.path("classes");
    let invalid = || {
        let rule =
            format!("must be 1 to {CLASSES_MAX} strings of 1 to {CLASS_MAX_CHARS} characters");
        Invalid::new(&path, rule)
    };
    let Value::Array(items) = fields.required("classes")? else { return Err(invalid()) };
    if items.is_empty() || items.len() > CLASSES_MAX {
        return Err(invalid());
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(class) if (1..=CLASS_MAX_CHARS).contains(&class.chars().count()) => {
                Ok(class)
            }
            _ => Err(invalid()),
        })
        .collect()
}

impl FromBody for NewNode {
    type Schema = NodeRequest;

    fn from_body(body: Value, config: &HttpConfig) -> Result<Self, Invalid> {
        read_node(body, "", None, config)
    }
}

impl FromBody for NodePatch {
    type Schema = PatchRequest;

    const CONTENT_TYPES: &'static [&'static str] =
        &["application/json", "application/merge-patch+json"];

    fn from_body(body: Value, config: &HttpConfig) -> Result<Self, Invalid> {
        refuse_nul(&body, "")?;
        let mut fields = node_fields(body, "", &PATCH, config)?;
        let props = match fields.given("props") {
            None => None,
            Some(Value::Object(props)) => Some(props),
            Some(_) => return Err(Invalid::new("props", "must be an object")),
        };
        let payload_ref = match fields.given("payload_ref") {
            None => None,
            Some(Value::Null) => Some(String::new()),
            Some(Value::String(place)) => Some(place),
            Some(_) => return Err(Invalid::new("payload_ref", "must be a string or null")),
        };
        let patch = Self { props, metadata: fields.given("metadata"), payload_ref };
        if patch == Self::default() {
            let rule = "must hold at least one of props, metadata and payload_ref";
            return Err(Invalid::new("", rule));
        }
        Ok(patch)
    }
}

/// A node of a batch that cannot be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedNode {
    /// Which field is wrong, and what it must be.
    pub error: Invalid,
    /// The tenant it was meant for, as far as that can be told.
    pub tenant_id: TenantId,
}

/// The nodes of a batch, each read or refused, in the order of the request.
#[derive(Debug)]
pub struct NodeBatch {
    /// Each read or refused.
    pub nodes: Vec<Result<NewNode, RefusedNode>>,
    /// What becomes of the others when the database refuses some.
    pub on_refusal: OnRefusal,
}

impl FromBody for NodeBatch {
    type Schema = BatchRequest;

    fn from_body(body: Value, config: &HttpConfig) -> Result<Self, Invalid> {
        let mut fields = node_fields(body, "", &BATCH, config)?;
        let tenant = fields.tenant("tenant_id")?;
        let continue_on_error = fields.boolean("continue_on_error")?.unwrap_or(true);
        let Value::Array(items) = fields.required("nodes")? else {
            return Err(Invalid::new("nodes", "must be an array"));
        };
        if items.is_empty() || items.len() > config.batch_max {
            let (max, got) = (config.batch_max, items.len());
            let rule = format!("must hold 1 to {max} nodes (NODE_BATCH_MAX), but holds {got}");
            return Err(Invalid::new("nodes", rule));
        }
        let mut nodes = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let own = item.get("tenant_id").and_then(Value::as_str);
            let own = own.and_then(|name| TenantId::new(name).ok());
            let node = read_node(item, &format!("nodes[{index}]"), tenant.as_ref(), config);
            let node = node.map_err(|error| RefusedNode {
                error,
                tenant_id: tenant.clone().or(own).unwrap_or_default(),
            });
            match node {
                Err(refused) if !continue_on_error => return Err(refused.error),
                node => nodes.push(node),
            }
        }
        let on_refusal = match continue_on_error {
            true => OnRefusal::KeepOthers,
            false => OnRefusal::KeepNone,
        };
        Ok(Self { nodes, on_refusal })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn node(body: Value) -> Result<NewNode, String> {
        NewNode::from_body(body, &HttpConfig::default()).map_err(|invalid| invalid.to_string())
    }

    fn batch(body: Value) -> Result<NodeBatch, String> {
        let config = HttpConfig { batch_max: 3, ..HttpConfig::default() };
        NodeBatch::from_body(body, &config).map_err(|invalid| invalid.to_string())
    }

    fn patch(body: Value) -> Result<NodePatch, String> {
        NodePatch::from_body(body, &HttpConfig::default()).map_err(|invalid| invalid.to_string())
    }

    fn field_of(error: &str) -> &str {
        error.split_once(": ").unwrap().0
    }

    #[test]
    fn a_node_is_taken_as_it_was_sent() {
        let read = node(json!({
            "classes": ["é".repeat(100)], "props": {"text": "x", "n": 1.50}, "payload_ref": "",
            "metadata": [1], "triggers": null, "tenant_id": "acme", "extract": false,
            "extract_before_embed": null,
        }))
        .unwrap();
        assert_eq!(read.tenant_id.as_str(), "acme");
        assert_eq!(read.props["text"], "x");
        assert_eq!(read.metadata, Some(json!([1])));
        assert_eq!((read.payload_ref, read.triggers), (None, None));
    }

    #[test]
    fn every_rule_of_a_node_names_its_field() {
        let with = |name: &str, value: Value| {
            let mut body = json!({"classes": ["a"], "props": {}});
            body[name] = value;
            body
        };
        let cases = [
            ("classes", json!({"props": {}})),
            ("classes", with("classes", json!([]))),
            ("classes", with("classes", json!("a"))),
            ("classes", with("classes", json!(vec!["a"; 11]))),
            ("classes", with("classes", json!([""]))),
            ("classes", with("classes", json!([1]))),
            ("classes", with("classes", json!(["é".repeat(101)]))),
            ("classes[0]", with("classes", json!(["a\0"]))),
            ("props", json!({"classes": ["a"]})),
            ("props", with("props", json!([]))),
            ("props", with("props", json!("text"))),
            ("props.a[0]", with("props", json!({"a": ["\0"]}))),
            ("payload_ref", with("payload_ref", json!(1))),
            ("tenant_id", with("tenant_id", json!(7))),
            ("tenant_id", with("tenant_id", json!("x".repeat(201)))),
            ("tenant", with("tenant", json!("acme"))),
            ("body", json!([])),
        ];
        for (field, body) in cases {
            let error = node(body.clone()).unwrap_err();
            assert_eq!(field_of(&error), field, "{body}: {error}");
        }
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let read = patch(json!({"props": {"a": null}, "extract": true})).unwrap();
        assert_eq!((read.props.unwrap()["a"].clone(), read.metadata), (Value::Null, None));
        assert_eq!(read.payload_ref, None);
        let read = patch(json!({"metadata": null, "payload_ref": null})).unwrap();
        assert_eq!((read.props, read.metadata), (None, Some(Value::Null)));
        assert_eq!(read.payload_ref.as_deref(), Some(""));
        assert_eq!(patch(json!({"payload_ref": "a"})).unwrap().payload_ref.as_deref(), Some("a"));
    }

    #[test]
    fn every_rule_of_a_patch_names_its_field() {
        for (field, body) in [
            ("body", json!({})),
            ("classes", json!({"classes": ["a"], "props": {}})),
            ("body", json!({"extract": true})),
            ("body", json!(null)),
            ("props", json!({"props": null})),
            ("props", json!({"props": []})),
            ("props", json!({"props": "text"})),
            ("props.a[0]", json!({"props": {"a": ["\0"]}})),
            ("metadata", json!({"metadata": {"\0": 1}})),
            ("payload_ref", json!({"payload_ref": 1})),
            ("payload_ref", json!({"payload_ref": "a\0"})),
        ] {
            assert_eq!(field_of(&patch(body).unwrap_err()), field);
        }
    }

    #[test]
    fn an_invalid_node_harms_only_itself_and_keeps_its_place() {
        let NodeBatch { nodes, .. } = batch(json!({"tenant_id": "acme", "nodes": [
            {"classes": ["a"], "props": {}, "tenant_id": "own"},
            {"classes": [], "props": {}},
            7,
        ]}))
        .unwrap();
        assert_eq!(nodes[0].as_ref().unwrap().tenant_id.as_str(), "acme");
        for (index, field) in [(1, "nodes[1].classes"), (2, "nodes[2]")] {
            let refused = nodes[index].as_ref().unwrap_err();
            assert_eq!((refused.error.field.as_str(), refused.tenant_id.as_str()), (field, "acme"));
        }
    }

    #[test]
    fn without_continue_on_error_the_first_invalid_node_fails_the_batch() {
        let good = json!({"classes": ["a"], "props": {}});
        let error =
            batch(json!({"continue_on_error": false, "nodes": [good, {"props": {}}]})).unwrap_err();
        assert_eq!(error, "nodes[1].classes: is missing");
    }

    #[test]
    fn the_batch_itself_is_checked() {
        let good = json!({"classes": ["a"], "props": {}});
        for (field, body) in [
            ("nodes", json!({})),
            ("nodes", json!({"nodes": []})),
            ("nodes", json!({"nodes": {}})),
            ("nodes", json!({"nodes": [good, good, good, good]})),
            ("continue_on_error", json!({"nodes": [good], "continue_on_error": 1})),
            ("tenant_id", json!({"nodes": [good], "tenant_id": 1})),
            ("tenant", json!({"nodes": [good], "tenant": "acme"})),
        ] {
            assert_eq!(field_of(&batch(body).unwrap_err()), field);
        }
    }

    #[test]
    fn with_clients_of_activekg_unknown_fields_of_nodes_are_ignored() {
        let config = HttpConfig { activekg: true, ..HttpConfig::default() };
        let good = json!({"classes": ["a"], "props": {}, "score": 1});
        assert!(NewNode::from_body(good.clone(), &config).is_ok());
        assert!(NodePatch::from_body(json!({"props": {}, "score": 1}), &config).is_ok());
        let batch = NodeBatch::from_body(json!({"nodes": [good], "score": 1}), &config).unwrap();
        assert!(batch.nodes[0].is_ok());
    }
}
