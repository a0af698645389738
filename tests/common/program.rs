//! The `vecmill` program as a process of its own, to be stopped and killed at will.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{app::with_short_intervals, wait_until};

const LISTENS_WITHIN: Duration = Duration::from_secs(30);

/// A running `vecmill`; it is killed with this value.
pub struct Program {
    child: Child,
    /// Holds what it prints.
    output: TempDir,
}

impl Program {
    /// Runs a subcommand in `dir`, with no environment but `PATH` and the settings. Intervals
    /// are short unless `settings` says otherwise.
    pub fn start(subcommand: &str, dir: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
        command.arg(subcommand);
        Self::run(command, &with_short_intervals(dir, settings))
    }

    /// Runs a command with no environment but `PATH` and what is given.
    pub fn run(mut command: Command, environment: &[(&str, &str)]) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name: &str| Stdio::from(File::create(output.path().join(name)).unwrap());
        let child = command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        Self { child, output }
    }

    /// Where it listens, once it does.
    pub async fn url(&self) -> String {
        let mut url = None;
        wait_until(LISTENS_WITHIN, async || {
            let printed = self.printed("stdout");
            url = printed
                .split_once("listens on ")
                .and_then(|(_, rest)| rest.split_once(' '))
                .map(|(url, _)| url.to_owned());
            url.is_some()
        })
        .await;
        url.unwrap()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        self.printed("stdout")
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        self.printed("stderr")
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        send_signal(signal, self.child.id());
    }

    /// Waits for its end; the exit code, or `None` when a signal ended it.
    pub async fn exit_code(&mut self, deadline: Duration) -> Option<i32> {
        let mut status = None;
        wait_until(deadline, async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn printed(&self, stream: &str) -> String {
        std::fs::read_to_string(self.output.path().join(stream)).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process; whether there was one.
pub fn send_signal(signal: &str, pid: u32) -> bool {
    let words = ["-s", signal, &pid.to_string()];
    Command::new("kill").args(words).stderr(Stdio::null()).status().unwrap().success()
}
