"""The queue alone and BullMQ, one after the other on the same Redis."""
from harness.processes import Missing, run_json
from harness.servers import Redis

# Ours and BullMQ's name of the same step.
STEPS = {"end_to_end": "end_to_end", "publish": "add", "work": "process"}
PACES = {0: "busy", 25: "paced"}


def measure(bench):
    jobs = str(bench.sizes.queue_jobs)
    program = bench.tools.bench_program("queue")
    theirs = {}
    # Without persistence, so that queues are compared and not what the disk does meanwhile.
    with Redis(durable=False) as redis:
        settings = {"REDIS_URL": redis.url}
        try:
            directory = bench.tools.bullmq()
            theirs = run_json(["node", "bench.mjs", jobs], cwd=directory, env=settings)
        except Missing as missing:
            bench.report.skip("BullMQ", missing)
        ours = run_json([*program, jobs], cwd=bench.root, env=settings)
    bench.report.detail("queue", {"bullmq": theirs, "ours": ours})
    for step, their_step in STEPS.items():
        bench.report.add(
            f"queue_{step}", ours[f"{step}_jobs_per_s"], theirs.get(f"{their_step}_jobs_per_s")
        )
    for claims in ours["claims"]:
        pace = PACES[claims["pause_ms"]]
        bench.report.add(f"claim_{claims['depth']}_{pace}", claims["p99_ms"])
