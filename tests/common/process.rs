//! A server process that ends with the test program, however that ends.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Starts the server `"$@"` in the background, and again or signals it as standard input says.
/// At the end of the input, which comes also when the test program is killed, it ends the server
/// and removes its directory.
const WATCHDOG: &str = r#"
dir=$1 end=$2
shift 2
launch() {
    "$@" </dev/null >>"$dir/log" 2>&1 &
    pid=$!
}
launch "$@"
echo "$pid"
while read -r command; do
    case $command in
    start) launch "$@" ;;
    *) kill -s "$command" "$pid"; wait "$pid" ;;
    esac
    echo "$pid"
done
kill -s "$end" "$pid"
wait "$pid"
rm -rf "$dir"
"#;

/// A server under its watchdog.
pub struct ServerProcess {
    watchdog: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl ServerProcess {
    /// Starts a server that may write to `dir`; `end` is the signal that ends it. `wrapper` is
    /// a command that runs another one, such as `setpriv`, or nothing.
    pub fn start(wrapper: &[&str], dir: &Path, end: &str, server: &[&str]) -> Self {
        let shell = ["sh", "-c", WATCHDOG, "watchdog", dir.to_str().unwrap(), end];
        let words: Vec<&str> = [wrapper, &shell, server].concat();
        let mut watchdog = Command::new(words[0])
            .args(&words[1..])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", words[0]));
        let commands = watchdog.stdin.take();
        let answers = BufReader::new(watchdog.stdout.take().unwrap());
        let mut process = Self { watchdog, commands, answers };
        process.answer();
        process
    }

    /// Sends the server a signal that ends it, and waits for its end.
    pub fn end(&mut self, signal: &str) {
        self.command(signal);
    }

    /// Starts the server again after it was ended.
    pub fn start_again(&mut self) {
        self.command("start");
    }

    fn command(&mut self, command: &str) {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{command}").unwrap();
        self.answer();
    }

    fn answer(&mut self) {
        let mut pid = String::new();
        self.answers.read_line(&mut pid).unwrap();
        assert!(pid.trim().parse::<u32>().is_ok(), "the watchdog of a server ended");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.watchdog.wait();
    }
}
