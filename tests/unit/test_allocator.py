"""What glibc does with freed memory, counted in page faults and resident pages of a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import pytest

MIB = 2**20
N_PAGES = 3 * 24 * MIB // 4096
ROUNDS = 10

# What tensors do, without torch: three allocations of 24 MiB at once, written to, and freed.
CHURN = f"""
import resource
def churn(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        tensors = [bytearray({24 * MIB}) for _ in range(3)]
        for tensor in tensors:
            tensor[::4096] = bytes(len(tensor) // 4096)
        del tensor, tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
churn(2)
"""
FAULTS = CHURN + f"print(churn({ROUNDS}))"
KEEP = "from shared.allocator import keep_freed_memory; keep_freed_memory()\n"
THREADED = """
import threading
thread = threading.Thread(target=lambda: exec(CODE, {}))
thread.start()
thread.join()
"""
RESIDENT = """
import psutil
from shared.allocator import give_back_memory
kept = psutil.Process().memory_info().rss
give_back_memory()
print(kept - psutil.Process().memory_info().rss)
"""


def _has_glibc() -> bool:
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallopt")
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not _has_glibc(), reason="these are calls of glibc")


def _says(code: str) -> int:
    kept_out = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    env = {name: value for name, value in os.environ.items() if not name.startswith(kept_out)}
    run: Any = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_freed_memory_is_used_again_once_it_is_kept() -> None:
    assert _says(FAULTS) > ROUNDS // 2 * N_PAGES, "little is given back without it: this test shows nothing"
    assert _says(KEEP + FAULTS) < N_PAGES


def test_it_is_kept_in_other_threads_and_in_forks_too() -> None:
    """Evolutions run in a thread of a forked child."""
    threaded = f"CODE = {FAULTS!r}\n{THREADED}"
    forked = f"import os\nif os.fork():\n    os.wait()\nelse:\n    CODE = {FAULTS!r}\n    exec(CODE, {{}})"
    assert _says(KEEP + threaded) < N_PAGES
    assert _says(KEEP + forked) < N_PAGES


def test_what_was_kept_is_given_back_when_asked() -> None:
    assert _says(KEEP + CHURN + RESIDENT) > 60 * MIB
