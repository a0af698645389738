//! A look at some of the jobs that wait, wherever they stand.

use fred::{clients::Client, interfaces::ListInterface};

use super::{Queue, QueueError};
use crate::domain::Job;

/// Jobs looked at on the left, where the newest are.
const NEWEST: i64 = 64;
/// Places between the two ends, and jobs looked at in each.
const PLACES: i64 = 8;
const AT_EACH_PLACE: i64 = 4;

impl Queue {
    /// Some of the jobs that wait: the newest, and a few from all over the queue. Takes none.
    pub async fn sample(&self) -> Result<Vec<Job>, QueueError> {
        let queue = self.keys.queue.as_str();
        let length: i64 = self.commands.call(async |client| client.llen(queue).await).await?;
        let between = (0..PLACES).map(|place| NEWEST + (length - NEWEST).max(0) * place / PLACES);
        let mut jobs = Vec::new();
        for (first, entries) in
            std::iter::once((0, NEWEST)).chain(between.map(|at| (at, AT_EACH_PLACE)))
        {
            if first >= length {
                break;
            }
            let last = first + entries - 1;
            let lrange = async |client: Client| client.lrange(queue, first, last).await;
            let found: Vec<Vec<u8>> = self.commands.call(lrange).await?;
            jobs.extend(found.iter().filter_map(|entry| Job::decode(entry).ok()));
        }
        Ok(jobs)
    }
}
