//! Names that a request should not hold: refused with the nearest one that it may hold.

use std::borrow::Cow;

/// Characters of a client's own name that an answer repeats at most.
const SHOWN_MAX_CHARS: usize = 200;

/// How like each other two names are of which one is meant by the other.
const LIKE: f64 = 0.6;

/// Why `name` is refused, where only the names of `known` mean something.
pub fn unknown(name: &str, known: &[&str]) -> String {
    let likeness = |other: &str| {
        let (name, other) = (name.to_lowercase(), other.to_lowercase());
        match !name.is_empty() && other.contains(&name) {
            true => 1.0,
            false => strsim::jaro_winkler(&name, &other),
        }
    };
    // A name of megabytes is like none, and comparing it would take long.
    let is_short = name.chars().nth(SHOWN_MAX_CHARS).is_none();
    let nearest = known
        .iter()
        .filter(|other| is_short && likeness(other) >= LIKE)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .map_or(String::new(), |nearest| format!(", did you mean {nearest}?"));
    match known {
        [] => "is not known: nothing may be given here".to_owned(),
        known => format!("is not known{nearest} (known: {})", known.join(", ")),
    }
}

/// The beginning of a text that came from a client, as much as an answer may repeat.
pub fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_named() {
        const KNOWN: [&str; 5] = ["tenant_id", "node_ids", "status", "limit", "has_embedding"];
        for (name, nearest) in [
            ("tenant", "tenant_id"),
            ("tenantId", "tenant_id"),
            ("TENANT_ID", "tenant_id"),
            ("ids", "node_ids"),
            ("nodes", "node_ids"),
            ("state", "status"),
            ("limt", "limit"),
            ("embedding", "has_embedding"),
            ("has_embeding", "has_embedding"),
        ] {
            let reason = unknown(name, &KNOWN);
            assert!(reason.contains(&format!("did you mean {nearest}?")), "{name}: {reason}");
        }
        assert_eq!(unknown("x", &["limit"]), "is not known (known: limit)");
        assert!(unknown("x", &[]).contains("nothing may be given"));
        assert!(unknown(&"tenant_id".repeat(100_000), &KNOWN).len() < 200);
    }

    #[test]
    fn a_text_of_a_client_is_repeated_in_part() {
        assert_eq!(shortened("größe"), "größe");
        assert_eq!(shortened(&"ß".repeat(1_000_000)).chars().count(), 201);
    }
}
