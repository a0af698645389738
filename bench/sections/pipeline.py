"""The whole way of the corpus: HTTP in, queue, model, database, until every node is `ready`."""
import statistics
import time

from harness.alone import vecmill_bench
from harness.processes import Missing
from harness.vecmill import STORES, serve

# Nodes of one request, as NODE_BATCH_MAX has it.
BATCH = 200
# How often it is asked whether all are ready.
LOOK_EVERY = 0.05


def measure(bench):
    for store in STORES:
        # Before and after, because a machine's speed changes with its other work.
        before = embedder_alone(bench)
        rate = rate_of(bench, store, f"pipeline_{store}", {}, 1)
        alone = [before, embedder_alone(bench)]
        bench.report.detail(f"pipeline_{store}_alone", alone)
        report(bench, f"pipeline_{store}", rate, None if None in alone else statistics.mean(alone))
    without_model = {"EMBEDDING_BACKEND": "hash"}
    for store in STORES:
        key = f"pipeline_{store}_hash"
        report(bench, key, rate_of(bench, store, key, without_model, bench.sizes.hash_rounds), None)


def rate_of(bench, store, key, settings, rounds):
    """Nodes a second in the median of some rounds, each on new servers; none where one is missing."""
    runs = []
    for number in range(1, rounds + 1):
        print(f"  {key}, round {number} of {rounds}", flush=True)
        try:
            with serve(bench.root, store, settings) as vecmill:
                runs.append(drive(vecmill, bench.corpus, bench.sizes.pipeline_texts))
        except Missing as missing:
            bench.report.skip(key, missing)
            return None
    bench.report.detail(key, runs)
    return statistics.median(run["nodes_per_s"] for run in runs)


def report(bench, key, rate, alone):
    if rate is not None:
        bench.report.add(key, rate, alone)


def embedder_alone(bench):
    """Texts a second on the same texts."""
    texts = bench.corpus.count(bench.sizes.pipeline_texts)
    count = ["--limit", texts, "--rounds", 1]
    try:
        return vecmill_bench(bench, bench.corpus.path, count)["texts_per_s"]
    except Missing as missing:
        bench.report.skip("the embedder alone beside the pipeline", missing)
        return None


def drive(vecmill, corpus, limit):
    """From the first request until all are ready. One client sends request after request, as
    `vecmill ingest` does."""
    batches, count = corpus.batches(BATCH, limit), corpus.count(limit)
    used_before, own_before = vecmill.cpu_seconds(), time.process_time()
    start = time.perf_counter()
    with vecmill.client() as client:
        for batch in batches:
            client.post("/nodes/batch", batch)
        accepted = time.perf_counter() - start
        vecmill.wait_for_nodes(client, count, LOOK_EVERY)
    seconds = time.perf_counter() - start
    used = vecmill.cpu_seconds()
    cpu = {name: round(used[name] - used_before.get(name, 0), 2) for name in used}
    return {
        "nodes_per_s": count / seconds,
        "seconds": seconds,
        "seconds_until_all_were_accepted": accepted,
        "cpu_seconds": {**cpu, "client": round(time.process_time() - own_before, 2)},
    }
