"""Processes that the bench starts. Each is ended by whoever started it, by its id."""
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

STOP_WITHIN = 20.0

# Settings of the caller's own Vecmill must not decide which servers are measured.
NOT_PASSED_ON = (
    "ACTIVEKG_DSN",
    "DATABASE_URL",
    "EMBEDDING_BACKEND",
    "REDIS_URL",
    "VECMILL_BIND",
    "VECMILL_DATA_DIR",
)


class BenchError(Exception):
    """A part of the bench cannot go on; says why."""


class Missing(BenchError):
    """What a part needs is not there; says what."""


def environment(changes):
    kept = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    return {**kept, **changes}


class Process:
    """A process with its output in a file. Ctrl-C does not reach it: the bench ends it."""

    def __init__(self, words, log, cwd=None, env=None, stop_signal=signal.SIGTERM, user=None):
        self.name = Path(words[0]).name
        self.log = Path(log)
        self.stop_signal = stop_signal
        as_user = {}
        if user is not None:
            as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with open(self.log, "wb") as out:
            self.popen = subprocess.Popen(
                words, cwd=cwd, env=environment(env or {}), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True, **as_user,
            )

    @property
    def pid(self):
        return self.popen.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def printed(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def check_running(self):
        if self.popen.poll() is not None:
            last = "\n".join(self.printed().splitlines()[-10:])
            raise BenchError(f"{self.name} ended with {self.popen.returncode}:\n{last}")

    def wait_until(self, condition, within, what):
        """Waits until the condition holds; the process has to run until then."""
        deadline = time.monotonic() + within
        while not condition():
            self.check_running()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name}: {what} took more than {within} s")
            time.sleep(0.01)

    def stop(self):
        """Returns whether it ended by itself when told to."""
        if self.popen.poll() is None:
            self.popen.send_signal(self.stop_signal)
        return end(self.popen, self.popen.kill)


def end(popen, kill):
    """Waits for the end of a process that was told to end, and kills it when that takes too long.
    Returns whether it ended by itself."""
    try:
        popen.wait(STOP_WITHIN)
        return True
    except BaseException as error:
        kill()
        popen.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return False
        raise


def run(words, cwd=None, env=None, within=3600.0):
    """Runs a command to its end; its standard error is shown. Returns its standard output."""
    popen = subprocess.Popen(
        [str(word) for word in words], cwd=cwd, env=environment(env or {}), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )
    try:
        out, _ = popen.communicate(timeout=within)
    except BaseException as error:
        end_group(popen)
        if isinstance(error, subprocess.TimeoutExpired):
            raise BenchError(f"{words[0]} took more than {within} s") from None
        raise
    if popen.returncode != 0:
        raise BenchError(f"{Path(words[0]).name} ended with {popen.returncode}:\n{out[-2000:]}")
    return out


def end_group(popen):
    """Ends a process and its children; the group is its own."""
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGTERM)
        end(popen, lambda: os.killpg(popen.pid, signal.SIGKILL))


def run_json(words, **options):
    """The JSON object in the last line that a command prints."""
    lines = run(words, **options).splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        raise BenchError(f"{Path(words[0]).name} printed no JSON object") from None


def end_on_signals():
    """The first SIGINT, SIGTERM or SIGHUP unwinds everything; more of them change nothing."""

    def unwind(number, _):
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        print("\nending what was started", file=sys.stderr, flush=True)
        sys.exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, unwind)
