//! What the queue promises, on a real Redis.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "queue/support.rs"]
mod support;

#[path = "queue/admission.rs"]
mod admission;
#[path = "queue/books.rs"]
mod books;
#[path = "queue/changes.rs"]
mod changes;
#[path = "queue/claims.rs"]
mod claims;
#[path = "queue/clock.rs"]
mod clock;
#[path = "queue/deep.rs"]
mod deep;
#[path = "queue/fair.rs"]
mod fair;
#[path = "queue/leases.rs"]
mod leases;
#[path = "queue/outages.rs"]
mod outages;
#[path = "queue/permissions.rs"]
mod permissions;
#[path = "queue/recounts.rs"]
mod recounts;
#[path = "queue/retries.rs"]
mod retries;
