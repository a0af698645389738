//! When to stop: SIGTERM, Ctrl-C or the end of the terminal.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask this process to stop; listening starts with [`listen`].
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None when this process was started so that it outlives its terminal (`nohup`).
    hang_up: Option<Signal>,
}

/// Listens from now on, instead of ending at once.
///
/// # Errors
/// The system refuses the handlers.
pub fn listen() -> std::io::Result<Signals> {
    Ok(Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        hang_up: match ignores_hang_up() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        },
    })
}

/// Whether SIGHUP was ignored when this process began, as Linux tells; elsewhere it is not known.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit 0 is signal 1.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

impl Signals {
    /// Waits for a signal of somebody who has lost patience. The end of the terminal is often told
    /// twice, and is no such signal.
    pub async fn recv_impatient(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the next signal.
    pub async fn recv(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hang_up => {}
        }
    }
}
