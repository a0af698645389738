//! What all actors share: the servers, what was last seen in them, and the numbers that jobs,
//! nodes and texts get, so that a case runs the same way each time.

use std::collections::HashSet;

use uuid::Uuid;
use vecmill::domain::{Action, Job, TenantId};

use crate::{seen::Seen, site::Site};

/// When the jobs of this world come in.
const ENQUEUED_AT: f64 = 1_795_477_681.46;

/// See the module.
pub struct Book {
    pub site: &'static Site,
    /// Before the step that is being taken.
    pub seen: Seen,
    /// Nodes that were given up, each with the text that was tried; without one, whatever it was.
    pub in_vain: HashSet<(Uuid, Option<String>)>,
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
    pub async fn new(lost_max: u32) -> Self {
        let site = Site::get();
        site.clear().await;
        Self {
            site,
            seen: site.look().await,
            in_vain: HashSet::new(),
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

    /// Whether a token held its job before the step.
    pub fn holds(&self, token: &str) -> bool {
        self.seen.keys.inflight.contains_key(token)
    }
}
