"""How much memory the process takes at its largest during a piece of work, with what earlier work has left in it."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

INTERVAL_S = 0.05
MIB = 2**20


class PeakMemory:
    """Watches this process's resident set while it is entered; `mib` is the largest seen so far.

    The system's own high-water mark (`ru_maxrss`) never falls: it would give every strategy the largest one's.
    """

    def __init__(self) -> None:
        self._process, self._done = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._largest = 0

    @property
    def mib(self) -> float:
        return self._largest / MIB

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        self._largest = max(self._largest, self._process.memory_info().rss)
