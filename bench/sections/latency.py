"""An idle system gets one short node at a time: from POST until a client reads `ready`."""
import time

from harness.corpus import short_node
from harness.processes import Missing
from harness.vecmill import STORES, serve

WARM_UP = 20
# Between two looks at the node, and between two nodes, so that the system is idle again.
LOOK_EVERY = 0.001
PAUSE = 0.02


def measure(bench):
    for store in STORES:
        try:
            with serve(bench.root, store, {}) as vecmill, vecmill.client() as client:
                times = times_to_ready(client, bench.sizes.latency_nodes)
        except Missing as missing:
            bench.report.skip(f"latency, {store}", missing)
            continue
        bench.report.detail(f"latency_{store}_ms", times)
        bench.report.add(f"latency_{store}_p50", times[len(times) // 2])
        bench.report.add(f"latency_{store}_p99", times[len(times) * 99 // 100])


def times_to_ready(client, count):
    """In milliseconds, ascending."""
    times = []
    for number in range(WARM_UP + count):
        start = time.perf_counter()
        node = client.post("/nodes", short_node())["id"]
        while client.get(f"/nodes/{node}")["embedding_status"] != "ready":
            time.sleep(LOOK_EVERY)
        if number >= WARM_UP:
            times.append((time.perf_counter() - start) * 1000)
        time.sleep(PAUSE)
    return sorted(times)
