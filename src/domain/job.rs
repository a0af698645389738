//! The job: one JSON object in Redis, shared with producers and consumers that are not ours.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::TenantId;

/// What a job asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// New or changed text: a node that is done already needs nothing.
    Embed,
    /// Embed again although a vector is there. Producers that are not ours have other names for
    /// it, such as `reembed`.
    Refresh,
}

impl Action {
    /// What a value in a job's JSON asks for: whatever is not `embed` is a refresh, and a job
    /// that does not say is new.
    fn of(value: Option<&Value>) -> Self {
        match value {
            None => Self::Embed,
            Some(value) if value == "embed" => Self::Embed,
            Some(_) => Self::Refresh,
        }
    }

    /// The name in the job's JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Refresh => "refresh",
        }
    }
}

/// Our own fields in a job: how many workers were lost while they held it, and the database that
/// its node was in when it was made.
const LOST: &str = "lost";
const DATABASE: &str = "database";

/// A job as it travels through Redis. Fields that we do not know are kept and passed on.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Identity of the job.
    pub job_id: String,
    /// The node to embed.
    pub node_id: Uuid,
    /// Who owns the node; `null` and absent both mean the default tenant.
    pub tenant_id: TenantId,
    /// What to do.
    pub action: Action,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Workers lost while holding this job.
    pub lost: u32,
    /// Unix seconds of the first enqueue, if the producer gave it.
    pub enqueued_at: Option<f64>,
    /// Identifies the database of the node, if the producer gave it.
    pub database: Option<String>,
    fields: Map<String, Value>,
}

/// Why a queue entry is no job.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum JobDecodeError {
    /// Not a JSON object in UTF-8.
    #[error("not a JSON object")]
    NotAnObject,
    /// A field is absent or of the wrong kind.
    #[error("field {0} is missing or invalid")]
    Field(&'static str),
}

impl Job {
    /// A new job, not yet attempted.
    pub fn new(node_id: Uuid, tenant_id: TenantId, action: Action, enqueued_at: f64) -> Self {
        Self {
            job_id: Uuid::new_v4().to_string(),
            node_id,
            tenant_id,
            action,
            attempts: 0,
            lost: 0,
            enqueued_at: Some(enqueued_at),
            database: None,
            fields: Map::new(),
        }
    }

    /// The same for a node of this database.
    pub fn in_database(mut self, database: Option<&str>) -> Self {
        self.database = database.map(str::to_owned);
        self
    }

    /// Reads a queue entry. Lenient where a foreign producer may differ: a missing `action`,
    /// `attempts` or `enqueued_at` has a natural default; `node_id` has none.
    pub fn decode(raw: &[u8]) -> Result<Self, JobDecodeError> {
        let Ok(Value::Object(fields)) = serde_json::from_slice(raw) else {
            return Err(JobDecodeError::NotAnObject);
        };
        let node_id = fields
            .get("node_id")
            .and_then(Value::as_str)
            .and_then(|id| id.parse().ok())
            .ok_or(JobDecodeError::Field("node_id"))?;
        let tenant_id = match fields.get("tenant_id") {
            None | Some(Value::Null) => TenantId::default(),
            Some(Value::String(name)) => {
                TenantId::new(name.as_str()).map_err(|_| JobDecodeError::Field("tenant_id"))?
            }
            Some(_) => return Err(JobDecodeError::Field("tenant_id")),
        };
        let action = Action::of(fields.get("action"));
        let count = |name| {
            fields
                .get(name)
                .and_then(Value::as_u64)
                .map_or(0, |n| n.min(u64::from(u32::MAX)) as u32)
        };
        Ok(Self {
            job_id: fields
                .get("job_id")
                .and_then(Value::as_str)
                .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned),
            node_id,
            tenant_id,
            action,
            attempts: count("attempts"),
            lost: count(LOST),
            enqueued_at: fields.get("enqueued_at").and_then(Value::as_f64),
            database: fields.get(DATABASE).and_then(Value::as_str).map(str::to_owned),
            fields,
        })
    }

    /// The JSON object of this job, with the unknown fields it came with.
    pub fn to_object(&self) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        fields.insert("job_id".into(), self.job_id.clone().into());
        fields.insert("node_id".into(), self.node_id.to_string().into());
        fields.insert("tenant_id".into(), self.tenant_id.as_str().into());
        // Its producer's own name for the same is passed on.
        if !fields.contains_key("action") || Action::of(fields.get("action")) != self.action {
            fields.insert("action".into(), self.action.as_str().into());
        }
        fields.insert("attempts".into(), self.attempts.into());
        if let Some(enqueued_at) = self.enqueued_at {
            fields.insert("enqueued_at".into(), enqueued_at.into());
        }
        if self.lost > 0 {
            fields.insert(LOST.into(), self.lost.into());
        }
        if let Some(database) = &self.database {
            fields.insert(DATABASE.into(), database.as_str().into());
        }
        fields
    }

    /// The queue entry of this job.
    pub fn encode(&self) -> String {
        Value::Object(self.to_object()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_passed_on_unchanged() {
        let raw = r#"{"job_id":"j","node_id":"6f2c7a0e-5d0b-4f6e-9a55-0a7d4d1c1f10","tenant_id":null,
            "trace":{"ids":[],"n":0.1,"big":9007199254740993}}"#;
        let mut job = Job::decode(raw.as_bytes()).unwrap();
        job.attempts = 3;
        let again: Value = serde_json::from_str(&job.encode()).unwrap();
        assert_eq!(again["trace"].to_string(), r#"{"ids":[],"n":0.1,"big":9007199254740993}"#);
        assert_eq!(again["attempts"], 3);
        assert_eq!(again["tenant_id"], "default");
        assert_eq!(Job::decode(job.encode().as_bytes()).unwrap().attempts, 3);
    }

    #[test]
    fn an_entry_without_a_node_is_no_job() {
        assert_eq!(Job::decode(b"\xff\xfe"), Err(JobDecodeError::NotAnObject));
        assert_eq!(Job::decode(b"[1]"), Err(JobDecodeError::NotAnObject));
        assert_eq!(Job::decode(b"{}"), Err(JobDecodeError::Field("node_id")));
    }

    #[test]
    fn whatever_is_not_embed_is_a_refresh_and_keeps_its_name() {
        for (given, action) in [
            (r#""embed""#, Action::Embed),
            (r#""refresh""#, Action::Refresh),
            (r#""reembed""#, Action::Refresh),
            (r#""Embed""#, Action::Refresh),
            ("null", Action::Refresh),
            ("7", Action::Refresh),
            (r#"{"kind":"full"}"#, Action::Refresh),
        ] {
            let raw =
                format!(r#"{{"node_id":"6f2c7a0e-5d0b-4f6e-9a55-0a7d4d1c1f10","action":{given}}}"#);
            let job = Job::decode(raw.as_bytes()).unwrap();
            assert_eq!(job.action, action, "{given}");
            assert_eq!(job.to_object()["action"].to_string(), given);
        }
        let job = Job::decode(br#"{"node_id":"6f2c7a0e-5d0b-4f6e-9a55-0a7d4d1c1f10"}"#).unwrap();
        assert_eq!(
            (job.action, job.to_object()["action"].as_str()),
            (Action::Embed, Some("embed"))
        );
    }
}
