"""One short text at a time, warm, tokenisation included."""
import json

from harness.alone import peers, vecmill_bench
from harness.corpus import short_node
from harness.processes import Missing


def measure(bench):
    theirs, ours = {}, {}
    try:
        theirs = peers(bench, ["short"])["onnxruntime-short"]
    except Missing as missing:
        bench.report.skip("the peer of the short text", missing)
    corpus = bench.tools.work / "short.jsonl"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text((json.dumps(short_node()) + "\n") * bench.sizes.short_runs, encoding="utf-8")
    try:
        ours = vecmill_bench(bench, corpus, ["--rounds", 1, "--latency"])
    except Missing as missing:
        bench.report.skip("vecmill bench, short text", missing)
    bench.report.detail("short", {"peer": theirs, "ours": ours})
    for name in ("p50", "p99"):
        figure = f"{name}_ms"
        bench.report.add(f"short_text_{name}", ours.get(figure), theirs.get(figure))
