//! What must hold after every step, one function an invariant.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use vecmill::domain::NodeStatus;

use crate::{
    book::{Effect, Ends},
    seen::Seen,
    site::{LIMITS, RETRY, STALE, hash_of, is_theirs, our_vector, their_vector},
    world::Past,
};

pub fn check(before: &Seen, effect: &Effect, now: &Seen, past: &Past) {
    every_entry_is_in_one_place(now);
    no_job_vanishes(before, &effect.ends, now);
    only_the_holder_ends(before, effect, now);
    leases_and_inflight_agree(now, past);
    ready_means_the_current_text(now);
    dead_letters_end_their_jobs_once(now, past);
    attempts_within_maximum(now, past);
    if !past.touched {
        a_node_has_one_live_job(now);
        pending_keys_name_the_live_jobs(now);
        counts_are_what_is_live(now);
        newer_texts_wait_for_a_live_job(now);
        limits_hold(now, past);
    }
}

/// No job is in two of queue, retry set and hands, or twice in one of them.
pub fn every_entry_is_in_one_place(now: &Seen) {
    let mut seen = BTreeSet::new();
    for job in now.live() {
        assert!(seen.insert(&job.job_id), "{} is in two places", job.job_id);
    }
}

/// Every job that was live still is, unless the step was to end it, or it gave way to the one for a
/// newer text, or its node is gone.
pub fn no_job_vanishes(before: &Seen, ends: &Ends, now: &Seen) {
    let live = now.live_ids();
    for job in before.live() {
        let may_end = match ends {
            Ends::Nothing => false,
            Ends::Jobs(jobs) => jobs.contains(&job.job_id),
            Ends::Node(node) => job.node_id == *node,
            Ends::Everything => true,
        };
        let node = job.node_id.to_string();
        let gave_way = before.keys.changed.get(&node).is_some_and(|note| {
            let successor = note.split(' ').next().unwrap_or_default();
            let is_live = note == "gone" || live.contains(successor);
            is_live && !now.keys.changed.contains_key(&node)
        });
        let is_there = live.contains(job.job_id.as_str());
        assert!(may_end || gave_way || is_there, "{} vanished", job.job_id);
    }
}

/// A step that needs a token changes nothing in Redis when the token had lost its job.
pub fn only_the_holder_ends(before: &Seen, effect: &Effect, now: &Seen) {
    if let Some(token) = &effect.token
        && !before.keys.inflight.contains_key(token)
    {
        assert_eq!(before.keys, now.keys, "a stale worker changed something");
    }
}

/// What is in flight has a lease and the other way round; only such a job can be with a model.
pub fn leases_and_inflight_agree(now: &Seen, past: &Past) {
    let tokens: BTreeSet<&String> = now.keys.inflight.keys().collect();
    let leases: BTreeSet<&String> = now.keys.leases.keys().collect();
    assert!(leases.is_subset(&tokens), "a lease holds no job: {leases:?}, {tokens:?}");
    assert!(past.leases_lost || tokens == leases, "a job has no lease: {leases:?}, {tokens:?}");
    let started: BTreeSet<&String> = now.keys.started.iter().collect();
    assert!(started.is_subset(&tokens), "a model works for nobody: {started:?}");
}

/// A row that is `ready` has the vector of its text, of our model or a foreign one. Only a foreign
/// program stores that of an older text; then the row is marked, for the sweep to find it. One that
/// was embedded by ours before it was overwritten so has no mark, and looks as it should.
pub fn ready_means_the_current_text(now: &Seen) {
    for (node, row) in now.rows.iter().filter(|(_, row)| row.status == NodeStatus::Ready) {
        let (text, vector) = (row.text.as_deref(), row.vector.as_deref().unwrap());
        let is_of = |text: &str| vector == our_vector(text) || vector == their_vector(text);
        if text.is_some_and(is_of) {
            continue;
        }
        assert!(is_theirs(vector), "{node} is ready with another vector: {row:?}");
        let mark = row.source_hash.as_deref();
        let is_known = mark == Some(STALE) || mark == text.map(hash_of).as_deref();
        assert!(is_known, "nobody can know of which text the vector of {node} is: {row:?}");
    }
}

/// No job that has a letter is live, and none has two; neither has a text of a node, in one turn
/// of it, whatever jobs it had.
pub fn dead_letters_end_their_jobs_once(now: &Seen, past: &Past) {
    let (live, mut jobs, mut texts) = (now.live_ids(), BTreeSet::new(), BTreeSet::new());
    for letter in &now.keys.letters {
        let [job, node, reason] =
            ["job_id", "node_id", "error"].map(|field| letter[field].as_str().unwrap());
        assert!(!live.contains(job), "{job} has a letter, and is live");
        assert!(jobs.insert(job), "{job} has two letters");
        assert!(texts.insert((node, reason)) || past.touched, "{node} has two: {reason}");
    }
}

/// No job that is live has used its attempts up, and no row counts more than there are. No text of
/// a node, in one turn of it, fails more often, whatever jobs it had.
pub fn attempts_within_maximum(now: &Seen, past: &Past) {
    for ((node, reason), &attempts) in past.attempts.iter().filter(|_| !past.touched) {
        assert!(attempts <= RETRY.max_attempts, "{node} failed {attempts} times: {reason}");
    }
    for job in now.live() {
        assert!(job.attempts < RETRY.max_attempts, "{} goes on for ever", job.job_id);
    }
    for (node, row) in &now.rows {
        assert!(row.attempts <= RETRY.max_attempts, "{node} was tried {} times", row.attempts);
    }
}

pub fn a_node_has_one_live_job(now: &Seen) {
    let mut seen = BTreeSet::new();
    for job in now.live() {
        assert!(seen.insert(job.node_id), "{} has two live jobs", job.node_id);
    }
}

pub fn pending_keys_name_the_live_jobs(now: &Seen) {
    let live: BTreeMap<Uuid, String> =
        now.live().map(|job| (job.node_id, job.job_id.clone())).collect();
    assert_eq!(now.keys.pending, live, "pending keys, live jobs");
}

/// A tenant's count is its live jobs and what is reserved for it; a count of zero has no key.
pub fn counts_are_what_is_live(now: &Seen) {
    let live: BTreeMap<String, String> =
        now.charged().into_iter().map(|(tenant, jobs)| (tenant, jobs.to_string())).collect();
    assert_eq!(now.keys.counts, live, "counts, live jobs and reservations");
}

/// A job for a newer text waits only behind another job of the node.
pub fn newer_texts_wait_for_a_live_job(now: &Seen) {
    let live: BTreeSet<String> = now.live().map(|job| job.node_id.to_string()).collect();
    for node in now.keys.changed.keys() {
        assert!(live.contains(node), "a newer text of {node} waits for nothing");
    }
}

/// Live and reserved jobs are within both limits, but for those that were let in before.
pub fn limits_hold(now: &Seen, past: &Past) {
    let charged = now.charged();
    let all: i64 = charged.values().sum();
    assert!(all <= LIMITS.max_depth as i64 + past.past_limits, "{all} jobs in all");
    for (tenant, jobs) in charged {
        let most = LIMITS.tenant_max_pending as i64 + past.past_limits;
        assert!(jobs <= most, "{jobs} jobs of {tenant}");
    }
}
