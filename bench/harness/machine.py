"""What this machine is, for the results."""
import os
import platform
import subprocess
from pathlib import Path

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


def facts(root):
    return {
        "cpu": first_cpu().get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": {flag: has_flag(flag) for flag in FLAGS},
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "kernel": platform.release(),
        "load_at_start": os.getloadavg()[0],
        "commit": commit(root),
    }


def has_flag(flag):
    return flag in first_cpu().get("flags", "").split()


def first_cpu():
    facts = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if not line.strip():
            break
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    return facts


def commit(root):
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
