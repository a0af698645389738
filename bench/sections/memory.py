"""How much memory a worker process needs while it embeds."""
from harness.site import Site

BATCH = 200
LOOK_EVERY = 0.2


def measure(bench):
    count = bench.corpus.count(bench.sizes.memory_texts)
    with Site(bench.root) as site:
        worker = site.start_worker()
        for batch in bench.corpus.batches(BATCH, count):
            site.client.post("/nodes/batch", batch)
        worker.wait_for_nodes(site.client, count, LOOK_EVERY)
        memory = {"worker": worker.memory(), "api": site.api.memory()}
    bench.report.detail("memory", memory)
    bench.report.add("worker_memory", memory["worker"]["peak_mb"])
