//! How much memory the bodies of requests may take together: while they arrive, and while they are
//! parsed and written.
//!
//! Few bytes of JSON may stand for many values. So what a body will take is counted before it is
//! parsed. A body waits until there is room for it, and for a limited time.

use std::{sync::Arc, time::Duration};

use poem::http::StatusCode;
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use uuid::Uuid;

use super::errors::Problem;
use crate::{
    domain::TenantScope,
    heavy::{self, Weight},
    runtime::Runtime,
};

/// How long a body waits for room.
const PATIENCE: Duration = Duration::from_secs(10);
/// What room is counted in.
const UNIT: usize = 1 << 10;
/// Of the memory, in parts: for bodies that arrive, for those that are parsed, and for stored nodes. The
/// other two are for the texts that a worker reads.
const PARTS: usize = 16;
const ARRIVING: usize = 1;
const PARSED: usize = 8;
const STORED: usize = 5;

/// The memory of this process for bodies.
#[derive(Clone)]
pub struct Memory {
    arriving: Lane,
    /// Apart, so that those who have arrived never wait for each other.
    parsed: Lane,
    /// Apart again: a change is parsed when it waits for the node.
    stored: Lane,
}

/// Room until it is dropped.
pub struct Held {
    room: OwnedSemaphorePermit,
}

impl Held {
    /// Gives back what is more than is needed for so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let more = self.room.num_permits().saturating_sub(bytes.div_ceil(UNIT));
        drop(self.room.split(more));
    }
}

impl Memory {
    /// So many bytes in all.
    pub fn new(bytes: usize) -> Self {
        let lane = |parts: usize| Lane::new(bytes / PARTS * parts);
        Self { arriving: lane(ARRIVING), parsed: lane(PARSED), stored: lane(STORED) }
    }

    /// Bytes of a body at most.
    pub fn most(&self) -> usize {
        self.arriving.units * UNIT
    }

    /// Waits for room for a body of this size.
    ///
    /// # Errors
    /// 413 for more than there is at all, 503 when too many others are there.
    pub async fn for_arrival(&self, bytes: usize) -> Result<Held, Problem> {
        self.arriving.hold(bytes).await
    }

    /// Waits for room for what a body [takes](cost).
    ///
    /// # Errors
    /// As [`Memory::for_arrival`].
    pub async fn for_parsed(&self, bytes: usize) -> Result<Held, Problem> {
        self.parsed.hold(bytes).await
    }
}

/// Stored nodes of fewer bytes take what any request takes.
const SMALL: usize = 64 << 10;
/// A node that is changed is there as it was and as it will be.
const WHEN_CHANGED: usize = 2;

/// A stored node that is to be worked on.
pub struct Stored {
    /// How much work it is.
    pub weight: Weight,
    /// Room for it, if it needs some of its own.
    pub room: Option<Held>,
}

/// What is done with a stored node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It is shown.
    Show,
    /// It is changed.
    Change,
}

impl Memory {
    /// Waits for room for a stored node, if that is not a small one. What it takes is counted before
    /// it is parsed, as of a body.
    ///
    /// # Errors
    /// As [`Memory::for_arrival`], but 503 for a node that only is to be shown; the database is away.
    pub async fn for_stored(
        &self,
        runtime: &Runtime,
        scope: &TenantScope,
        id: Uuid,
        what: Use,
    ) -> Result<Stored, Problem> {
        let bytes = runtime.stored_bytes(scope, id).await?;
        let weight = Weight::of(bytes);
        if bytes < SMALL {
            return Ok(Stored { weight, room: None });
        }
        let refused = |problem: Problem| match what {
            Use::Show if problem.status == StatusCode::PAYLOAD_TOO_LARGE => {
                Problem::unavailable("the node takes more memory than there is (VECMILL_MEMORY_MB)")
            }
            _ => problem,
        };
        let reading = self.stored.hold(2 * bytes).await.map_err(refused)?;
        let Some(json) = runtime.stored_json(scope, id).await? else {
            return Ok(Stored { weight, room: None });
        };
        let (once, reading) = heavy::apart(move || (cost(json.as_bytes()), reading)).await;
        drop(reading);
        let all = match what {
            Use::Show => once,
            // One that fits may be changed when nobody else is there.
            Use::Change => once.max((once * WHEN_CHANGED).min(self.stored.units * UNIT)),
        };
        let room = self.stored.hold(all).await.map(Some).map_err(refused)?;
        Ok(Stored { weight, room })
    }
}

