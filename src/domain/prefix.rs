//! The prefix that ActiveKG puts before the text of resumes and jobs
//! (`EMBEDDING_PREFIX_ENABLED`): lines `LABEL: value` and an empty line.
//!
//! Values are written as Python's `str` writes them, so that both programs embed the same text.

use serde_json::{Map, Number, Value};

/// The properties of the prefix, in its order; how each list of them is ordered.
const FIELDS: [(&str, &str, Order); 20] = [
    ("current_title", "CURRENT_TITLE", Order::AsGiven),
    ("primary_titles", "PRIMARY_TITLES", Order::Sorted),
    ("seniority", "SENIORITY", Order::AsGiven),
    ("job_title", "JOB_TITLE", Order::AsGiven),
    ("required_skills", "REQUIRED_SKILLS", Order::AsGiven),
    ("good_to_have_skills", "GOOD_TO_HAVE", Order::AsGiven),
    ("skills_raw", "SKILLS_RAW", Order::Sorted),
    ("skills_normalized", "SKILLS_NORMALIZED", Order::Sorted),
    ("years_by_skill", "YEARS_BY_SKILL", Order::AsGiven),
    ("experience_years", "EXPERIENCE", Order::AsGiven),
    ("education_requirement", "EDUCATION", Order::AsGiven),
    ("primary_skills", "EXTRACTED_SKILLS", Order::Sorted),
    ("recent_job_titles", "RECENT_TITLES", Order::Sorted),
    ("certifications", "CERTIFICATIONS", Order::Sorted),
    ("industries", "INDUSTRIES", Order::Sorted),
    ("domains", "DOMAINS", Order::Sorted),
    ("functions", "FUNCTIONS", Order::Sorted),
    ("location", "LOCATION", Order::AsGiven),
    ("years_experience_total", "YEARS_EXPERIENCE_TOTAL", Order::AsGiven),
    ("total_years_experience", "TOTAL_YEARS_EXPERIENCE", Order::AsGiven),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    AsGiven,
    /// Without regard to case.
    Sorted,
}

/// Nodes of these classes have a prefix.
pub const CLASSES: [&str; 2] = ["Resume", "Job"];
/// So have nodes with one of these properties.
pub const PROPERTIES: [&str; 2] = ["resume_text", "job_title"];

/// The properties that the prefix is made of.
pub fn properties() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|(property, ..)| *property)
}

/// Those of a node's properties that its prefix is made of; `None` if it has no prefix.
pub fn fields(props: &Map<String, Value>, classes: &[String]) -> Option<Map<String, Value>> {
    let has_prefix = classes.iter().any(|class| CLASSES.contains(&class.as_str()))
        || PROPERTIES.iter().any(|name| props.contains_key(*name));
    let of_prefix = |name: &&str| props.get(*name).map(|value| ((*name).to_owned(), value.clone()));
    has_prefix.then(|| FIELDS.iter().filter_map(|(name, ..)| of_prefix(name)).collect())
}

/// The text with the prefix that these properties make.
pub fn before(fields: &Map<String, Value>, text: &str) -> String {
    let lines: Vec<String> = FIELDS
        .iter()
        .filter_map(|&(property, label, order)| {
            let line = line(fields.get(property).filter(|value| is_true(value))?, order);
            let line = line.trim();
            (!line.is_empty()).then(|| format!("{label}: {line}"))
        })
        .collect();
    if lines.is_empty() { text.to_owned() } else { format!("{}\n\n{text}", lines.join("\n")) }
}

/// What Python takes for true.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn line(value: &Value, order: Order) -> String {
    match value {
        Value::Array(items) => {
            let mut items: Vec<String> =
                items.iter().map(str).filter(|item| !item.trim().is_empty()).collect();
            if order == Order::Sorted {
                items.sort_by_key(|item| item.to_lowercase());
            }
            items.join(", ")
        }
        Value::Object(members) => {
            let mut names: Vec<&String> = members.keys().collect();
            names.sort_by_key(|name| name.to_lowercase());
            let pairs: Vec<String> =
                names.iter().map(|name| format!("{name}={}", str(&members[*name]))).collect();
            pairs.join("; ")
        }
        other => str(other),
    }
}

