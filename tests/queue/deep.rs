//! The fair order at depth: whoever brings few jobs is served soon, however many wait.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    fair::{claim_merged, pause_is_over},
    support::{TestQueue, jobs, of_tenant, tenant},
};

/// What a worker claims at once.
const CLAIM: usize = 250;
/// A tenant that has nothing in the queue is served within so many claimed jobs.
const SOON: usize = 2_000;

static LOADS: AtomicU32 = AtomicU32::new(1);

impl TestQueue {
    /// Puts jobs on the queue at once, and nothing else, as a foreign producer in a hurry does.
    pub fn load(&self, tenant: &str, tenants: usize, jobs: usize) {
        let script = include_str!("load.lua");
        let (jobs, tenants) = (jobs.to_string(), tenants.to_string());
        let first = LOADS.fetch_add(1, Ordering::Relaxed).to_string();
        let command = ["EVAL", script, "1", "embedding:queue", &jobs, tenant, &tenants, &first];
        let _: u64 = self.redis.cli(&command).parse().unwrap();
    }

    /// Claims until so many of the tenant's jobs were claimed; answers after how many jobs the first
    /// was, and the last. Claimed jobs end, so that Redis does not grow.
    async fn served(&self, name: &str, jobs: usize, most: usize) -> (usize, usize) {
        let (mut claimed, mut found, mut first) = (0, 0, None);
        while found < jobs {
            assert!(claimed < most, "{found} jobs of {name} among {claimed}");
            let new = self.claim(CLAIM).await;
            claimed += new.len();
            found += of_tenant(&new, name);
            if found > 0 {
                first.get_or_insert(claimed);
            }
            self.end(new).await;
        }
        (first.unwrap_or(claimed), claimed)
    }

