//! Where log lines go.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Writes log lines to standard error. `RUST_LOG` chooses them; the default is `info`, with
/// the libraries at `warn`.
pub fn init() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,vecmill=info"));
    // A second call in one process (tests) keeps the first set-up.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // A standard error that is gone must not take those down who write to it.
        .log_internal_errors(false)
        .try_init();
}
