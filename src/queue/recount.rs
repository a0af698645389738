//! Keys and counts that are wrong are mended from the jobs that are there: all at once where these are
//! few, step by step where they are many.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fred::{clients::Client, interfaces::KeysInterface, types::Value};
use uuid::Uuid;

use super::{Queue, QueueError};

/// What a recount found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recount {
    /// There are too many jobs to look at all of them at once; nothing was done. The other methods
    /// go by steps.
    TooDeep,
    /// These nodes have a pending key but no job: call again with the tenant of each.
    Ask(Vec<String>),
    /// Done; how many of each kind were mended.
    Done {
        /// Tenant counts that were wrong.
        tenant_counts: u64,
        /// Live jobs without a pending key.
        pending_keys: u64,
        /// Jobs in flight without a lease.
        leases: u64,
        /// Pending keys without a job that were too old to be a foreign consumer's.
        given_up: u64,
        /// Tenants whose count held another type than a string, and was made anew.
        mistyped: Vec<String>,
    },
}

/// Where jobs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// Waiting, the newest first.
    Queue,
    /// Waiting for their next attempt.
    Retry,
    /// Under a lease.
    InFlight,
}

/// What one step through a structure brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Where the next step begins; `None` at the end.
    pub next: Option<String>,
    /// Jobs that had no pending key.
    pub pending_keys: u64,
    /// Jobs in flight that had no lease.
    pub leases: u64,
    /// The nodes of the jobs.
    pub nodes: Vec<Uuid>,
}

/// What the counts of some tenants were compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counted {
    /// Nothing: too many jobs are new, in flight or waiting for a retry, or other programs have taken
    /// jobs since all were read.
    Unknown,
    /// The jobs that are there.
    Done {
        /// Counts that were wrong.
        mended: u64,
        /// Tenants whose count held another type than a string, and was made anew.
        mistyped: Vec<String>,
    },
}

/// Keys that are listed page by page.
pub struct Pages {
    prefix: usize,
    pattern: String,
    cursor: Option<String>,
}

