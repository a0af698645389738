"""The parts of `make bench`, in the order in which they run."""
from . import depths, embedder, fairness, latency, memory, pipeline, queue, short, soak, start

DEFAULT = {
    "embedder": embedder,
    "short": short,
    "queue": queue,
    "pipeline": pipeline,
    "latency": latency,
    "fairness": fairness,
    "memory": memory,
    "start": start,
}
# Only when asked for.
ALL = {**DEFAULT, "soak": soak, "depths": depths}
