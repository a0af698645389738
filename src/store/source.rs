//! What a row's vector is made of: its text, with the prefix of ActiveKG before it where that is
//! wanted. The rule stands here for both databases.

use serde_json::{Map, Value};

use super::{TextHash, text_hash};
use crate::domain::{
    node::{TEXT_PROPERTIES, text_of_props},
    prefix,
};

/// How texts are made of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TextRule {
    /// Whether resumes and jobs have a prefix.
    pub with_prefix: bool,
}

impl TextRule {
    /// What is embedded of a node with these properties and classes; `None` when there is nothing.
    pub fn text(self, props: &Map<String, Value>, classes: &[String]) -> Option<String> {
        let text = text_of_props(props)?;
        Some(match self.fields(props, classes) {
            Some(fields) => prefix::before(&fields, text),
            None => text.to_owned(),
        })
    }

    /// The guard of a vector whose row the caller has locked, or just written: with a prefix only
    /// the database can tell it, and no other text can come in between.
    pub fn guard_of_locked(self, text: &str) -> Option<TextHash> {
        (!self.with_prefix).then(|| text_hash(text))
    }

    fn fields(self, props: &Map<String, Value>, classes: &[String]) -> Option<Map<String, Value>> {
        self.with_prefix.then(|| prefix::fields(props, classes)).flatten()
    }

    /// Columns `text`, `prefix` and `text_hash` of table `alias`, for [`Made::of_postgres`].
    pub(super) fn postgres_columns(self, alias: &str) -> String {
        let (text, fields) = (postgres_text(alias), self.postgres_fields(alias));
        // Without a prefix, whoever has the text can make the hash.
        let hash = if self.with_prefix { self.postgres_hash(alias) } else { "NULL::bytea".into() };
        format!("{text} AS text, {fields} AS prefix, {hash} AS text_hash")
    }

    /// The hash of what is embedded of a row; null when that is nothing.
    pub(super) fn postgres_hash(self, alias: &str) -> String {
        let (text, fields) = (postgres_text(alias), self.postgres_fields(alias));
        match self.with_prefix {
            true => {
                format!("sha256(convert_to({text} || coalesce(E'\\n' || {fields}, ''), 'UTF8'))")
            }
            false => format!("sha256(convert_to({text}, 'UTF8'))"),
        }
    }

    fn postgres_fields(self, alias: &str) -> String {
        if !self.with_prefix {
            return "NULL::text".to_owned();
        }
        let list = |names: &mut dyn Iterator<Item = &str>| {
            names.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
        };
        let classes = list(&mut prefix::CLASSES.into_iter());
        let properties = list(&mut prefix::PROPERTIES.into_iter());
        let fields = list(&mut prefix::properties());
        format!(
            "CASE WHEN {alias}.classes && ARRAY[{classes}] OR {alias}.props ?| ARRAY[{properties}] \
             THEN (SELECT coalesce(jsonb_object_agg(k, {alias}.props->k), '{{}}')::text \
                   FROM unnest(ARRAY[{fields}]) AS k WHERE {alias}.props ? k) END"
        )
    }

    /// The same of the columns of SQLite; `None` also if another program left there what is no
    /// JSON object.
    pub(super) fn of_sqlite(self, props: Option<&str>, classes: Option<&str>) -> Made {
        let props: Option<Map<String, Value>> =
            props.and_then(|props| serde_json::from_str(props).ok());
        let props = props.unwrap_or_default();
        let Some(text) = text_of_props(&props) else { return Made::default() };
        let fields = self.with_prefix.then(|| {
            let classes: Option<Vec<String>> =
                classes.and_then(|classes| serde_json::from_str(classes).ok());
            self.fields(&props, &classes.unwrap_or_default())
        });
        let Some(fields) = fields.flatten() else {
            return Made { text: Some(text.to_owned()), text_hash: Some(text_hash(text)) };
        };
        let text_hash = text_hash(&format!("{text}\n{}", Value::Object(fields.clone())));
        Made { text: Some(prefix::before(&fields, text)), text_hash: Some(text_hash) }
    }
}

/// What is embedded of a row, and what identifies it.
#[derive(Default)]
pub(super) struct Made {
    pub(super) text: Option<String>,
    /// `None` where it is that of the text alone.
    pub(super) text_hash: Option<TextHash>,
}

impl Made {
    /// Of the columns of [`TextRule::postgres_columns`].
    pub(super) fn of_postgres(
        text: Option<String>,
        prefix: Option<&str>,
        text_hash: Option<Vec<u8>>,
    ) -> Self {
        let fields: Option<Map<String, Value>> =
            prefix.and_then(|fields| serde_json::from_str(fields).ok());
        Self {
            text: text.map(|text| match &fields {
                Some(fields) => crate::domain::prefix::before(fields, &text),
                None => text,
            }),
            text_hash: text_hash.and_then(|hash| hash.try_into().ok()),
        }
    }
}

/// The text by the rule of [`text_of_props`], as an expression over the jsonb column of a table.
fn postgres_text(alias: &str) -> String {
    let cases: Vec<String> = TEXT_PROPERTIES
        .iter()
        .map(|name| {
            format!(
                "WHEN jsonb_typeof({alias}.props->'{name}') = 'string' \
                   AND {alias}.props->>'{name}' <> '' THEN {alias}.props->>'{name}'"
            )
        })
        .collect();
    format!("CASE {} END", cases.join(" "))
}
