//! A Python producer and a Python worker beside ours, all of which are killed.

use std::{path::Path, process::Command, time::Duration};

use super::{
    checker::{Expected, check},
    plan::{Plan, Row, short_or_full},
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::{Program, TestRedis, wait_until};

fn python(site: &Site, arguments: &[&str]) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/foreign.py");
    let port = site.redis_server.as_ref().unwrap().port().to_string();
    let database = site.dsn.strip_prefix("sqlite://").unwrap();
    let mut command = Command::new("python3");
    command.arg(script).arg(arguments[0]).args([&port, database]).args(&arguments[1..]);
    Program::run(command, &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_and_a_foreign_one_share_a_queue_and_lose_nothing() {
    let mut plan = Plan::new("two workers and a foreign one, each killed").await;
    let mut row = Row::new("2 workers, a Python worker and producer, each killed", "SQLite, Redis");
    let (nodes, kills) = short_or_full((400, 2), (3_000, 8));
    let dir = tempfile::tempdir().unwrap();
    let dsn = format!("sqlite://{}", dir.path().join("vecmill.db").display());
    let redis = TestRedis::start_persistent();
    // How long a foreign worker may have a job before it is taken for dead.
    let settings = [("EMBEDDING_ORPHAN_SECONDS", "3")];
    let mut site = Site::on(Stores::Shared, dir, Some(redis), dsn, &settings);
    let api = site.start("api");
    let url = site.url(api).await;
    let batch_time = Duration::from_millis(25);
    let mut workers = [site.start_worker(batch_time), site.start_worker(batch_time)];
    let mut foreign = python(&site, &["work"]);
    let half = (nodes / 2).to_string();
    let mut producer = python(&site, &["produce", "0", &half]);
    let ids = site.ingest(&url, &texts(nodes / 2)).await;
    let progress = site.progress().await;
    let (share, mut by_foreign) = (nodes as u64 / (kills + 1), 0);
    let embedded_by = |foreign: &Program| foreign.stdout().lines().count();
    for kill in 0..kills {
        progress.reach(kill * share + plan.pick(1..share)).await;
        wait_until(DEADLINE, async || embedded_by(&foreign) > 0).await;
        foreign.kill();
        by_foreign += embedded_by(&foreign);
        foreign = python(&site, &["work"]);
        let worker = &mut workers[kill as usize % 2];
        site.program(*worker).kill();
        *worker = site.start_worker(batch_time);
    }
    assert_eq!(producer.exit_code(DEADLINE).await, Some(0), "{}", producer.stderr());
    let mut checked = check(&site, &Expected { ids: &ids, ..Expected::default() }).await;
    assert!(foreign.is_running(), "{}", foreign.stderr());
    by_foreign += embedded_by(&foreign);
    println!("embedded by the foreign worker: {by_foreign}");
    checked.embedded_again = (site.embedded() + by_foreign).saturating_sub(checked.nodes);
    row.checked(checked);
}