/// Python's `str`.
fn str(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// Python's `repr`.
fn repr(value: &Value) -> String {
    let join = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number_repr(number),
        Value::String(text) => text_repr(text),
        Value::Array(items) => format!("[{}]", join(items.iter().map(repr).collect())),
        Value::Object(members) => {
            let pair =
                |(name, value): (&String, &Value)| format!("{}: {}", text_repr(name), repr(value));
            format!("{{{}}}", join(members.iter().map(pair).collect()))
        }
    }
}

/// Floats have the fewest digits that tell them apart, in both languages; Python writes an exponent
/// from 10^16 on, and below 10^-4.
fn number_repr(number: &Number) -> String {
    let Some(value) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    if value != 0.0 && !(1e-4..1e16).contains(&value.abs()) {
        let scientific = format!("{value:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) =
            exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

fn text_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut repr = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => repr.push_str("\\\\"),
            '\n' => repr.push_str("\\n"),
            '\r' => repr.push_str("\\r"),
            '\t' => repr.push_str("\\t"),
            c if c == quote => repr.extend(['\\', c]),
            c if c.is_control() => repr.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => repr.push(c),
        }
    }
    repr.push(quote);
    repr
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn prefixed(props: Value, classes: &[&str]) -> String {
        let Value::Object(props) = props else { panic!("no object") };
        let classes: Vec<String> = classes.iter().map(ToString::to_string).collect();
        fields(&props, &classes).map_or_else(|| "t".to_owned(), |fields| before(&fields, "t"))
    }

    #[test]
    fn only_resumes_and_jobs_have_a_prefix() {
        let title = json!({"current_title": "Miller"});
        assert_eq!(prefixed(title.clone(), &["Note"]), "t");
        assert_eq!(prefixed(title.clone(), &["Resume"]), "CURRENT_TITLE: Miller\n\nt");
        assert_eq!(prefixed(title, &["Note", "Job"]), "CURRENT_TITLE: Miller\n\nt");
        assert_eq!(prefixed(json!({"job_title": "Cook"}), &[]), "JOB_TITLE: Cook\n\nt");
        assert_eq!(
            prefixed(json!({"resume_text": "", "location": "Ulm"}), &[]),
            "LOCATION: Ulm\n\nt"
        );
        assert_eq!(prefixed(json!({"title": "x"}), &["Job"]), "t");
    }

    #[test]
    fn fields_stand_in_their_order_and_lists_in_theirs() {
        let props = json!({
            "total_years_experience": 7,
            "required_skills": ["rust", "Ada", " ", "", 3],
            "primary_skills": ["rust", "Ada", "C"],
            "years_by_skill": {"rust": 5, "Ada": 2.5},
            "good_to_have_skills": "  tea ",
            "experience_years": 3.0,
            "seniority": "",
            "domains": [],
            "industries": {},
            "location": null,
            "years_experience_total": 0
        });
        let expected = "REQUIRED_SKILLS: rust, Ada, 3\nGOOD_TO_HAVE: tea\n\
            YEARS_BY_SKILL: Ada=2.5; rust=5\nEXPERIENCE: 3.0\nEXTRACTED_SKILLS: Ada, C, rust\n\
            TOTAL_YEARS_EXPERIENCE: 7\n\nt";
        assert_eq!(prefixed(props, &["Job"]), expected);
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        // From Python 3.11: str() of json.loads() of each.
        for (value, expected) in [
            (json!(true), "True"),
            (json!(1e16), "1e+16"),
            (json!(123456789012345.0), "123456789012345.0"),
            (json!(1e-5), "1e-05"),
            (json!(0.0001), "0.0001"),
            (json!(1.5e300), "1.5e+300"),
            (json!(-2.50), "-2.5"),
            (
                json!([["a", "it's", "\"", null, false], {"k": [1.0]}]),
                r#"['a', "it's", '"', None, False], {'k': [1.0]}"#,
            ),
            (json!({"b": ["x\ty"], "A": {"n": null}}), r"A={'n': None}; b=['x\ty']"),
        ] {
            let line = format!("SENIORITY: {expected}\n\nt");
            assert_eq!(prefixed(json!({"seniority": value}), &["Job"]), line);
        }
    }
}
