"""How much memory a piece of work takes at its largest, beyond what was in use when it began."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

from shared.allocator import give_back_memory

INTERVAL_S = 0.05
MIB = 2**20


class AddedMemory:
    """Watches while it is entered; `mib` is the largest rise so far: of this process's resident set, or, with an
    accelerator, of the memory that torch has allocated there.

    What earlier work has freed is given back to the system first, or it would be taken again without a rise.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._process, self._done = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="added-memory", daemon=True)
        self._before = self._largest = 0

    @property
    def mib(self) -> float:
        return (self._largest - self._before) / MIB

    def __enter__(self) -> AddedMemory:
        # What the first step of a process would import, 200 MiB, is not that step's.
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM  # noqa: F401

        if self._device != "cpu":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # asking about a card by its number does not
            torch.cuda.reset_peak_memory_stats(self._device)
        give_back_memory()
        self._look()
        self._before = self._largest
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
        on_cpu = self._device == "cpu"
        now = self._process.memory_info().rss if on_cpu else torch.cuda.max_memory_allocated(self._device)
        self._largest = max(self._largest, now)
