//! When to stop: SIGTERM or Ctrl-C.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask this process to stop; listening starts with [`listen`].
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Listens from now on, instead of ending at once.
///
/// # Errors
/// The system refuses the handlers.
pub fn listen() -> std::io::Result<Signals> {
    Ok(Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    })
}

impl Signals {
    /// Waits for the next signal.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
