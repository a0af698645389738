"""How much processor time processes have used."""
import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def seconds_by_name(pid):
    """Of a process and all below it, by the name of the program."""
    by_name = {}
    children = children_by_parent()
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        waiting += children.get(each, [])
        name, fields = stat(each)
        # Time in user and kernel mode, and that of children that have ended.
        ticks = sum(int(field) for field in fields[11:15]) if fields else 0
        by_name[name] = by_name.get(name, 0.0) + ticks / TICKS
    return by_name


def children_by_parent():
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            _, fields = stat(entry)
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    return children


def stat(pid):
    """The name, and the fields after it; none of a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "ended", []
    before, _, after = text.rpartition(")")
    return before.partition("(")[2], after.split()
