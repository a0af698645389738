//! What happens to Redis without any actor: time passes, keys get lost.

use crate::{
    act::Lost,
    book::{Book, Effect, Ends},
    site::TENANTS,
};

const LEASES: &str = "embedding:queue:leases";
const RESERVATIONS: &str = "embedding:queue:reservations";
const RETRY: &str = "embedding:retry";

/// Jobs that are with a model come first: it takes several of these until one is poison.
pub fn lease_runs_out(book: &Book, number: usize) -> Option<Effect> {
    let keys = &book.seen.keys;
    let (with_model, others): (Vec<_>, Vec<_>) =
        keys.leases.keys().partition(|token| keys.started.contains(*token));
    let leases = [with_model, others].concat();
    let lease = leases.get(number.checked_rem(leases.len())?)?;
    set_score(book, LEASES, lease, "1")
}

pub fn reservation_runs_out(book: &Book, number: usize) -> Option<Effect> {
    let reservations = &book.seen.keys.reservations;
    let (reservation, _) = reservations.get(number.checked_rem(reservations.len())?)?;
    set_score(book, RESERVATIONS, reservation, "1")
}

pub fn retry_comes_due(book: &Book, number: usize) -> Option<Effect> {
    let entries = book.site.redis.cli(&["ZRANGE", RETRY, "0", "-1"]);
    let entries: Vec<&str> = entries.lines().collect();
    let entry = entries.get(number.checked_rem(entries.len())?)?;
    set_score(book, RETRY, entry, "0")
}

/// All that is bound to a time runs out or comes due.
pub fn a_long_time_passes(book: &Book) {
    for lease in book.seen.keys.leases.keys() {
        set_score(book, LEASES, lease, "1");
    }
    for (reservation, _) in &book.seen.keys.reservations {
        set_score(book, RESERVATIONS, reservation, "1");
    }
    for entry in book.site.redis.cli(&["ZRANGE", RETRY, "0", "-1"]).lines() {
        set_score(book, RETRY, entry, "0");
    }
}

fn set_score(book: &Book, key: &str, member: &str, score: &str) -> Option<Effect> {
    book.site.redis.cli(&["ZADD", key, "XX", score, member]);
    Some(Effect::default())
}

pub fn flush(book: &Book) -> Effect {
    book.site.redis.flush();
    Ends::Everything.into()
}

pub fn lose(book: &Book, lost: Lost) -> Option<Effect> {
    let key = match lost {
        Lost::Leases => LEASES.to_owned(),
        Lost::Fair => "embedding:queue:fair".to_owned(),
        Lost::Started => "embedding:queue:started".to_owned(),
        Lost::Changed => "embedding:queue:changed".to_owned(),
        Lost::Pending { node } => format!("embedding:pending:{}", book.seen.pick(node)?.0),
    };
    (book.site.redis.cli(&["DEL", &key]) == "1").then(Effect::default)
}

pub fn miscount(book: &Book, tenant: usize, count: &str) -> Effect {
    let key = format!("embedding:tenant:pending:{}", TENANTS[tenant]);
    book.site.redis.cli(&["SET", &key, count]);
    Effect::default()
}
