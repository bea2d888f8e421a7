"""How the rows of one engine step are spread over adapters: computed once a step, used by every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Run:
    """Rows `start`..`end` (exclusive) that all use the adapter in `slot`."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a step. `slots`: [n], the slot of each row, NO_SLOT where the base model answers alone.

    `runs` leaves out the rows without adapter, so nothing is ever computed for them.
    """

    slots: NDArray[np.int64]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, lora_ids: Sequence[int], slot_of: Mapping[int, int]) -> Rows:
        """From the adapter id of each row (0: none) and the slot of each id.

        >>> Rows.of([7, 7, 0, 9], {7: 0, 9: 2}).runs
        (Run(slot=0, start=0, end=2), Run(slot=2, start=3, end=4))
        """
        ids = np.asarray(lora_ids, dtype=np.int64)
        edges = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)] if len(ids) else [0]
        spans = list(pairwise(edges))
        found = [slot_of[int(ids[start])] if ids[start] > 0 else NO_SLOT for start, _ in spans]
        slots = np.repeat(np.array(found, dtype=np.int64), [end - start for start, end in spans])
        runs = tuple(Run(slot, start, end) for slot, (start, end) in zip(found, spans, strict=True) if slot != NO_SLOT)
        return cls(slots, runs)

    @property
    def mean_run(self) -> float:
        """Rows per run; 0 where no row uses an adapter."""
        return sum(run.end - run.start for run in self.runs) / len(self.runs) if self.runs else 0.0

    @property
    def slot_range(self) -> tuple[int, int]:
        """The smallest range of slots (end exclusive) that holds all runs' slots."""
        used = [run.slot for run in self.runs]
        return (min(used), max(used) + 1) if used else (0, 0)
