"""What every step costs with many jobs waiting and many rows stored, and what others notice of it."""
import json
import os
import subprocess
import time

from harness.processes import run_json
from harness.servers import Postgres, Redis
from harness.vecmill import Vecmill

PATHS = {
    "GET /nodes": "/nodes?limit=100",
    "GET /nodes, no vector": "/nodes?has_embedding=false&status=ready&limit=100",
    "GET /nodes, queued": "/nodes?status=queued&limit=100",
    "GET /nodes, a tenant": "/nodes?tenant_id=t7&limit=100",
    "status": "/admin/embedding/status",
    "status of a tenant": "/admin/embedding/status?tenant_id=t7",
}
REQUEUE = {"status": "failed", "backfill_ready": True, "limit": 2000}
# Rows of one statement.
ROWS = """
INSERT INTO nodes (id, tenant_id, classes, props, embedding, embedding_status, embedding_source_hash,
                   embedding_attempts, version, created_at, updated_at)
SELECT gen_random_uuid(), 't' || n % 10000, '{{Note}}', jsonb_build_object('text', 'text ' || n),
       CASE WHEN n % 1000 > 1 THEN v.vector END,
       CASE WHEN n % 1000 = 0 THEN 'failed' WHEN n % 1000 = 1 THEN 'queued' ELSE 'ready' END,
       CASE WHEN n % 1000 > 1 THEN 'made' END, 1, 1, now() - n * interval '1 ms', now()
FROM generate_series({first}, {last}) AS n,
     (SELECT ('[1' || repeat(',0', 383) || ']')::vector AS vector) AS v
"""


def measure(bench):
    queue(bench)
    rows(bench)


def queue(bench):
    program = bench.tools.bench_program("depths")
    with Redis(durable=False) as redis:
        settings = {"REDIS_URL": redis.url}
        figures = run_json([*program, *map(str, bench.sizes.depths)], cwd=bench.root, env=settings)
    bench.report.detail("depths of the queue", figures)
    print("\n  | jobs | step | p50 ms | p99 ms | longest script ms | PING p99 ms | PING max ms |")
    print("  |---|---|---|---|---|---|---|")
    for at in figures:
        for step, figure in at["steps"].items():
            times = [figure[name] for name in (
                "p50_ms", "p99_ms", "script_max_ms", "ping_p99_ms", "ping_max_ms")]
            cells = " | ".join("–" if time is None else f"{time:.2f}" for time in times)
            print(f"  | {at['depth']:,} | {step} | {cells} |")
        late = at["steps"]["a late tenant"]
        print(f"  | {at['depth']:,} | memory: Redis {at['redis_peak_mb']:.0f} MB, "
              f"client {at['own_peak_mb']:.0f} MB; all read in {at['all_read_s']:.1f} s; a late "
              f"tenant first served after {late['first_served_after']} claimed jobs, "
              f"{late['served']} of its 50 within {late['of_claimed']} | | | | | |")
    deepest = figures[-1]["steps"]
    claims = next(figure for step, figure in deepest.items() if step.startswith("claim "))
    bench.report.add("depths_claim", claims["p99_ms"])
    bench.report.add("depths_script", max(step["script_max_ms"] for step in deepest.values()))
    bench.report.add("depths_ping", max(step["ping_max_ms"] for step in deepest.values()))
    bench.report.add("depths_late", deepest["a late tenant"]["first_served_after"])


def rows(bench):
    print("\n  | rows | call | p50 ms | p99 ms | status |")
    print("  |---|---|---|---|---|")
    slowest, there = 0, 0
    with Redis() as redis, Postgres(bench.root) as postgres:
        stores = {"REDIS_URL": redis.url, "ACTIVEKG_DSN": postgres.dsn}
        stores["EMBEDDING_MODEL"] = os.environ.get("EMBEDDING_MODEL", "all-MiniLM-L6-v2")
        with Vecmill(bench.root, "api", stores) as api, api.client() as client:
            for depth in bench.sizes.rows:
                while there < depth:
                    last = min(depth, there + 500_000)
                    sql(postgres, ROWS.format(first=there + 1, last=last))
                    there = last
                sql(postgres, "VACUUM ANALYZE nodes")
                for name, path in PATHS.items():
                    slowest = max(slowest, timed(depth, name, lambda: client.request("GET", path)))
                order = lambda: client.request("POST", "/admin/embedding/requeue", json.dumps(REQUEUE))
                slowest = max(slowest, timed(depth, "requeue", order, times=5))
                print(f"  | {depth:,} | api: {api.memory()['peak_mb']:.0f} MB at its peak | | | |")
    bench.report.add("depths_rows", slowest)


def timed(depth, name, call, times=20):
    """Prints a row; answers the median in ms."""
    took, statuses = [], set()
    for _ in range(times):
        began = time.monotonic()
        statuses.add(call()[0])
        took.append(1000 * (time.monotonic() - began))
    took.sort()
    p50, p99 = took[len(took) // 2], took[-1]
    print(f"  | {depth:,} | {name} | {p50:.1f} | {p99:.1f} | {', '.join(map(str, statuses))} |",
          flush=True)
    return p50


def sql(postgres, statement):
    words = [str(postgres.bin / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", postgres.dsn]
    subprocess.run([*words, "-c", statement], check=True)
