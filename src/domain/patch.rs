//! What a client changes in a node, by the rules of JSON merge patch (RFC 7396).

use serde_json::{Map, Value};

/// Changes to a node. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodePatch {
    /// Merged into the properties.
    pub props: Option<Map<String, Value>>,
    /// Merged into the metadata; `null` makes it an empty object.
    pub metadata: Option<Value>,
    /// Where the text lies from now on; an empty string: nowhere but in the properties.
    pub payload_ref: Option<String>,
}

/// The fields of a node that a client may change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Editable {
    /// Its properties; the text is among them.
    pub props: Map<String, Value>,
    /// Free-form JSON that Vecmill only stores.
    pub metadata: Option<Value>,
    /// Where its text lies, when it is not in `props`.
    pub payload_ref: Option<String>,
}

impl NodePatch {
    /// The fields as they are after this change.
    pub fn apply(&self, mut fields: Editable) -> Editable {
        if let Some(props) = &self.props {
            merge_object(&mut fields.props, props);
        }
        if let Some(metadata) = &self.metadata {
            let mut merged = fields.metadata.take().unwrap_or(Value::Null);
            merge(&mut merged, metadata);
            // The column of an older database holds no null.
            fields.metadata = Some(match merged {
                Value::Null => Value::Object(Map::new()),
                merged => merged,
            });
        }
        if let Some(place) = &self.payload_ref {
            fields.payload_ref = Some(place.clone()).filter(|place| !place.is_empty());
        }
        fields
    }
}

/// Applies a JSON merge patch as RFC 7396 defines it: the members of an object are merged one by
/// one, a member that is `null` is removed, anything else takes the place of what was there.
///
/// It recurses as deep as `patch` is, which the parser of a request bounds.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        merge_object(target, patch);
    }
}

fn merge_object(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    let is_removed = |name: &String| patch.get(name).is_some_and(Value::is_null);
    if patch.values().any(Value::is_null) {
        // In one pass, in which the others keep their order: one by one, each would move all behind it.
        target.retain(|name, _| !is_removed(name));
    }
    for (name, value) in patch.iter().filter(|(_, value)| !value.is_null()) {
        merge(target.entry(name.as_str()).or_insert(Value::Null), value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut target: Value, patch: &Value) -> Value {
        merge(&mut target, patch);
        target
    }

    #[test]
    fn the_examples_of_the_rfc_come_out_as_it_says() {
        // RFC 7396, appendix A.
        for (original, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(merged(original.clone(), &patch), result, "{original} patched by {patch}");
        }
        // Section 3 of the same.
        let document = json!({
            "title": "Goodbye!",
            "author": {"givenName": "John", "familyName": "Doe"},
            "tags": ["example", "sample"],
            "content": "This will be unchanged"
        });
        let patch = json!({
            "title": "Hello!",
            "phoneNumber": "+01-123-456-7890",
            "author": {"familyName": null},
            "tags": ["example"]
        });
        let result = json!({
            "title": "Hello!",
            "author": {"givenName": "John"},
            "tags": ["example"],
            "content": "This will be unchanged",
            "phoneNumber": "+01-123-456-7890"
        });
        assert_eq!(merged(document, &patch), result);
    }

    #[test]
    fn members_that_stay_keep_their_order() {
        let patched = merged(json!({"z": 1, "y": 2, "x": 3}), &json!({"z": null, "a": 4}));
        assert_eq!(patched.to_string(), r#"{"y":2,"x":3,"a":4}"#);
    }

    #[test]
    fn what_a_patch_does_not_name_stays() {
        let fields = Editable {
            props: Map::from_iter([("text".to_owned(), json!("a"))]),
            metadata: Some(json!({"k": 1})),
            payload_ref: Some("file:///a".to_owned()),
        };
        assert_eq!(NodePatch::default().apply(fields.clone()), fields);
        let removing = NodePatch {
            props: None,
            metadata: Some(Value::Null),
            payload_ref: Some(String::new()),
        };
        let bare = Editable { metadata: Some(json!({})), payload_ref: None, ..fields.clone() };
        assert_eq!(removing.apply(fields), bare);
        let nested =
            NodePatch { metadata: Some(json!({"a": {"b": null}})), ..NodePatch::default() };
        assert_eq!(nested.apply(bare).metadata, Some(json!({"a": {}})));
    }
}
