"""The corpus again and again through one worker: does its memory stay where it is?"""
import time

from harness.site import Site

BATCH = 200
LOOK_EVERY = 1.0


def measure(bench):
    passes = bench.soak_passes or bench.sizes.soak_passes
    limit = bench.sizes.pipeline_texts
    batches, count = bench.corpus.batches(BATCH, limit), bench.corpus.count(limit)
    started, samples = time.monotonic(), []
    with Site(bench.root) as site:
        worker = site.start_worker()
        while len(samples) < passes or time.monotonic() - started < bench.soak_seconds:
            for batch in batches:
                site.client.post("/nodes/batch", batch)
            worker.wait_for_nodes(site.client, count * (len(samples) + 1), LOOK_EVERY)
            sample = {
                "seconds": round(time.monotonic() - started, 1),
                "worker": worker.memory(),
                "api": site.api.memory(),
            }
            samples.append(sample)
            print(
                f"  pass {len(samples)}, {sample['seconds']:.0f} s: "
                f"worker {sample['worker']['resident_mb']:.1f} MB, "
                f"api {sample['api']['resident_mb']:.1f} MB",
                flush=True,
            )
    bench.report.detail("soak", samples)
    # The first pass fills what is kept for reuse.
    settled, last = samples[min(1, len(samples) - 1)], samples[-1]
    bench.report.add(
        "soak_memory", last["worker"]["resident_mb"], settled["worker"]["resident_mb"]
    )
