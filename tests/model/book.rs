//! What all actors share: the servers, what was last seen in them, and the numbers that jobs,
//! nodes and texts get, so that a case runs the same way each time.

use std::collections::HashMap;

use uuid::Uuid;
use vecmill::{
    domain::{Action, Job, TenantId},
    queue::Lease,
};

use crate::{seen::Seen, site::Site};

/// When the jobs of this world come in.
const ENQUEUED_AT: f64 = 1_795_477_681.46;

const IN_TURN: &str = ", in turn ";
const NO_TEXT: &str = "no text";

/// Whether a failure with this reason is one of this text.
pub fn is_reason_of(reason: &str, text: Option<&str>) -> bool {
    reason.split(IN_TURN).next() == Some(text.unwrap_or(NO_TEXT))
}

/// See the module.
pub struct Book {
    pub site: &'static Site,
    /// Before the step that is being taken.
    pub seen: Seen,
    /// The texts that models began on, by the lease of the job.
    pub started: HashMap<Lease, String>,
    /// How often a node that had no job was put in the queue; the sweep does not count.
    turns: HashMap<Uuid, usize>,
    /// A job that loses its worker this often is a dead letter.
    pub lost_max: u32,
    jobs: usize,
    nodes: u128,
    texts: usize,
}

/// What a step did, as far as the invariants cannot see it.
#[derive(Default)]
pub struct Effect {
    /// Which jobs it may have ended.
    pub ends: Ends,
    /// The token that it needed.
    pub token: Option<String>,
    /// The node and the reason of an attempt that failed and is counted now.
    pub failed: Option<(Uuid, String)>,
    /// Whether it may pass the limits: its jobs were let in before.
    pub passes_limits: bool,
}

/// Which jobs a step may end.
#[derive(Debug, Default)]
pub enum Ends {
    #[default]
    Nothing,
    Jobs(Vec<String>),
    Node(Uuid),
    Everything,
}

impl Effect {
    /// It needed this lease, and ends nothing.
    pub fn under(token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..Self::default() }
    }

    pub fn ending(mut self, job: &Job) -> Self {
        self.ends = Ends::Jobs(vec![job.job_id.clone()]);
        self
    }

    /// It also counts an attempt as failed.
    pub fn failing(mut self, node: Uuid, reason: &str) -> Self {
        self.failed = Some((node, reason.to_owned()));
        self
    }

    pub fn past_the_limits() -> Self {
        Self { passes_limits: true, ..Self::default() }
    }
}

impl From<Ends> for Effect {
    fn from(ends: Ends) -> Self {
        Self { ends, ..Self::default() }
    }
}

impl Book {
    pub async fn new(site: &'static Site, lost_max: u32) -> Self {
        site.clear().await;
        Self {
            site,
            seen: site.look().await,
            started: HashMap::new(),
            turns: HashMap::new(),
            lost_max,
            jobs: 0,
            nodes: 0,
            texts: 0,
        }
    }

    pub fn new_job(&mut self, node: Uuid, tenant: &str, action: Action) -> Job {
        self.jobs += 1;
        let mut job = Job::new(node, TenantId::new(tenant).unwrap(), action, ENQUEUED_AT);
        // Retries that are due together come back in the order of their entries.
        job.job_id = format!("job-{:04}", self.jobs);
        job
    }

    pub fn new_node(&mut self) -> Uuid {
        self.nodes += 1;
        Uuid::from_u128(self.nodes)
    }

    /// A text that no node had before.
    pub fn new_text(&mut self) -> usize {
        self.texts += 1;
        self.texts
    }

    /// Somebody but the sweep puts a node in the queue. What failed before a job that is new there
    /// counts no more.
    pub fn takes_its_turn(&mut self, node: Uuid) {
        if !self.seen.keys.pending.contains_key(&node) {
            *self.turns.entry(node).or_default() += 1;
        }
    }

    /// The reason of a failure: it says which text of a node failed, and in which turn of it.
    pub fn reason(&self, node: Uuid, text: Option<&str>) -> String {
        let turn = self.turns.get(&node).unwrap_or(&0);
        format!("{}{IN_TURN}{turn}", text.unwrap_or(NO_TEXT))
    }

    /// Whether a newer text of a node waits for its job to be claimed or to end.
    pub fn has_newer_text(&self, node: Uuid) -> bool {
        self.seen.keys.changed.get(&node.to_string()).is_some_and(|note| note != "gone")
    }

    /// Whether a token held its job before the step.
    pub fn holds(&self, token: &str) -> bool {
        self.seen.keys.inflight.contains_key(token)
    }
}
