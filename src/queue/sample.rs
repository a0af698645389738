//! A look at some of the jobs that wait, wherever they stand.

use super::{Queue, QueueError};
use crate::domain::Job;

/// Jobs looked at on the left, where the newest are.
const NEWEST: u32 = 64;
/// Places between the two ends, and jobs looked at in each.
const PLACES: u32 = 8;
const AT_EACH_PLACE: u32 = 4;
/// Bytes of an entry at most; a job is some hundred.
const LONGEST: u32 = 8 << 10;

impl Queue {
    /// Some of the jobs that wait: the newest, and a few from all over the queue. Takes none.
    pub async fn sample(&self) -> Result<Vec<Job>, QueueError> {
        let args = [NEWEST, PLACES, AT_EACH_PLACE, LONGEST];
        let args = args.map(|number| number.to_string().into()).to_vec();
        let entries: Vec<Vec<u8>> = self.run(&self.scripts.sample, args).await?;
        Ok(entries.iter().filter_map(|entry| Job::decode(entry).ok()).collect())
    }
}
