"""What the bench needs and fetches: the peers' packages, and the programs that are measured."""
import os
import shutil
import sys
from pathlib import Path

from .processes import Missing, run


class Tools:
    def __init__(self, root):
        self.root = root
        self.bench = root / "bench"
        self.work = root / "target/bench"

    @property
    def model(self):
        """The directory of the model that the peers load."""
        name = os.environ.get("EMBEDDING_MODEL", "all-MiniLM-L6-v2")
        models = Path(os.environ.get("VECMILL_MODELS_DIR", self.root / "models"))
        directory = models / name.rpartition("/")[2] if not Path(name).is_dir() else Path(name)
        if not (directory / "tokenizer.json").is_file():
            raise Missing(f"{directory} holds no model: run `make model`")
        return directory

    def peer_python(self):
        """A Python with the packages of requirements.txt: `BENCH_PYTHON`, or one made here."""
        given = os.environ.get("BENCH_PYTHON")
        if given:
            return given
        venv = self.root / ".tools/bench-venv"
        installed = venv / "installed.txt"
        wanted = (self.bench / "requirements.txt").read_text(encoding="utf-8")
        if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
            print("  installing the peers into .tools/bench-venv (several GB, once)", flush=True)
            run([sys.executable, "-m", "venv", venv])
            pip = [venv / "bin/python", "-m", "pip", "install", "--quiet"]
            run([*pip, "-r", self.bench / "requirements.txt"])
            installed.write_text(wanted, encoding="utf-8")
        return venv / "bin/python"

    def bullmq(self):
        """The directory of bench.mjs with its packages."""
        if not (shutil.which("node") and shutil.which("npm")):
            raise Missing("BullMQ needs node 20 or newer with npm")
        directory = self.work / "bullmq"
        directory.mkdir(parents=True, exist_ok=True)
        lock = "package-lock.json"
        wanted = (self.bench / "bullmq" / lock).read_bytes()
        installed = directory / lock
        is_there = installed.is_file() and installed.read_bytes() == wanted
        for file in ("package.json", lock, ".npmrc", "bench.mjs"):
            shutil.copy(self.bench / "bullmq" / file, directory)
        if not is_there or not (directory / "node_modules").is_dir():
            print("  installing BullMQ into target/bench/bullmq", flush=True)
            # No package here needs a script to install itself.
            run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=directory)
        return directory

    def bench_program(self, name):
        """The words that run benches/NAME.rs, built before: `NAME_BENCH`, or cargo's."""
        given = os.environ.get(f"{name.upper()}_BENCH")
        if given:
            return [given]
        cargo = ["cargo", "bench", "--quiet", "--bench", name]
        run([*cargo, "--no-run"], cwd=self.root)
        return [*cargo, "--"]

    def vecmill(self):
        program = self.root / "target/release/vecmill"
        if not program.is_file():
            raise Missing("target/release/vecmill is not there: run `make build`")
        return program
