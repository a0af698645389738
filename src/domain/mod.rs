//! What Vecmill is about, without any I/O: tenants, jobs, node statuses, the retry policy
//! and batch planning.

pub mod batch;
pub mod due;
pub mod job;
pub mod node;
pub mod patch;
pub mod prefix;
pub mod retry;
pub mod tenant;

pub use job::{Action, Job, JobDecodeError};
pub use node::{NewNode, NodeStatus};
pub use patch::NodePatch;
pub use retry::{FailureKind, RetryPolicy};
pub use tenant::{TenantId, TenantScope};
