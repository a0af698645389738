#!/usr/bin/env python3
"""Measures Vecmill against its targets, and beside what users would run instead.

    make bench                                everything (about half an hour on two cores)
    make bench ONLY=embedder,queue            some sections
    make bench ARGS=--quick                   whether everything works; no figures to compare

Prints one table; the same is in target/bench/results.json. bench/README.md says how to read it.
"""
import argparse
import json
import sys
import time
import traceback
from pathlib import Path

from harness import machine
from harness.corpus import Corpus
from harness.processes import BenchError, Missing, end_on_signals
from harness.report import Report
from harness.sizes import QUICK, Sizes
from harness.tools import Tools
from sections import ALL, DEFAULT

ROOT = Path(__file__).resolve().parent.parent


class Bench:
    """What every section gets."""

    def __init__(self, args):
        self.root = ROOT
        self.sizes = QUICK if args.quick else Sizes()
        self.soak_passes = args.soak_passes
        self.soak_seconds = args.soak_seconds
        self.corpus = Corpus(ROOT / "bench/debian-packages.jsonl")
        self.tools = Tools(ROOT)
        targets = (ROOT / "bench/targets.json").read_text(encoding="utf-8")
        self.report = Report(json.loads(targets), args.quick)


def main():
    args = arguments()
    bench = Bench(args)
    about = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "sections": args.only,
        "quick": args.quick,
        "machine": machine.facts(ROOT),
    }
    end_on_signals()
    for name in args.only:
        measure(bench, name)
    paths = bench.report.write(ROOT / "target/bench", about)
    print(f"\n{bench.report.table()}")
    if args.quick:
        print("\nA quick run: whether everything works. Its figures are not to be compared.")
    print(f"\nWritten to {' and '.join(str(path.relative_to(ROOT)) for path in paths)}")
    return 1 if bench.report.failed else 0


def measure(bench, name):
    """One section; another one can still be measured when it fails."""
    print(f"{name}:", flush=True)
    began = time.monotonic()
    try:
        ALL[name].measure(bench)
    except Missing as missing:
        bench.report.skip(name, missing)
    except BenchError as error:
        bench.report.fail(name, error)
    except Exception as error:
        traceback.print_exc()
        bench.report.fail(name, repr(error))
    print(f"  took {time.monotonic() - began:.0f} s", flush=True)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join(DEFAULT), help=f"sections, of {', '.join(ALL)}"
    )
    parser.add_argument("--quick", action="store_true", help="small and rough")
    parser.add_argument("--soak-passes", type=int, help="how often `soak` sends the corpus at least")
    parser.add_argument(
        "--soak-seconds", type=float, default=0, help="how long `soak` goes on at least"
    )
    args = parser.parse_args()
    args.only = [name.strip() for name in args.only.split(",") if name.strip()]
    unknown = [name for name in args.only if name not in ALL]
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(ALL)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
