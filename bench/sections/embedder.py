"""The embedder alone on the first texts of the corpus, beside what users would run instead."""
import os

from harness.alone import peers, vecmill_bench
from harness.machine import has_flag
from harness.processes import Missing

# What the encoder of the default model computes for a token in matrix products.
GFLOP_PER_TOKEN = 0.0212
PEERS = {"f32": "float32", "bf16": "bfloat16"}
KERNEL = os.environ.get("EMBEDDING_KERNEL", "auto")


def measure(bench):
    theirs = {}
    try:
        theirs = peers(bench, ["roofline", "onnxruntime", "torch"])
    except Missing as missing:
        bench.report.skip("the peers of the embedder", missing)
    ours = {}
    for dtype in PEERS:
        if dtype == "bf16" and not has_flag("avx512_bf16"):
            bench.report.skip("vecmill bench, bf16", "this CPU has no bf16 products")
            continue
        if KERNEL != "auto" and (KERNEL == "avx512-bf16") != (dtype == "bf16"):
            bench.report.skip(f"vecmill bench, {dtype}", f"EMBEDDING_KERNEL is {KERNEL}")
            continue
        try:
            ours[dtype] = vecmill_bench(bench, bench.corpus.path, options(bench.sizes), dtype)
        except Missing as missing:
            bench.report.skip(f"vecmill bench, {dtype}", missing)
    bench.report.detail("embedder", {"peers": theirs, "ours": ours})

    def peer(name, figure="tokens_per_s"):
        return theirs.get(name, {}).get(figure)

    for dtype, long_name in PEERS.items():
        figures = ours.get(dtype, {})
        rate = figures.get("tokens_per_s")
        done = None if rate is None else rate * GFLOP_PER_TOKEN
        bench.report.add(f"embedder_{dtype}", rate, peer("onnxruntime-float32"))
        bench.report.add(f"cosine_{dtype}", figures.get("min_cosine"))
        bench.report.add(
            f"embedder_{dtype}_torch", rate, peer(f"sentence-transformers-{long_name}")
        )
        bench.report.add(f"ceiling_{dtype}", done, peer(f"ceiling-{long_name}", "gflop_per_s"))


def options(sizes):
    return ["--limit", sizes.embedder_texts, "--rounds", sizes.embedder_rounds, "--verify"]
