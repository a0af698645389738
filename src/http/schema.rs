//! The OpenAPI document: what the framework makes of the calls, and what it cannot say.

use serde_json::{Value, json};

/// How a request can fail before its call sees it: whether it is for a call that writes only, the
/// status, and what the status says.
const BEFORE_ITS_CALL: [(bool, &str, &str); 4] = [
    (false, "400", "The request is malformed: it names no host, or its body is not JSON."),
    (true, "403", "A web page of another site may not write here."),
    (false, "421", "The Host of the request is not a name of this server."),
    (false, "422", "The request is well-formed but invalid; the detail names the field."),
];

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

/// Adds the failures of [`BEFORE_ITS_CALL`] to every call that does not have them.
fn add_common_failures(document: &mut Value) {
    // Any answer has it.
    let request_id =
        document["paths"]["/health"]["get"]["responses"]["200"]["headers"]["X-REQUEST-ID"].clone();
    for (method, call) in members_mut(&mut document["paths"]).flat_map(named_members_mut) {
        let Some(responses) = call["responses"].as_object_mut() else { continue };
        for (of_writes, status, description) in BEFORE_ITS_CALL {
            if of_writes && method == "get" {
                continue;
            }
            responses.entry(status).or_insert_with(|| {
                json!({
                    "description": description,
                    "content": { "application/json; charset=utf-8": {
                        "schema": { "$ref": "#/components/schemas/Error" }
                    }},
                    "headers": { "X-REQUEST-ID": request_id }
                })
            });
        }
        responses.sort_keys();
    }
}

fn members(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_object().into_iter().flat_map(|members| members.values())
}

fn named_members_mut(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flat_map(|members| members.iter_mut())
}

fn members_mut(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    named_members_mut(value).map(|(_, member)| member)
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
