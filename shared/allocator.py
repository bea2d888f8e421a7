"""What glibc does with memory that is freed: kept for the next tensors, or given back to the system.

Left alone it gives a freed tensor of some MiB back at once, and the next one's pages are zeroed anew: a fifth of the
time that a CPU takes to score prompts with a small base (ADR 0032). Other C libraries lack these calls, which then do
nothing.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from functools import cache

KEPT_UP_TO = 2**30  # bytes; what is larger than this is mapped by itself, and given back when it is freed
_LEAST_KEPT_UP_TO = 2**25  # the most that some versions of glibc take
_GIVEN_BACK_BEYOND = 2**31 - 1  # bytes at the heap's end
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep_freed_memory() -> None:
    """Let this process, and those that it forks, keep what they free. The process then stays as large as it ever was,
    until `give_back_memory`.
    """
    with suppress(OSError, AttributeError):
        mallopt = _libc().mallopt
        mallopt(_M_MMAP_THRESHOLD, KEPT_UP_TO) or mallopt(_M_MMAP_THRESHOLD, _LEAST_KEPT_UP_TO)
        mallopt(_M_TRIM_THRESHOLD, _GIVEN_BACK_BEYOND)
        mallopt(_M_ARENA_MAX, 1)  # a thread's own arena is of parts of 64 MiB, which go back when they are empty


def give_back_memory() -> None:
    """Collect garbage, and give all that is free back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6")
