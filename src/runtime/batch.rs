//! Jobs on their way through a worker.

use std::collections::HashMap;

use super::worker::Held;
use crate::{
    domain::Job,
    inference::Encoding,
    queue::Lease,
    store::{InputHash, Subject, TextHash},
};

/// A claimed job with the text it stands for.
#[derive(Debug, Clone)]
pub struct Text {
    /// The right to end the job.
    pub lease: Lease,
    /// The job.
    pub job: Job,
    /// Identifies what is embedded.
    pub text_hash: TextHash,
    /// Identifies text, model and revision.
    pub source_hash: String,
    /// Identifies what the model sees, and the model; `None` without a cache.
    pub input_hash: Option<InputHash>,
    /// What the model sees.
    pub encoding: Encoding,
}

impl Text {
    /// The job alone, when the text is needed no more.
    pub fn into_held(self) -> Held {
        (self.lease, self.job)
    }

    /// The same, with what the job's failure is about.
    pub fn into_failing(self) -> (Held, Subject) {
        let subject = Subject::Text(Some(self.text_hash));
        (self.into_held(), subject)
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

    /// Which of the inputs that differ each text is, in the order of the texts.
    pub fn inputs(&self) -> Vec<usize> {
        let (mut places, mut inputs) = (HashMap::new(), 0);
        let mut next = || {
            inputs += 1;
            inputs - 1
        };
        self.texts
            .iter()
            .map(|text| match text.input_hash {
                Some(hash) => *places.entry(hash).or_insert_with(&mut next),
                None => next(),
            })
            .collect()
    }

    /// A text for each of the inputs that differ: what the model is to see.
    pub fn distinct(&self) -> Vec<&Text> {
        let mut distinct = Vec::with_capacity(self.texts.len());
        for (text, input) in self.texts.iter().zip(self.inputs()) {
            if input == distinct.len() {
                distinct.push(text);
            }
        }
        distinct
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
