"""From the start of a `vecmill serve` on an empty data directory to its first 200 of /readyz."""
import statistics
import time

from harness.vecmill import Vecmill


def measure(bench):
    times = [start(bench) for _ in range(bench.sizes.starts)]
    bench.report.detail("start_s", times)
    bench.report.add("start", statistics.median(times))


def start(bench):
    began = time.perf_counter()
    with Vecmill(bench.root, "serve", {}):
        return time.perf_counter() - began
