//! Jobs on their way through a worker.

use super::worker::Held;
use crate::{domain::Job, inference::Encoding, queue::Lease};

/// A claimed job with the text it stands for.
#[derive(Debug, Clone)]
pub struct Text {
    /// The right to end the job.
    pub lease: Lease,
    /// The job.
    pub job: Job,
    /// What is embedded.
    pub text: String,
    /// Identifies text, model and revision.
    pub source_hash: String,
    /// What the model sees.
    pub encoding: Encoding,
}

impl Text {
    /// The job alone, when the text is needed no more.
    pub fn into_held(self) -> Held {
        (self.lease, self.job)
    }
}

/// Texts that are embedded together.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The texts; never empty.
    pub texts: Vec<Text>,
    /// Whether one of them may bring down what embeds it; such a batch runs with nothing beside
    /// it, so that nobody else is blamed.
    pub suspect: bool,
}

impl Batch {
    /// The rights to end its jobs, in the order of the texts.
    pub fn leases(&self) -> Vec<Lease> {
        self.texts.iter().map(|text| text.lease.clone()).collect()
    }

    /// Tokens of all texts together.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(|text| text.encoding.ids.len()).sum()
    }

    /// Two halves; the way to find the text at fault in a batch that failed. A batch of one
    /// text cannot be split and is given back.
    pub fn split(mut self) -> Result<[Self; 2], Self> {
        if self.texts.len() < 2 {
            return Err(self);
        }
        let second = self.texts.split_off(self.texts.len() / 2);
        Ok([Self { texts: second, suspect: self.suspect }, self])
    }

    /// Each text alone, as a suspect.
    pub fn into_suspects(self) -> impl DoubleEndedIterator<Item = Self> {
        self.texts.into_iter().map(|text| Self { texts: vec![text], suspect: true })
    }
}
