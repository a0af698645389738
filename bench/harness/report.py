"""The figures, held against their targets."""
import json
import time

HEADER = (
    "| what | peer | peer's | ours | ours to peer's | target | reached |\n"
    "|---|---|---|---|---|---|---|"
)


class Report:
    """Rows in the order in which they were measured. Figures of a quick run are not judged."""

    def __init__(self, targets, is_quick):
        self.targets = targets
        self.is_quick = is_quick
        self.rows = []
        self.details = {}
        self.skipped = {}
        self.failed = {}

    def add(self, key, ours=None, peer=None):
        """One figure; a missing one was not measured here."""
        target = self.targets[key]
        ratio = None if ours is None or not peer else ours / peer
        judged = {"ours": ours, "ratio": ratio, None: None}[target.get("judged")]
        reached = None
        if judged is not None and not self.is_quick:
            reached = target.get("at_least", judged) <= judged <= target.get("at_most", judged)
        figures = {"peer_figure": peer, "ours": ours, "ratio": ratio, "reached": reached}
        self.rows.append({"key": key, **target, **figures})
        print(f"  {target['what']}: {number(ours)}", flush=True)

    def detail(self, key, value):
        """Something that stands behind the figures, for the JSON only."""
        self.details[key] = value

    def skip(self, what, why):
        self.skipped[what] = str(why)
        print(f"  skipped: {what}: {why}", flush=True)

    def fail(self, section, why):
        self.failed[section] = str(why)
        print(f"  FAILED: {section}: {why}", flush=True)

    def table(self):
        lines = [HEADER]
        for row in self.rows:
            reached = {True: "yes", False: "**no**", None: "–"}[row["reached"]]
            cells = [
                row["what"], row.get("peer", "–"), number(row["peer_figure"]), number(row["ours"]),
                number(row["ratio"]), target_text(row), reached,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"\nSkipped: {what}: {why}" for what, why in self.skipped.items()]
        lines += [f"\nFailed: {section}: {why}" for section, why in self.failed.items()]
        return "\n".join(lines)

    def write(self, directory, about):
        """results.json, and a copy that later runs leave alone."""
        results = {
            **about, "rows": self.rows, "details": self.details, "skipped": self.skipped,
            "failed": self.failed,
        }
        text = json.dumps(results, indent=2) + "\n"
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / "results.json"]
        paths.append(directory / time.strftime("results-%Y-%m-%dT%H%M%S.json"))
        for path in paths:
            path.write_text(text, encoding="utf-8")
        return paths


def target_text(row):
    for name, sign in (("at_least", "≥"), ("at_most", "≤")):
        if name in row:
            return f"{sign} {row[name]:,}"
    return "–"


def number(value):
    """Enough digits to compare, and no more."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if 0.999 < value < 1:
        return f"{value:.6f}"
    return f"{value:.3g}"
