"""Our own processes under measurement."""
import re
import shutil
import socket
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from .client import Client
from .cpu import seconds_by_name
from .processes import BenchError, Process
from .servers import Postgres, Redis, ask_redis, free_port

STORES = ("sqlite", "postgres")
READY_WITHIN = 120.0
# The caches, limits and pauses that would be measured instead of the work.
SETTINGS = {
    "EMBEDDING_CACHE": "false",
    "EMBEDDING_QUEUE_MAX_DEPTH": "1000000",
    "EMBEDDING_TENANT_MAX_PENDING": "0",
    "VECMILL_SHUTDOWN_GRACE": "5",
}


class Vecmill:
    """A `vecmill serve`, `api` or `worker`."""

    def __init__(self, root, role, settings):
        self.root = root
        self.role = role
        self.directory = Path(tempfile.mkdtemp(prefix="vecmill-data-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {
            **SETTINGS,
            "RUST_LOG": "warn",
            "VECMILL_BIND": f"127.0.0.1:{self.port}",
            "VECMILL_DATA_DIR": str(self.directory),
            **settings,
        }
        self.process = None
        # Others that work for it, but for what it starts itself.
        self.servers = []

    def __enter__(self):
        try:
            self.start()
            if self.role != "worker":
                self.process.wait_until(self.is_ready, READY_WITHIN, "the start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        program = self.root / "target/release/vecmill"
        self.process = Process(
            [str(program), self.role], self.directory / "log", cwd=self.root, env=self.settings
        )

    def __exit__(self, *_):
        try:
            if self.process is not None:
                self.process.stop()
        finally:
            # One that was killed has left its private Redis.
            redis = str(self.directory / "redis/redis.sock")
            ask_redis(socket.AF_UNIX, redis, b"SHUTDOWN NOSAVE\r\n")
            shutil.rmtree(self.directory, ignore_errors=True)

    def is_ready(self):
        try:
            with self.client() as client:
                return client.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def client(self):
        return Client(self.url)

    def memory(self):
        """Resident memory in MB: now, and at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")

        def megabytes(name):
            return int(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 / 1e6

        return {"resident_mb": megabytes("VmRSS"), "peak_mb": megabytes("VmHWM")}

    def cpu_seconds(self):
        """What it and its servers have used, by the name of the program."""
        used = {}
        for each in (self, *self.servers):
            used.update(seconds_by_name(each.process.pid))
        return used

    def wait_for_nodes(self, client, count, pause):
        """Waits until so many nodes have come to their end; they must be `ready`."""
        while True:
            self.process.check_running()
            counts = client.counts()
            if counts["ready"] + counts["failed"] + counts["skipped"] >= count:
                break
            time.sleep(pause)
        if counts["ready"] != count:
            raise BenchError(f"of {count} nodes these became of them: {counts}")


@contextmanager
def serve(root, store, settings):
    """API and workers in one process, on one of `STORES`."""
    if store == "sqlite":
        with Vecmill(root, "serve", settings) as vecmill:
            yield vecmill
        return
    with Redis() as redis, Postgres(root) as postgres:
        stores = {"REDIS_URL": redis.url, "ACTIVEKG_DSN": postgres.dsn}
        with Vecmill(root, "serve", {**settings, **stores}) as vecmill:
            vecmill.servers = [redis, postgres]
            yield vecmill
