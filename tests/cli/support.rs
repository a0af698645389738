//! Runs the program, and looks at how it ended.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// The longest that a run may take.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Stands in every node; no message may repeat it.
pub const TEXT: &str = "a text that is nobody else's business";

/// The program with the environment that a test gives it, and no other.
pub fn vecmill(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command
        .args(arguments)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
    // The test's own log level would show in what the program prints.
    command.envs(environment.iter().copied()).env("RUST_LOG", "warn");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// How a run ended.
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed to standard output.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

impl Ended {
    /// It ended with this code.
    pub fn assert_code(&self, code: i32) {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
    }

    /// It was done, and standard output is one line of JSON.
    pub fn json(&self) -> Value {
        self.assert_code(0);
        self.json_whatever_the_code()
    }

    /// The line of JSON that it printed, though it may have failed.
    pub fn json_whatever_the_code(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// It failed with one line that says this.
    pub fn assert_one_line(&self, words: &[&str]) {
        self.assert_code(1);
        assert_eq!((self.stdout.as_str(), self.stderr.lines().count()), ("", 1), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {}", self.stderr);
        }
    }
}

/// Waits for the end of a run.
pub async fn end_of(child: Child) -> Ended {
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
    let output = output.expect("the program ends").unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the program in this environment.
pub async fn run_in(environment: &[(&str, &str)], arguments: &[&str]) -> Ended {
    end_of(vecmill(arguments, environment).spawn().unwrap()).await
}

/// Runs the program in an empty environment.
pub async fn run(arguments: &[&str]) -> Ended {
    run_in(&[], arguments).await
}

/// The JSON Lines of nodes, each with its line number as its class.
pub fn lines(count: usize) -> String {
    let line =
        |i: usize| json!({"classes": [i.to_string()], "props": {"text": format!("{TEXT} {i}")}});
    (1..=count).map(|i| line(i).to_string() + "\n").collect()
}

/// Writes a JSON Lines file; its path.
pub fn file(dir: &Path, content: &str) -> String {
    let path = dir.join("nodes.jsonl");
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
