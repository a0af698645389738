//! The clock of Redis is set back by ten minutes, while jobs wait for a time.

use std::time::{Duration, Instant};

use super::{
    checker::{Expected, check},
    plan::{Plan, Row},
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::{TestPostgres, TestRedis, wait_until};

const NODES: usize = 60;
const SET_BACK: i64 = -600;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_lost_worker_come_back_in_time_although_the_clock_was_set_back() {
    let _plan = Plan::new("the clock of Redis is set back").await;
    let mut row = Row::new("the clock of Redis is set back by 10 minutes", Stores::Shared.name());
    let dsn = TestPostgres::shared().database().await;
    let dir = tempfile::tempdir().unwrap();
    let mut site = Site::on(Stores::Shared, dir, Some(TestRedis::start_with_clock()), dsn, &[]);
    let (worker, api) = site.start_all(Duration::from_millis(300)).await;
    let ids = site.ingest(&api, &texts(NODES)).await;
    let progress = site.progress().await;
    progress.reach(8).await;
    site.program(worker).kill();
    wait_until(DEADLINE, async || site.redis("HLEN embedding:queue:inflight") != "0").await;
    site.redis_server.as_ref().unwrap().shift_clock(SET_BACK);
    let set_back = Instant::now();
    // One that knows nothing of what was before.
    site.start_worker(Duration::from_millis(10));
    progress.reach(NODES as u64).await;
    row.recovered(set_back.elapsed());
    let expected = Expected { ids: &ids, embedded_again: Some(NODES), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}
