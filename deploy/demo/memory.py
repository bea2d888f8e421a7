"""The memory of a process tree: the sum of PSS, which counts a page shared by n processes as 1/n in each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psutil


def tree_pss_bytes() -> int:
    """Of this process and all its descendants; those that end meanwhile count as nothing."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


class PeakMemory:
    """The largest sample so far."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    def sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, tree_pss_bytes())

    @contextlib.asynccontextmanager
    async def sampling(self, interval_s: float = 1.0) -> AsyncIterator[PeakMemory]:
        async def run() -> None:
            while True:
                await asyncio.to_thread(self.sample)
                await asyncio.sleep(interval_s)

        task = asyncio.create_task(run())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
