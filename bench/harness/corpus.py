"""The texts that are embedded."""
import json

# 15 tokens of the default model, its marks for begin and end included.
SHORT_TEXT = "Pumps that run dry wear out early, so check the level."


def short_node(tenant="default"):
    return {"classes": ["Note"], "props": {"text": SHORT_TEXT}, "tenant_id": tenant}


class Corpus:
    """A JSON Lines file of nodes, as `POST /nodes` takes them."""

    def __init__(self, path):
        self.path = path
        self.lines = path.read_text(encoding="utf-8").splitlines()

    def nodes(self, count=None):
        return [json.loads(line) for line in self.lines[:count]]

    def count(self, limit=None):
        return len(self.lines[:limit])

    def batches(self, size, limit=None):
        """The bodies of `POST /nodes/batch` requests; the lines stay as they are in the file."""
        lines = self.lines[:limit]
        chunks = [lines[first : first + size] for first in range(0, len(lines), size)]
        return [f'{{"nodes":[{",".join(chunk)}]}}'.encode() for chunk in chunks]
