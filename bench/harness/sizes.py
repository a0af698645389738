"""How much each section does."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """For figures that are to be compared."""

    # The embedder beside its peers.
    embedder_texts: int = 1024
    embedder_rounds: int = 3
    short_runs: int = 500
    # The queue beside BullMQ.
    queue_jobs: int = 50_000
    # The pipeline; None is the whole corpus.
    pipeline_texts: int | None = None
    # Without a model a run takes two seconds; the median of so many.
    hash_rounds: int = 3
    # Nodes posted one at a time.
    latency_nodes: int = 300
    # One tenant's jobs before another's.
    fairness_many: int = 2000
    fairness_few: int = 10
    memory_texts: int = 2000
    starts: int = 5
    soak_passes: int = 10
    # Jobs that wait, and rows that are stored.
    depths: tuple = (1_000, 10_000, 100_000, 1_000_000)
    rows: tuple = (10_000, 100_000, 1_000_000, 10_000_000)


# Whether everything works, in a few minutes on a slow machine.
QUICK = Sizes(
    embedder_texts=64,
    embedder_rounds=1,
    short_runs=50,
    queue_jobs=10_000,
    pipeline_texts=300,
    hash_rounds=1,
    latency_nodes=30,
    fairness_many=300,
    memory_texts=300,
    starts=2,
    soak_passes=2,
    depths=(1_000, 10_000),
    rows=(10_000,),
)
