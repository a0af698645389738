//! Redis over TLS, with a certificate by an authority that only the operator knows.

use std::time::Duration;

use super::{DEADLINE, all_ready, ingest};
use crate::common::{Authority, Program, TestApp, TestRedis, wait_until};

/// Starts `serve` on this Redis, lets it embed, and stops it.
async fn works(url: &str, authority: &Authority) {
    let dir = tempfile::tempdir().unwrap();
    let file = authority.file();
    let settings = [("REDIS_URL", url), ("SSL_CERT_FILE", file.as_str())];
    let mut serve = Program::start("serve", dir.path(), &settings);
    let client = TestApp::client_of(&serve.url().await);
    ingest(&client, 50).await;
    all_ready(&client, 50).await;
    serve.signal("TERM");
    assert_eq!(serve.exit_code(DEADLINE).await, Some(0), "{}", serve.stderr());
}

/// What `serve` says before it ends.
async fn refused(url: &str, more: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let settings = [[("REDIS_URL", url)].as_slice(), more].concat();
    let mut serve = Program::start("serve", dir.path(), &settings);
    assert_eq!(serve.exit_code(DEADLINE).await, Some(1), "{}", serve.stderr());
    serve.stderr()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_speaks_tls_is_used_as_any_other() {
    let authority = Authority::new();
    let redis = TestRedis::start_tls(&authority);
    for host in ["127.0.0.1", "localhost"] {
        works(&format!("rediss://{host}:{}/3", redis.tls_port()), &authority).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_speak_tls_lead_to_their_primary() {
    let authority = Authority::new();
    let primary = TestRedis::start_tls(&authority);
    let sentinel = TestRedis::start_tls_sentinel(&authority, primary.tls_port());
    wait_until(Duration::from_secs(20), async || {
        sentinel.cli(&["SENTINEL", "MASTER", "vecmill"]).contains("flags\nmaster\n")
    })
    .await;
    let sentinel = sentinel.tls_port();
    works(
        &format!("rediss-sentinel://127.0.0.1:{sentinel}?sentinelServiceName=vecmill"),
        &authority,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_refused_and_the_error_says_what_to_do() {
    let (authority, other) = (Authority::new(), Authority::new());
    let redis = TestRedis::start_tls(&authority);
    let url = format!("rediss://:hunter2@127.0.0.1:{}", redis.tls_port());
    let other = other.file();
    for trusted in [[].as_slice(), &[("SSL_CERT_FILE", other.as_str())]] {
        let error = refused(&url, trusted).await;
        let place = format!("127.0.0.1:{} (REDIS_URL)", redis.tls_port());
        assert!(error.contains(&place) && error.contains("SSL_CERT_FILE"), "{error}");
        assert!(error.contains("is refused (") && !error.contains("hunter2"), "{error}");
    }
    let error = refused(&url, &[("SSL_CERT_FILE", "/nowhere.pem")]).await;
    assert!(error.contains("SSL_CERT_FILE") && error.contains("/nowhere.pem"), "{error}");
}
