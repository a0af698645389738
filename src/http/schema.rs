//! The OpenAPI document: what the framework makes of the calls, and what it cannot say.

use serde_json::{Value, json};

use super::errors::{RETRY_AFTER_MEANS, may_be_tried_again, meaning};

/// The statuses with which a request can fail before its call sees it: of any call, and of one that
/// writes. All but `/health` wait for the start to end.
const OF_ANY: [u16; 4] = [400, 421, 422, 503];
const OF_WRITES: [u16; 1] = [403];
const ALWAYS_THERE: &str = "/health";

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
    add_common_failures(&mut document);
    format!("{document:#}\n")
}

/// Adds the failures that a request can meet before its call sees it to every call that does not
/// have them.
fn add_common_failures(document: &mut Value) {
    // Any answer has it.
    let request_id =
        document["paths"][ALWAYS_THERE]["get"]["responses"]["200"]["headers"]["X-REQUEST-ID"]
            .clone();
    for (path, calls) in named_members_mut(&mut document["paths"]) {
        for (method, call) in named_members_mut(calls) {
            let Some(responses) = call["responses"].as_object_mut() else { continue };
            let of_writes = OF_WRITES.iter().filter(|_| method != "get");
            for &status in OF_ANY.iter().chain(of_writes) {
                if status == 503 && path == ALWAYS_THERE {
                    continue;
                }
                responses.entry(status.to_string()).or_insert_with(|| failure(status, &request_id));
            }
            responses.sort_keys();
        }
    }
}

fn failure(status: u16, request_id: &Value) -> Value {
    let mut headers = json!({ "X-REQUEST-ID": request_id });
    if may_be_tried_again(status) {
        headers["Retry-After"] = json!({
            "description": RETRY_AFTER_MEANS,
            "required": true,
            "deprecated": false,
            "schema": { "type": "integer", "format": "uint64" }
        });
    }
    json!({
        "description": meaning(status),
        "content": { "application/json; charset=utf-8": {
            "schema": { "$ref": "#/components/schemas/Error" }
        }},
        "headers": headers
    })
}

fn members(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_object().into_iter().flat_map(|members| members.values())
}

fn named_members_mut(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flat_map(|members| members.iter_mut())
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