impl Pages {
    fn of(prefix: &str) -> Self {
        let mut pattern = String::new();
        for c in prefix.chars() {
            if "*?[]\\".contains(c) {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern.push_str(":*");
        Self { prefix: prefix.len() + 1, pattern, cursor: Some("0".to_owned()) }
    }
}

/// Jobs, and kB of them, above which a recount in one step would hold the server for too long (about
/// 15 ms), and keys above which it would be sent too many.
const RECOUNT_MAX_JOBS: u64 = 2_000;
const RECOUNT_MAX_KEYS: usize = 4_000;
/// New jobs, in flight and waiting for a retry together, that are looked at to compare counts.
const COUNT_MAX_JOBS: u64 = 4_000;
/// Keys looked at by one step of a scan.
const SCAN_PAGE: u32 = 1000;
/// Nodes in one call of a script.
const NODES_PER_CALL: usize = 500;

impl Queue {
    /// Compares keys and counts with the jobs that are there, and mends them. `tenants` names
    /// the tenant of nodes asked for by an earlier call; an empty name if there is no such node.
    pub async fn recount(
        &self,
        give_up_after: Duration,
        tenants: &HashMap<String, String>,
    ) -> Result<Recount, QueueError> {
        let depths = self.depths().await?;
        if depths.queue + depths.retry + depths.inflight > RECOUNT_MAX_JOBS {
            return Ok(Recount::TooDeep);
        }
        let Some(nodes) = self.all_of(self.pending_pages()).await? else {
            return Ok(Recount::TooDeep);
        };
        let mut args: Vec<Value> = vec![
            RECOUNT_MAX_JOBS.to_string().into(),
            give_up_after.as_millis().to_string().into(),
            nodes.len().to_string().into(),
        ];
        for node in nodes {
            args.push(node.as_str().into());
            args.push(tenants.get(&node).map_or("?", String::as_str).into());
        }
        let Some(counted) = self.all_of(self.tenant_pages()).await? else {
            return Ok(Recount::TooDeep);
        };
        args.extend(counted.into_iter().map(Value::from));
        let answer: Vec<String> = self.run(&self.scripts.recount, args).await?;
        let number = |i: usize| answer.get(i).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(match answer.first().map(String::as_str) {
            Some("deep") => Recount::TooDeep,
            Some("ask") => Recount::Ask(answer[1..].to_vec()),
            _ => {
                self.tidy().await?;
                Recount::Done {
                    tenant_counts: number(1),
                    pending_keys: number(2),
                    leases: number(3),
                    given_up: number(4),
                    mistyped: answer.get(5..).unwrap_or_default().to_vec(),
                }
            }
        })
    }

    /// All names of the pages; `None` if there are too many for one call.
    async fn all_of(&self, mut pages: Pages) -> Result<Option<HashSet<String>>, QueueError> {
        let mut all = HashSet::new();
        while let Some(page) = self.next_page(&mut pages).await? {
            all.extend(page);
            if all.len() > RECOUNT_MAX_KEYS {
                return Ok(None);
            }
        }
        Ok(Some(all))
    }

    /// The keys with which nodes say that they have a live job.
    pub fn pending_pages(&self) -> Pages {
        Pages::of(&self.keys.pending_prefix)
    }

    /// The keys that count the live jobs of tenants.
    pub fn tenant_pages(&self) -> Pages {
        Pages::of(&self.keys.tenant_prefix)
    }

    /// What follows the prefix and a colon in the names of the next keys, whatever they hold; `None`
    /// at the end. A name may come twice.
    pub async fn next_page(&self, pages: &mut Pages) -> Result<Option<Vec<String>>, QueueError> {
        let Some(cursor) = pages.cursor.take() else { return Ok(None) };
        let pattern = pages.pattern.as_str();
        let page =
            async |client: Client| client.scan_page(cursor, pattern, Some(SCAN_PAGE), None).await;
        let (next, keys): (String, Vec<String>) = self.commands.call(page).await?;
        pages.cursor = Some(next).filter(|next| next != "0");
        Ok(Some(
            keys.into_iter().filter_map(|key| Some(key.get(pages.prefix..)?.to_owned())).collect(),
        ))
    }

    /// Tenants that have waiting jobs, as far as these were read; begins with `"0"`. Answers where
    /// the next step begins, `None` at the end.
    pub async fn waiting_tenants(
        &self,
        cursor: &str,
    ) -> Result<(Vec<String>, Option<String>), QueueError> {
        let mut answer: Vec<String> =
            self.run(&self.scripts.waiting, vec![Value::from(cursor)]).await?;
        let next = (!answer.is_empty()).then(|| answer.remove(0));
        Ok((answer, next.filter(|next| next != "0")))
    }

    /// Looks through some jobs, from `cursor` on (`None`: from the beginning), and gives them the
    /// pending keys and leases that they lack. A job that moves meanwhile may be seen twice, or not.
    pub async fn pass(
        &self,
        structure: Structure,
        cursor: Option<&str>,
    ) -> Result<Passed, QueueError> {
        let name = match structure {
            Structure::Queue => "queue",
            Structure::Retry => "retry",
            Structure::InFlight => "inflight",
        };
        let args = vec![Value::from(name), Value::from(cursor.unwrap_or("0"))];
        let answer: Vec<String> = self.run(&self.scripts.pass, args).await?;
        let number = |i: usize| answer.get(i).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Passed {
            next: answer.first().filter(|next| !next.is_empty()).cloned(),
            pending_keys: number(1),
            leases: number(2),
            nodes: answer.iter().skip(3).filter_map(|node| node.parse().ok()).collect(),
        })
    }

    /// Notes since when these nodes have a pending key but no job, if they have one.
    pub async fn mark_orphans(&self, nodes: &[Uuid]) -> Result<(), QueueError> {
        for nodes in nodes.chunks(NODES_PER_CALL) {
            let args = nodes.iter().map(|node| Value::from(node.to_string())).collect();
            let _: u64 = self.run(&self.scripts.mark, args).await?;
        }
        Ok(())
    }

    /// Gives up the pending keys that had no job for so long. Answers how many, and the nodes, `most`
    /// at most, that still have one.
    pub async fn give_up_orphans(
        &self,
        after: Duration,
        most: usize,
    ) -> Result<(u64, Vec<Uuid>), QueueError> {
        let (mut given_up, mut passed, mut left) = (0, 0, Vec::<Uuid>::new());
        loop {
            let args = [after.as_millis() as usize, passed, NODES_PER_CALL];
            let args = args.map(|number| Value::from(number.to_string())).to_vec();
            let (found, more, stay): (u64, u64, Vec<String>) =
                self.run(&self.scripts.orphans, args).await?;
            given_up += more;
            passed += stay.len();
            left.extend(stay.into_iter().filter_map(|node| node.parse::<Uuid>().ok()));
            if found == 0 || passed >= most {
                return Ok((given_up, left));
            }
        }
    }

    /// Forgets what is noted of nodes that it is not true of any more.
    pub async fn tidy(&self) -> Result<(), QueueError> {
        for notes in ["changed", "retrying"] {
            let mut cursor = "0".to_owned();
            loop {
                cursor = self.run(&self.scripts.tidy, vec![notes.into(), cursor.into()]).await?;
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Compares the counts of these tenants with the jobs that are there; each comes with the number
    /// of its jobs that are with foreign consumers.
    pub async fn recount_tenants(&self, tenants: &[(String, u64)]) -> Result<Counted, QueueError> {
        let mut args = vec![Value::from(COUNT_MAX_JOBS.to_string())];
        args.extend(tenants.iter().flat_map(|(tenant, jobs)| {
            [Value::from(tenant.as_str()), Value::from(jobs.to_string())]
        }));
        let answer: Vec<String> = self.run(&self.scripts.counts, args).await?;
        Ok(match answer.get(1) {
            None => Counted::Unknown,
            Some(mended) => Counted::Done {
                mended: mended.parse().unwrap_or_default(),
                mistyped: answer.get(2..).unwrap_or_default().to_vec(),
            },
        })
    }
}
