"""A tenant's few jobs behind another's many: which share of the many is done when the few are."""
import time

from harness.site import Site

BATCH = 200
LOOK_EVERY = 0.01


def measure(bench):
    many, few = bench.sizes.fairness_many, bench.sizes.fairness_few
    nodes = bench.corpus.nodes(many + few)
    with Site(bench.root) as site:
        # All wait before a worker comes, so that ingest is no part of the figure.
        post(site.client, "many", nodes[:many])
        post(site.client, "few", nodes[many:])
        worker = site.start_worker()
        while site.client.counts("few")["ready"] < few:
            worker.process.check_running()
            time.sleep(LOOK_EVERY)
        done = site.client.counts("many")["ready"]
    bench.report.detail("fairness", {"many": many, "few": few, "done_of_the_many": done})
    bench.report.add("fairness", 100 * done / many)


def post(client, tenant, nodes):
    for node in nodes:
        node["tenant_id"] = tenant
    for first in range(0, len(nodes), BATCH):
        client.post("/nodes/batch", {"nodes": nodes[first : first + BATCH]})