/// Room that bodies wait for in the order in which they come.
#[derive(Clone)]
struct Lane {
    room: Arc<Semaphore>,
    units: usize,
}

impl Lane {
    fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).clamp(1, u32::MAX as usize);
        Self { room: Arc::new(Semaphore::new(units)), units }
    }

    async fn hold(&self, bytes: usize) -> Result<Held, Problem> {
        let wanted = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        if wanted as usize > self.units {
            let detail = "that takes more memory than there is for bodies and nodes \
                          (VECMILL_MEMORY_MB); send fewer nodes or values at once";
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        match timeout(PATIENCE, Arc::clone(&self.room).acquire_many_owned(wanted)).await {
            Ok(Ok(room)) => Ok(Held { room }),
            // It is never closed.
            Ok(Err(_)) | Err(_) => Err(Problem::unavailable(
                "there is no memory for that now, because of other requests; try again later",
            )),
        }
    }
}

/// Bytes of a value in its place.
const VALUE: usize = size_of::<Value>();
/// What comes with a block of the heap.
const BLOCK: usize = 32;
/// A member of an object: name, value, hash and its place in the index; what grows has room for
/// twice as many.
const MEMBER: usize = 2 * (VALUE + 64);
/// Copies of the bytes that are made until a node is written: of its texts, and as a statement.
const COPIES: usize = 4;

/// Bytes that a body takes while it is parsed and worked on, at most and about: what stands in it is
/// counted, and not what it is.
pub fn cost(body: &[u8]) -> usize {
    let (mut members, mut blocks, mut is_text, mut is_escaped) = (1, 1, false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => {
                is_text = !is_text;
                blocks += usize::from(is_text);
            }
            _ if is_text => {}
            b',' => members += 1,
            b'[' | b'{' => {
                members += 1;
                blocks += 1;
            }
            _ => {}
        }
    }
    members * MEMBER + blocks * BLOCK + COPIES * body.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_counts_is_how_many_values_there_are() {
        let text = format!("\"{}\"", "[0],{\\\"".repeat(1000));
        assert!(cost(text.as_bytes()) < 5 * text.len() + 1000);
        let arrays = format!("[{}[0]]", "[0],".repeat(1000));
        assert!(cost(arrays.as_bytes()) > 2000 * VALUE);
        let members = format!("{{{}\"z\":0}}", "\"a\":0,".repeat(1000));
        assert!(cost(members.as_bytes()) > 1000 * VALUE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_for_it_and_not_for_ever() {
        let memory = Memory::new(8 << 20);
        assert_eq!(memory.for_parsed(5 << 20).await.err().unwrap().status, 413);
        let first = memory.for_parsed(3 << 20).await.ok().unwrap();
        let refused = memory.for_parsed(2 << 20).await.err().unwrap();
        assert_eq!((refused.status.as_u16(), refused.retry_after.is_some()), (503, true));
        assert!(memory.for_arrival(1 << 19).await.is_ok(), "who arrives has room of its own");
        assert!(memory.stored.hold(2 << 20).await.is_ok(), "and so have nodes");
        let waiting = memory.for_parsed(2 << 20);
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        drop(first);
        let mut waited = waiting.await.ok().unwrap();
        assert!(timeout(Duration::from_secs(1), memory.for_parsed(3 << 20)).await.is_err());
        waited.shrink_to(1 << 20);
        assert!(timeout(Duration::from_secs(1), memory.for_parsed(3 << 20)).await.is_ok());
    }
}