    async fn end(&self, claimed: Vec<vecmill::queue::Claimed>) {
        let done: Vec<_> = claimed.into_iter().map(crate::support::held).collect();
        self.queue.ack(&done).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_comes_late_is_served_soon_behind_a_million_of_one_other() {
    let test = TestQueue::start().await;
    test.load("many", 1, 1_000_000);
    test.served("many", 1, CLAIM).await;
    test.enqueue(&jobs("late", 50)).await;
    let (first, last) = test.served("late", 50, 10_000).await;
    assert!(first <= SOON && last <= SOON, "{first}, {last}");
    // Again, when all is known.
    test.enqueue(&jobs("later", 2_000)).await;
    let (first, last) = test.served("later", 2_000, 20_000).await;
    assert!(first <= SOON && last <= 3 * 2_000, "{first}, {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_comes_late_is_served_soon_behind_a_million_of_ten_thousand_others() {
    let test = TestQueue::start().await;
    test.load("t", 10_000, 1_000_000);
    test.served("t1", 1, 100_000).await;
    test.enqueue(&jobs("late", 50)).await;
    let (first, _) = test.served("late", 1, 10_000).await;
    assert!(first <= SOON, "{first}");
    // One in ten thousand is its share, as far as claims are.
    let (_, fifth) = test.served("late", 5, 60_000).await;
    assert!(fifth <= 50_000, "{fifth}");
    for name in ["new1", "new2", "new3"] {
        test.enqueue(&jobs(name, 20)).await;
        let (first, _) = test.served(name, 1, 10_000).await;
        assert!(first <= SOON, "{name}: {first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_wrong_where_nobody_is_in_need() {
    let test = TestQueue::start().await;
    let turn = || (0..500).flat_map(|number| jobs(&format!("t{number}"), 1)).collect::<Vec<_>>();
    for _ in 0..40 {
        test.enqueue(&turn()).await;
    }
    test.claim(64).await;
    // It is behind until the last of these is served, and has its share after the first exchange.
    test.enqueue(&jobs("late", 50)).await;
    let (mut nodes, mut late) = (HashSet::new(), 0);
    for _ in 0..100 {
        pause_is_over(&test, "at");
        let claimed = claim_merged(&test, 64).await;
        late += of_tenant(&claimed, "late");
        nodes.extend(claimed.iter().map(|claimed| claimed.job.as_ref().unwrap().node_id));
        test.end(claimed).await;
    }
    assert_eq!(nodes.len(), 6_400, "each job is claimed once");
    // One in each turn of 501.
    assert!((8..=16).contains(&late), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_with_little_does_not_wait_for_those_who_are_with_much() {
    let test = TestQueue::start().await;
    test.load("many", 1, 300_000);
    test.load("much", 3, 100_000);
    test.load("few", 1, 50);
    test.load("much", 3, 100_000);
    test.load("many", 1, 100_000);
    let (first, last) = test.served("few", 50, 10_000).await;
    assert!(first <= SOON && last <= 2 * SOON, "{first}, {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_in_the_middle_of_a_million_is_found() {
    let test = TestQueue::start().await;
    test.load("many", 1, 500_000);
    test.load("few", 1, 50);
    test.load("many", 1, 500_000);
    test.load("last", 1, 50);
    let (first, _) = test.served("few", 50, 10_000).await;
    assert!(first <= SOON, "{first}");
    let (first, _) = test.served("last", 50, 10_000).await;
    assert!(first <= SOON, "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_tenants_have_their_shares_also_where_they_bring_much() {
    let test = TestQueue::start().await;
    test.load("many", 1, 300_000);
    test.served("many", 1, CLAIM).await;
    test.load("much", 1, 20_000);
    test.load("many", 1, 300_000);
    for number in 0..100 {
        test.enqueue(&jobs(&format!("late{number}"), 50)).await;
    }
    let mut served: HashMap<String, usize> = HashMap::new();
    for _ in 0..80 {
        pause_is_over(&test, "at");
        let claimed = claim_merged(&test, CLAIM).await;
        for job in &claimed {
            *served.entry(job.job.as_ref().unwrap().tenant_id.to_string()).or_default() += 1;
        }
        test.end(claimed).await;
    }
    let least = (0..100).map(|number| served.get(&format!("late{number}")).copied()).min();
    // 102 tenants share 20,000 claims.
    assert!(least.flatten() >= Some(40), "{served:?}");
    assert!(served["much"] >= 100, "{served:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_came_one_after_another_do_not_wait_for_each_other() {
    for (others, before, after) in [(1, 100_000, 3_000), (150, 60_000, 0), (1, 20_000, 0)] {
        let test = TestQueue::start().await;
        test.load("t", others, before);
        test.load("few", 1, 5);
        test.load("t", others, after);
        let (first, last) = test.served("few", 5, 10_000).await;
        assert!(first <= SOON && last <= SOON, "{others}, {before}: {first}, {last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_written_in_different_ways_are_one_tenant() {
    for (name, written) in [
        (r#"a"b"#, r#""a\"b""#),
        ("größe", r#""gr\u00f6\u00dfe""#),
        (r"back\slash", r#""back\\slash""#),
        ("tab/slash", r#""tab\/slash""#),
        ("default", "null"),
    ] {
        let test = TestQueue::start().await;
        for id in jobs(name, 5).iter().map(|job| job.node_id) {
            test.push(&format!(r#"{{"job_id": "1", "tenant_id" : {written}, "node_id": "{id}"}}"#));
        }
        test.enqueue(&[jobs(name, 5), jobs("other", 5)].concat()).await;
        let of_tenants = HashMap::from([(tenant(name), 0)]);
        let limits = vecmill::queue::TenantLimits { default: 1_000, of_tenants };
        let lease = crate::support::LEASE;
        let claimed = test.queue.claim(100, lease, Some(&limits)).await.unwrap();
        assert_eq!((claimed.len(), of_tenant(&claimed, "other")), (5, 5), "{name}");
        let all = test.claim(100).await;
        assert_eq!(of_tenant(&all, name), 10);
    }
}
