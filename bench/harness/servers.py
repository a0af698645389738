"""The servers that a Vecmill is measured on. All listen on 127.0.0.1, in temporary directories."""
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from .processes import Missing, Process

READY_WITHIN = 60.0
# Postgres refuses to run as root, and runs as this user then.
UNPRIVILEGED = "nobody"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A process and a directory of its own; both are gone at the end."""

    def __init__(self, kind):
        self.directory = Path(tempfile.mkdtemp(prefix=f"vecmill-{kind}-"))
        self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        try:
            if self.process is not None:
                self.process.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


class Redis(Server):
    """With `durable`, it keeps its data as the private Redis of `vecmill serve` does."""

    def __init__(self, durable=True):
        super().__init__("redis")
        self.durable = durable
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"

    def start(self):
        names = (os.environ.get("REDIS_SERVER"), "redis-server", "valkey-server")
        program = next((name for name in names if name and shutil.which(name)), None)
        if program is None:
            raise Missing("redis-server is not installed: run `make redis`")
        append = "yes" if self.durable else "no"
        words = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        words += ["--appendonly", append, "--appendfsync", "everysec", "--dir", str(self.directory)]
        self.process = Process(words, self.directory / "log")
        self.process.wait_until(self.answers, READY_WITHIN, "the start")

    def answers(self):
        return ask_redis(socket.AF_INET, ("127.0.0.1", self.port), b"PING\r\n") == b"+PONG\r\n"


def ask_redis(family, address, command):
    """The first bytes of the answer; none if nobody listens there."""
    with socket.socket(family) as connection:
        connection.settimeout(5)
        try:
            connection.connect(address)
            connection.sendall(command)
            return connection.recv(64)
        except OSError:
            return b""


class Postgres(Server):
    """With pgvector and its own defaults: commits are on disk before they are answered."""

    def __init__(self, root):
        super().__init__("postgres")
        self.bin = Path(os.environ.get("VECMILL_PG_BIN") or root / ".tools/postgres/bin").resolve()
        self.port = free_port()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self):
        if not (self.bin / "postgres").is_file():
            raise Missing("Postgres is not there: run `make postgres`, or set VECMILL_PG_BIN")
        user = None
        if os.getuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        data = str(self.directory / "data")
        words = [str(self.bin / "initdb"), "-D", data, "-U", "postgres", "-A", "trust"]
        words += ["-E", "UTF8", "--locale=C"]
        made = Process(words, self.directory / "initdb.log", self.directory, user=user)
        with made:
            made.popen.wait(READY_WITHIN)
        if made.popen.returncode != 0:
            raise Missing(f"initdb failed: {made.printed()[-500:]}")
        words = [str(self.bin / "postgres"), "-D", data, "-k", str(self.directory)]
        words += ["-h", "127.0.0.1", "-p", str(self.port)]
        # SIGINT: it ends without waiting for clients.
        self.process = Process(
            words, self.directory / "log", self.directory, stop_signal=signal.SIGINT, user=user
        )
        self.process.wait_until(self.answers, READY_WITHIN, "the start")

    def answers(self):
        words = [str(self.bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(words, check=False).returncode == 0
