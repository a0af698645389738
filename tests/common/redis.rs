//! A Redis of a test's own.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{Authority, POLL, free_port, process::ServerProcess, wait_until_blocking};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A Redis server in a temporary directory; it ends with this value or the test program.
pub struct TestRedis {
    process: ServerProcess,
    socket: PathBuf,
    port: u16,
    tls_port: Option<u16>,
    /// Where its own clock is kept, if it has one.
    clock: Option<PathBuf>,
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        if let Some(dir) = &self.clock {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

impl TestRedis {
    /// A server that keeps nothing on disk: a restart makes it lose its memory.
    pub fn start() -> Self {
        Self::start_with(&["--appendonly", "no"])
    }

    /// A server that has every acknowledged write on disk: a restart loses nothing.
    pub fn start_persistent() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A sentinel that watches the server on this port under the name `vecmill`, and has its
    /// replica take over once it does not answer for half a second.
    pub fn start_sentinel(primary: u16) -> Self {
        let monitor = format!(
            "sentinel monitor vecmill 127.0.0.1 {primary} 1\n\
             sentinel down-after-milliseconds vecmill 500\n\
             sentinel failover-timeout vecmill 5000\n"
        );
        Self::start_from(&[], Some(&monitor), &["--sentinel"])
    }

    /// A server that speaks TLS on a second port, with a certificate of [`Authority`].
    pub fn start_tls(authority: &Authority) -> Self {
        let port = free_port();
        let options = authority.options(port);
        let mut redis = Self::start_with(&options.each_ref().map(String::as_str));
        redis.tls_port = Some(port);
        redis
    }

    /// A sentinel that speaks TLS, and finds the server on this TLS port.
    pub fn start_tls_sentinel(authority: &Authority, primary: u16) -> Self {
        let monitor = format!("sentinel monitor vecmill 127.0.0.1 {primary} 1\n");
        let port = free_port();
        let options = authority.options(port);
        let options: Vec<&str> = options
            .iter()
            .map(String::as_str)
            .chain(["--tls-replication", "yes", "--sentinel"])
            .collect();
        let mut redis = Self::start_from(&[], Some(&monitor), &options);
        redis.tls_port = Some(port);
        redis
    }

    /// The port on which it speaks TLS.
    pub fn tls_port(&self) -> u16 {
        self.tls_port.expect("it speaks TLS")
    }

    /// A server whose clock is ahead of the machine's by so many seconds as [`Self::shift_clock`]
    /// says last.
    pub fn start_with_clock() -> Self {
        let dir = tempfile::Builder::new().prefix("vecmill-clock").tempdir().unwrap().keep();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/clock.c");
        let (library, shift) = (dir.join("clock.so"), dir.join("shift"));
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status();
        assert!(built.expect("cc is installed").success());
        std::fs::write(&shift, "0").unwrap();
        let preload = format!("LD_PRELOAD={}", library.display());
        let file = format!("CLOCK_SHIFT_FILE={}", shift.display());
        let mut redis = Self::start_from(&["env", &preload, &file], None, &["--appendonly", "no"]);
        redis.clock = Some(dir);
        redis
    }

    /// Sets the clock of a server by [`Self::start_with_clock`] so many seconds before or after
    /// that of the machine.
    pub fn shift_clock(&self, seconds: i64) {
        let dir = self.clock.as_ref().expect("it has a clock of its own");
        // Not half of a number, at no time.
        std::fs::write(dir.join("next"), seconds.to_string()).unwrap();
        std::fs::rename(dir.join("next"), dir.join("shift")).unwrap();
    }

    /// A server with further options.
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_from(&[], None, options)
    }

    fn start_from(wrapper: &[&str], config: Option<&str>, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("vecmill-redis").tempdir().unwrap().keep();
        let socket = dir.join("redis.sock");
        let port = free_port();
        let (program, port_option) = (program(), port.to_string());
        let file = config.map(|config| {
            let file = dir.join("redis.conf");
            std::fs::write(&file, config).unwrap();
            file
        });
        let server = [
            [program.as_str()].as_slice(),
            file.as_ref().map(|file| file.to_str().unwrap()).as_slice(),
            &[
                "--port",
                port_option.as_str(),
                "--bind",
                "127.0.0.1",
                "--unixsocket",
                socket.to_str().unwrap(),
                "--dir",
                dir.to_str().unwrap(),
                "--save",
                "",
            ],
            options,
        ]
        .concat();
        let process = ServerProcess::start(wrapper, &dir, "KILL", &server);
        let redis = Self { process, socket, port, tls_port: None, clock: None };
        redis.wait_ready();
        redis
    }

    /// The URL of its TCP port.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server that runs now.
    pub fn pid(&self) -> u32 {
        let info = self.cli(&["INFO", "server"]);
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:"));
        pid.unwrap().parse().unwrap()
    }

    /// Its unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs a command and answers as `redis-cli` would print it: an array one element a line,
    /// nil as nothing, an error as its message.
    pub fn cli(&self, command: &[&str]) -> String {
        self.try_cli(command).expect("Redis answers")
    }

    /// Ends the server as a crash would.
    pub fn kill(&mut self) {
        self.process.end("KILL");
    }

    /// Starts the server after [`Self::kill`], on the same port, socket and directory.
    pub fn restart(&mut self) {
        self.process.start_again();
        self.wait_ready();
    }

    /// Forgets all keys.
    pub fn flush(&self) {
        assert_eq!(self.cli(&["FLUSHALL"]), "OK");
    }

    fn wait_ready(&self) {
        wait_until_blocking(READY_WITHIN, || {
            self.try_cli(&["PING"]).is_ok_and(|answer| answer == "PONG")
        });
    }

    fn try_cli(&self, command: &[&str]) -> std::io::Result<String> {
        redis_cli(TcpStream::connect(("127.0.0.1", self.port))?, command)
    }
}

/// Sends a command, given as words, to the private Redis of a `serve` on this data directory.
pub fn private_redis_cli(data_dir: &Path, command: &[&str]) -> std::io::Result<String> {
    let stream = UnixStream::connect(data_dir.join("redis/redis.sock"))?;
    stream.set_read_timeout(Some(READY_WITHIN))?;
    redis_cli(stream, command)
}

/// Ends the private Redis that a killed `serve` left behind in its data directory, if it did.
pub fn end_private_redis(data_dir: &Path) {
    let (socket, start) = (data_dir.join("redis/redis.sock"), Instant::now());
    // Not by `wait_until`: this is called while a failed test is being cleaned up.
    while let Ok(stream) = UnixStream::connect(&socket)
        && start.elapsed() < READY_WITHIN
    {
        // It ends without an answer; one that still loads its data is asked again.
        let _ = stream.set_read_timeout(Some(READY_WITHIN));
        let _ = redis_cli(stream, &["SHUTDOWN", "NOSAVE"]);
        std::thread::sleep(POLL);
    }
}

/// Sends a command over a connection to a Redis; the answer is as [`TestRedis::cli`] has it.
pub fn redis_cli<S: Read + Write>(
    mut stream: S,
    command: &[impl AsRef<[u8]>],
) -> std::io::Result<String> {
    let mut request = format!("*{}\r\n", command.len()).into_bytes();
    for word in command.iter().map(AsRef::as_ref) {
        write!(request, "${}\r\n", word.len())?;
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request)?;
    read_answer(&mut BufReader::new(stream))
}

fn read_answer(stream: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let (kind, rest) = line
        .trim_end()
        .split_at_checked(1)
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
    let length = || rest.parse::<i64>().map_err(std::io::Error::other);
    match kind {
        "$" => {
            let Ok(length) = usize::try_from(length()?) else {
                return Ok(String::new());
            };
            let mut bytes = vec![0; length + 2];
            stream.read_exact(&mut bytes)?;
            bytes.truncate(length);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" => {
            let elements: Vec<String> =
                (0..length()?).map(|_| read_answer(stream)).collect::<Result<_, _>>()?;
            Ok(elements.join("\n"))
        }
        _ => Ok(rest.to_owned()),
    }
}

/// `$REDIS_SERVER`, or the first of `redis-server` and `valkey-server` that runs.
fn program() -> String {
    if let Ok(program) = std::env::var("REDIS_SERVER") {
        return program;
    }
    let runs = |program: &&str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
    };
    ["redis-server", "valkey-server"]
        .into_iter()
        .find(runs)
        .expect("install redis-server or valkey-server, or set REDIS_SERVER to its path")
        .to_owned()
}
