//! What a user of Redis must be allowed, and what is said when it is not.

use std::{collections::BTreeSet, fs, path::Path};

use vecmill::{
    config::Settings,
    queue::{DeadLetter, Lock, Queue, QueueError, Recount, Structure},
};

use super::support::*;
use crate::common::TestRedis;

/// The line in the README, as words.
fn rules() -> Vec<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let line = readme.lines().find_map(|line| line.strip_prefix("redis-cli ACL SETUSER vecmill "));
    let words = line.expect("the README has the line").split_whitespace();
    // Quotation marks are for the shell.
    words.map(|word| word.trim_matches('"').to_owned()).collect()
}

/// A server that knows a user with these rules; the URL for it.
fn server(rules: &[String]) -> (TestRedis, String) {
    let redis = TestRedis::start();
    let rules = rules.iter().map(String::as_str);
    let command: Vec<&str> = ["ACL", "SETUSER", "vecmill"].into_iter().chain(rules).collect();
    assert_eq!(redis.cli(&command), "OK");
    let url = redis.url().replace("redis://", "redis://vecmill:SECRET@");
    (redis, url)
}

async fn connect(url: &str) -> Result<Queue, QueueError> {
    Queue::connect(url, &Settings::with(&[]).unwrap().queue).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_in_the_readme_are_enough_for_everything() {
    let (redis, url) = server(&rules());
    let queue = connect(&url).await.unwrap();
    let test = TestQueue { redis, queue };
    // Nothing else on the server is for it.
    let probe = test.redis.cli(&["ACL", "DRYRUN", "vecmill", "GET", "another:key"]);
    assert!(probe.contains("no permissions"), "{probe}");

    let tenant = tenant("acme");
    let three = jobs("acme", 3);
    let reservation = test.reserved(&tenant, 3).await;
    assert_eq!(test.queue.publish(&reservation, &three).await.unwrap(), 3);
    let reservation = test.reserved(&tenant, 1).await;
    test.queue.cancel(&reservation).await.unwrap();
    let recount = test.queue.recount(LEASE, &Default::default()).await.unwrap();
    assert!(matches!(recount, Recount::Done { .. }), "{recount:?}");
    test.enqueue(&jobs("other", 2100)).await;
    let reservation = test.reserved(&tenant, 1).await;
    test.queue.change(&reservation, &same_node(&three[0])).await.unwrap();
    test.queue.wait_for_job(DEADLINE).await.unwrap();
    let claimed: Vec<_> = test.claim(4).await.into_iter().map(held).collect();
    let leases: Vec<_> = claimed.iter().map(|(lease, _)| lease.clone()).collect();
    test.queue.start(&leases).await.unwrap();
    test.queue.clear(&leases).await.unwrap();
    assert!(test.queue.extend(&leases, LEASE).await.unwrap().is_empty());
    let [done, failed, dead, back] = claimed.try_into().unwrap();
    test.queue.ack(&[done]).await.unwrap();
    let node = failed.1.node_id;
    test.queue.retry(&[(failed.0, failed.1, std::time::Duration::ZERO)]).await.unwrap();
    test.queue.promote_due().await.unwrap();
    let letter = DeadLetter::of_job(dead.0, &dead.1, "it fails", 1.0);
    test.queue.dead_letter(&[letter], false).await.unwrap();
    test.queue.hand_back(&[(back.0, Some(back.1.node_id))]).await.unwrap();
    test.claim(1).await;
    test.expire_leases();
    assert_eq!(test.reclaim_expired().await, 1);
    test.queue.forget(node, &tenant).await.unwrap();
    let recount = test.queue.recount(LEASE, &Default::default()).await.unwrap();
    assert_eq!(recount, Recount::TooDeep);
    for structure in [Structure::Queue, Structure::Retry, Structure::InFlight] {
        test.queue.pass(structure, None).await.unwrap();
    }
    test.queue.tidy().await.unwrap();
    test.queue.mark_orphans(&[node]).await.unwrap();
    test.queue.give_up_orphans(LEASE, 1).await.unwrap();
    test.queue.waiting_tenants("0").await.unwrap();
    test.queue.recount_tenants(&[("acme".to_owned(), 0)]).await.unwrap();
    let lock = test.queue.lock(Lock::Sweep, LEASE).await.unwrap().unwrap();
    assert!(test.queue.hold(Lock::Sweep, &lock, LEASE).await.unwrap());
    test.queue.unlock(Lock::Sweep, &lock).await.unwrap();
    test.queue.without_job(&[node]).await.unwrap();
    test.queue.depths().await.unwrap();
    test.queue.check_writes().await.unwrap();
    test.queue.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_forbidden_is_named_at_the_start() {
    for command in ["zadd", "hmget", "zcard", "rpop", "time", "mget", "scan", "blmove"] {
        let (_redis, url) = server(&[rules(), vec![format!("-{command}")]].concat());
        let error = connect(&url).await.err().unwrap_or_else(|| panic!("{command}"));
        let QueueError::Setup(error) = error else { panic!("{command}: {error:?}") };
        let name = format!("the command {}", command.to_uppercase());
        assert!(error.contains(&name) && error.contains("ACL SETUSER"), "{error}");
        assert!(!error.contains("SECRET"), "{error}");
    }
    for command in ["evalsha", "script|load"] {
        let (_redis, url) = server(&[rules(), vec![format!("-{command}")]].concat());
        let error = connect(&url).await.err().unwrap_or_else(|| panic!("{command}"));
        let QueueError::Refused(reason) = error else { panic!("{command}: {error:?}") };
        assert!(reason.to_string().contains(command), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_operators_keep_to_themselves_are_not_needed() {
    let all = ["on", ">SECRET", "~embedding:*", "+@all", "-@dangerous", "-client", "-info"];
    let (_redis, url) = server(&all.map(str::to_owned));
    connect(&url).await.unwrap().check_writes().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_forbidden_are_named_at_the_start() {
    let rules = |pattern: &str| {
        let own = |rule: String| if rule.starts_with('~') { pattern.to_owned() } else { rule };
        rules().into_iter().map(own).collect::<Vec<_>>()
    };
    let (_redis, url) = server(&rules("~app:*"));
    let QueueError::Setup(error) = connect(&url).await.err().unwrap() else { panic!() };
    assert!(error.contains("embedding:queue"), "{error}");
    let (_redis, url) = server(&rules("~embedding:queue*"));
    let QueueError::Setup(error) = connect(&url).await.err().unwrap() else { panic!() };
    for key in
        ["embedding:retry", "embedding:dlq", "embedding:pending:", "embedding:tenant:pending:"]
    {
        assert!(error.contains(key), "{error}");
    }
    assert!(!error.contains("the key embedding:queue"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_meanwhile_is_named_by_readiness() {
    let (redis, url) = server(&rules());
    let queue = connect(&url).await.unwrap();
    redis.cli(&["ACL", "SETUSER", "vecmill", "-evalsha"]);
    let error = queue.check_writes().await.unwrap_err();
    let QueueError::Refused(reason) = error else { panic!("{error:?}") };
    assert!(reason.to_string().contains("evalsha"), "{reason}");
    redis.cli(&["ACL", "SETUSER", "vecmill", "+evalsha", "-zadd"]);
    let error = queue.check_writes().await.unwrap_err().to_string();
    assert!(error.contains("the command ZADD"), "{error}");
    redis.cli(&["ACL", "SETUSER", "vecmill", "+zadd"]);
    queue.check_writes().await.unwrap();
}

#[test]
fn the_scripts_use_no_command_that_is_not_asked_for() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/lua");
    let asked = fs::read_to_string(scripts.join("permissions.lua")).unwrap();
    let words: BTreeSet<&str> = asked.split(|c: char| !c.is_ascii_uppercase()).collect();
    for script in fs::read_dir(scripts).unwrap() {
        let script = fs::read_to_string(script.unwrap().path()).unwrap();
        for call in script.split("call('").skip(1) {
            let command = call.split('\'').next().unwrap();
            assert!(words.contains(command), "{command}");
        }
    }
}
