//! The OpenAPI document: what the framework makes of the calls, and what it cannot say.

use serde_json::{Value, json};

/// The document as pretty JSON with a newline at its end, from what the framework makes of it.
///
/// What a request may hold is closed: a field that it does not know is refused, and the document
/// says so.
pub fn finished(document: &str) -> String {
    let Ok(mut document) = serde_json::from_str::<Value>(document) else {
        // The framework writes JSON; what it wrote is shown as it is.
        return document.to_owned();
    };
    let mut open = Vec::new();
    for path in members(&document["paths"]) {
        for call in members(path) {
            references(&call["requestBody"], &mut open);
        }
    }
    let mut closed: Vec<String> = Vec::new();
    while let Some(name) = open.pop() {
        if closed.contains(&name) {
            continue;
        }
        let schema = &mut document["components"]["schemas"][&name];
        references(schema, &mut open);
        if schema["properties"].is_object() {
            schema["additionalProperties"] = json!(false);
        }
        closed.push(name);
    }
    format!("{document:#}\n")
}

fn members(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_object().into_iter().flat_map(|members| members.values())
}

/// The names of the schemas that a value refers to.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let schema = member.as_str().filter(|_| name == "$ref");
                match schema.and_then(|path| path.strip_prefix("#/components/schemas/")) {
                    Some(schema) => found.push(schema.to_owned()),
                    None => references(member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}
