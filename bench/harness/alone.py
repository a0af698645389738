"""The embedder alone: `vecmill bench`, and the peers of peer_embed.py."""
import json
import os
import subprocess

from .corpus import SHORT_TEXT
from .processes import Missing, environment, run, run_json


def vecmill_bench(bench, corpus, options, dtype="auto"):
    """The figures of `vecmill bench`."""
    program = bench.tools.vecmill()
    asked = subprocess.run(
        [program, "bench", "--help"], env=environment({}), capture_output=True, check=False
    )
    if asked.returncode != 0:
        raise Missing("this vecmill has no `bench`")
    words = [program, "bench", "--corpus", corpus, "--json", *map(str, options)]
    settings = {"EMBEDDING_DTYPE": dtype, "RUST_LOG": "warn"}
    return run_json(words, cwd=bench.root, env=settings)


def peers(bench, parts):
    """The figures of peer_embed.py, by the name of the peer."""
    tools, sizes = bench.tools, bench.sizes
    words = [tools.peer_python(), "-W", "ignore", tools.bench / "peer_embed.py"]
    words += ["--model", tools.model, "--onnx", tools.work / f"{tools.model.name}.onnx"]
    words += ["--corpus", bench.corpus.path, "--texts", sizes.embedder_texts]
    words += ["--rounds", sizes.embedder_rounds, "--only", ",".join(parts)]
    words += ["--short-text", SHORT_TEXT, "--short-runs", sizes.short_runs]
    threads = os.environ.get("EMBEDDING_THREADS", "0")
    words += ["--threads", threads] if threads != "0" else []
    lines = run(words, env={"TQDM_DISABLE": "1"}).splitlines()
    figures = [json.loads(line) for line in lines if line.startswith("{")]
    return {figure["peer"]: figure for figure in figures}
