//! Servers that forget their scripts, that go away and come back; and keys of other names.

use std::{collections::HashMap, time::Duration};

use fred::error::{Error, ErrorKind};
use uuid::Uuid;
use vecmill::{
    config::Settings,
    queue::{DeadLetter, Lock, Queue, QueueError, Recount},
};

use crate::{
    common::{TestRedis, wait_until},
    support::{DEADLINE, LEASE, TestQueue, held, job, jobs},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_the_scripts_gets_them_again() {
    let test = TestQueue::start().await;
    let forget = || assert_eq!(test.redis.cli(&["SCRIPT", "FLUSH"]), "OK");
    forget();
    test.enqueue(&jobs("acme", 2)).await;
    forget();
    let mut claimed = test.claim(2).await.into_iter().map(held);
    let (lease, job) = claimed.next().unwrap();
    forget();
    test.queue.retry(&[(lease, job, Duration::ZERO)]).await.unwrap();
    forget();
    wait_until(DEADLINE, async || test.queue.promote_due().await.unwrap().0 == 1).await;
    forget();
    assert_eq!(test.queue.ack(&[claimed.next().unwrap()]).await.unwrap(), 0);
    assert_eq!(test.depths().await, [1, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_used_again() {
    let mut test = TestQueue::on(TestRedis::start_persistent(), &[]).await;
    let kept = test.enqueue_one("acme").await;
    for _ in 0..2 {
        test.redis.kill();
        let (claim, ping, wait) = tokio::join!(
            test.queue.claim(1, LEASE, None),
            test.queue.ping(),
            test.queue.wait_for_job(Duration::from_millis(100)),
        );
        assert!(matches!(claim, Err(QueueError::Unavailable(_))), "{claim:?}");
        assert!(matches!(ping, Err(QueueError::Unavailable(_))), "{ping:?}");
        assert!(matches!(wait, Err(QueueError::Unavailable(_))), "{wait:?}");
        test.redis.restart();
        wait_until(DEADLINE, async || test.queue.ping().await.is_ok()).await;
        wait_until(DEADLINE, async || test.queue.wait_for_job(DEADLINE).await.is_ok()).await;
    }
    let done = test.claim_one().await;
    assert_eq!(done.1.encode(), kept.encode(), "nothing is lost, and no script is missing");
    assert_eq!(test.queue.ack(&[done]).await.unwrap(), 0);
    test.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_while_somebody_waits_ends_the_wait() {
    let mut test = TestQueue::start().await;
    let config = Settings::with(&[]).unwrap();
    let waiting = Queue::connect(&test.redis.url(), &config.queue).await.unwrap();
    let wait = tokio::spawn(async move { waiting.wait_for_job(DEADLINE).await });
    wait_until(DEADLINE, async || {
        test.redis.cli(&["INFO", "clients"]).contains("blocked_clients:1")
    })
    .await;
    test.redis.kill();
    let ended = tokio::time::timeout(DEADLINE / 2, wait).await.expect("it ends by itself");
    assert!(matches!(ended.unwrap(), Err(QueueError::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_writes_is_away_for_a_while() {
    let test = TestQueue::start().await;
    test.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = test.queue.enqueue(&jobs("acme", 1), None).await;
    assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
    test.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    test.enqueue_one("acme").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_what_a_write_would_and_leaves_nothing() {
    let redis = TestRedis::start_with(&["--enable-protected-configs", "yes"]);
    let test = TestQueue::on(redis, &[]).await;
    test.queue.check_writes().await.unwrap();
    assert_eq!(test.redis.cli(&["KEYS", "*"]), "");
    let reason = async || match test.queue.check_writes().await {
        Err(QueueError::Unavailable(reason)) => reason.to_string(),
        other => panic!("{other:?}"),
    };
    test.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(reason().await.starts_with("OOM "));
    test.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    test.redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    assert!(reason().await.starts_with("NOREPLICAS "));
    test.redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    // A snapshot that fails, as on a full disk.
    test.redis.cli(&["CONFIG", "SET", "dir", "/proc"]);
    test.redis.cli(&["CONFIG", "SET", "save", "3600 1"]);
    test.redis.cli(&["BGSAVE"]);
    wait_until(DEADLINE, async || {
        let failed = "rdb_last_bgsave_status:err";
        test.redis.cli(&["INFO", "persistence"]).contains(failed)
    })
    .await;
    assert!(reason().await.starts_with("MISCONF "));
    test.redis.cli(&["CONFIG", "SET", "save", ""]);
    test.queue.check_writes().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_no_server_to_start_on() {
    let (primary, replica) = (TestRedis::start(), TestRedis::start());
    replica.cli(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    let error = Queue::connect(&replica.url(), &Settings::with(&[]).unwrap().queue).await;
    let Err(QueueError::Unavailable(reason)) = error else { panic!("it may pass") };
    let place = format!("127.0.0.1:{} (REDIS_URL): READONLY ", replica.port());
    assert!(reason.to_string().starts_with(&place), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_a_start_names_place_variable_and_cause_once() {
    let mut redis = TestRedis::start();
    redis.cli(&["CONFIG", "SET", "requirepass", "RIGHT"]);
    let config = Settings::with(&[]).unwrap().queue;
    let error = async |url: &str| {
        let error = Queue::connect(url, &config).await.err().unwrap();
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    };
    let place = format!("127.0.0.1:{} (REDIS_URL): ", redis.port());
    let wrong = error(&redis.url().replace("//", "//:WRONG@")).await;
    let said = format!("Redis refused a command: {place}WRONGPASS ");
    assert!(wrong.starts_with(&said) && !wrong.contains(":WRONG"), "{wrong}");
    let wrong = error(&format!("{}?db=99", redis.url().replace("//", "//:RIGHT@"))).await;
    assert!(wrong.contains("DB index is out of range"), "{wrong}");
    redis.kill();
    let away = error(&redis.url()).await;
    assert_eq!(away, format!("Redis is not available: {place}connection refused"));
    let unknown = error("redis://no-such-host.invalid:1").await;
    assert!(unknown.contains("no-such-host.invalid:1 (REDIS_URL): "), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_chosen_as_redis_py_does() {
    let redis = TestRedis::start();
    let config = Settings::with(&[]).unwrap().queue;
    for (url, place) in [
        (format!("{}?db=2", redis.url()), "db2"),
        (format!("{}/3", redis.url()), "db3"),
        (format!("unix:{}?db=4", redis.socket().display()), "db4"),
    ] {
        let queue = Queue::connect(&url, &config).await.unwrap();
        queue.enqueue(&jobs("acme", 1), None).await.unwrap();
        assert!(redis.cli(&["INFO", "keyspace"]).contains(&format!("{place}:keys=3")), "{url}");
    }
}

#[test]
fn errors_that_pass_are_told_from_those_that_stay() {
    let is_unavailable = |details: &'static str| {
        matches!(Error::new(ErrorKind::Unknown, details).into(), QueueError::Unavailable(_))
    };
    for passing in [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "NOREPLICAS Not enough good replicas to write.",
        "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -OOM command \
         not allowed when used memory > 'maxmemory'.",
    ] {
        assert!(is_unavailable(passing), "{passing}");
    }
    for staying in
        ["WRONGTYPE Operation against a key", "ERR Error running script: @user_script:1: nil"]
    {
        assert!(!is_unavailable(staying), "{staying}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_at_all_is_unavailable_and_its_address_no_secret() {
    let mut redis = TestRedis::start();
    redis.kill();
    let url = redis.url().replace("redis://", "redis://:secret@");
    let config = Settings::with(&[]).unwrap();
    let error = Queue::connect(&url, &config.queue).await.err().unwrap();
    assert!(matches!(error, QueueError::Unavailable(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_an_address_too() {
    let redis = TestRedis::start();
    let config = Settings::with(&[]).unwrap();
    let url = format!("unix:{}", redis.socket().display());
    Queue::connect(&url, &config.queue).await.unwrap().ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_can_have_another_name() {
    let names = [
        ("EMBEDDING_QUEUE_KEY", "other:q"),
        ("EMBEDDING_RETRY_KEY", "other:r"),
        ("EMBEDDING_DLQ_KEY", "other:d"),
        // Also one that would be a pattern.
        ("EMBEDDING_PENDING_PREFIX", "other:[p]*?"),
        ("EMBEDDING_TENANT_PENDING_PREFIX", r"other:\t[a-z]"),
    ];
    let test = TestQueue::with(&names).await;
    let three = jobs("acme", 3);
    test.enqueue(&three).await;
    let pending = format!("other:[p]*?:{}", three[0].node_id);
    assert_eq!(test.redis.cli(&["LLEN", "other:q"]), "3");
    assert_eq!(test.redis.cli(&["GET", &pending]), three[0].job_id);
    assert_eq!(test.redis.cli(&["GET", r"other:\t[a-z]:acme"]), "3");

    test.redis.cli(&["DEL", &pending]);
    test.redis.cli(&["SET", r"other:\t[a-z]:acme", "9"]);
    test.redis.cli(&["SET", r"other:\t[a-z]:gone", "9"]);
    let recount = test.queue.recount(LEASE, &HashMap::new()).await.unwrap();
    let mended = Recount::Done {
        tenant_counts: 2,
        pending_keys: 1,
        leases: 0,
        given_up: 0,
        mistyped: Vec::new(),
    };
    assert_eq!(recount, mended);
    assert_eq!(test.redis.cli(&["GET", r"other:\t[a-z]:gone"]), "");
    let orphan = Uuid::new_v4().to_string();
    test.redis.cli(&["SET", &format!("other:[p]*?:{orphan}"), "1"]);
    let recount = test.queue.recount(LEASE, &HashMap::new()).await.unwrap();
    assert_eq!(recount, Recount::Ask(vec![orphan]));

    let mut claimed = test.claim(3).await.into_iter().map(held);
    let (lease, failed) = claimed.next().unwrap();
    test.queue.retry(&[(lease, failed, LEASE)]).await.unwrap();
    let (lease, dead) = claimed.next().unwrap();
    let letter = DeadLetter::of_job(lease, &dead, "it fails", 1.0);
    test.queue.dead_letter(&[letter], false).await.unwrap();
    assert_eq!(test.redis.cli(&["ZCARD", "other:r"]), "1");
    assert_eq!(test.redis.cli(&["LLEN", "other:d"]), "1");
    test.redis.cli(&["LPUSH", "other:q", &job("acme").encode()]);
    test.queue.wait_for_job(DEADLINE).await.unwrap();
    let depths = test.queue.depths().await.unwrap();
    assert_eq!((depths.queue, depths.inflight, depths.retry, depths.dlq), (1, 1, 1, 1));
    test.queue.lock(Lock::Sweep, LEASE).await.unwrap();
    let foreign: Vec<String> =
        test.lines(&["KEYS", "*"]).into_iter().filter(|key| !key.starts_with("other:")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}
