//! Nodes: what a client sends, which text of it is embedded, and the states it goes through.

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::TenantId;

/// The properties that may hold a node's text; the first non-empty string wins.
pub const TEXT_PROPERTIES: [&str; 5] = ["text", "resume_text", "content", "body", "description"];

/// The text that a node's properties give it, if any.
pub fn text_of_props(props: &Map<String, Value>) -> Option<&str> {
    TEXT_PROPERTIES
        .iter()
        .filter_map(|name| props.get(*name)?.as_str())
        .find(|text| !text.is_empty())
}

/// Bytes of a value as JSON.
pub fn json_bytes(value: &impl Serialize) -> usize {
    struct Counted(usize);
    impl io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    match serde_json::to_writer(&mut counted, value) {
        Ok(()) => counted.0,
        // What is no JSON is nowhere stored.
        Err(_) => usize::MAX,
    }
}

/// A node as it is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewNode {
    /// The id under which it will be known.
    pub id: Uuid,
    /// Who owns it.
    pub tenant_id: TenantId,
    /// Its labels.
    pub classes: Vec<String>,
    /// Free-form properties; the text is among them.
    pub props: Map<String, Value>,
    /// Where its text lies, when it is not in `props`.
    pub payload_ref: Option<String>,
    /// Free-form JSON that Vecmill only stores.
    pub metadata: Option<Value>,
    /// Free-form JSON that Vecmill only stores.
    pub refresh_policy: Option<Value>,
    /// Free-form JSON that Vecmill only stores.
    pub triggers: Option<Value>,
}

/// Where a node is on its way to a vector.
///
/// ```text
/// queued → processing → ready
///    ↑         │ ├────→ failed
///    └─────────┘ └────→ skipped      (and from each of the three back to queued)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// In the queue, in the retry set, or about to be put there.
    Queued,
    /// Held by a worker under a lease.
    Processing,
    /// The vector of the current text is stored.
    Ready,
    /// Attempts used up, or an error that no retry can mend.
    Failed,
    /// There is nothing to embed.
    Skipped,
}

impl NodeStatus {
    /// Every status, in the order of a node's life.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Processing, Self::Ready, Self::Failed, Self::Skipped];

    /// The name used in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A string that names no status.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown status; use one of queued, processing, ready, failed, skipped")]
pub struct UnknownStatus;

impl FromStr for NodeStatus {
    type Err = UnknownStatus;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|status| status.as_str() == name).ok_or(UnknownStatus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_non_empty_string_is_the_text() {
        let props = |json: &str| serde_json::from_str::<Map<String, Value>>(json).unwrap();
        let text = |json: &str| text_of_props(&props(json)).map(str::to_owned);
        assert_eq!(text(r#"{"body":"b","content":"c"}"#), Some("c".into()));
        assert_eq!(text(r#"{"text":"","description":"d"}"#), Some("d".into()));
        assert_eq!(text(r#"{"text":7,"resume_text":null,"body":"b"}"#), Some("b".into()));
        assert_eq!(text(r#"{"title":"t"}"#), None);
    }

    #[test]
    fn status_names_round_trip() {
        for status in NodeStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert_eq!("done".parse::<NodeStatus>(), Err(UnknownStatus));
    }
}
