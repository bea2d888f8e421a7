"""How the rows of one engine step are spread over adapters: computed once a step, used by every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

NO_SLOT = -1
# What the two products of a run cost besides their rows, and what a row costs that is moved to its group and back: in
# rows of a product, on 2 cores with AVX2 and 192 to 3072 features (docs/adr/0008).
RUN_COST = 64
MOVED_ROW_COST = 1.5


@dataclass(frozen=True, slots=True)
class Run:
    """Rows `start`..`end` (exclusive) that all use the adapter in `slot`."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Groups:
    """The rows sorted by slot into groups of one size, padded: G groups of P rows.

    `slots`: [G]. `gather`: [G P], the row that comes to each place (any row where a place is padding). `scatter`: [n],
    the place of each row; G P, one beyond the last, for rows without adapter.
    """

    slots: NDArray[np.int64]
    gather: NDArray[np.int64]
    scatter: NDArray[np.int64]


@dataclass(frozen=True)
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

    @cached_property
    def groups(self) -> Groups | None:
        """The groups, where moving the rows costs less than products run by run; else None.

        >>> Rows.of([7, 0, 9, 7], {7: 0, 9: 2}).groups
        Groups(slots=array([0, 2]), gather=array([0, 3, 2, 0]), scatter=array([0, 4, 2, 1]))
        """
        if len(self.runs) < 2:
            return None
        used, counts = np.unique(self.slots[self.slots != NO_SLOT], return_counts=True)
        size = int(counts.max())
        if MOVED_ROW_COST * size * len(used) >= counts.sum() + RUN_COST * len(self.runs):
            return None
        gather = np.zeros(len(used) * size, dtype=np.int64)
        scatter = np.full(len(self.slots), len(gather), dtype=np.int64)
        for group, slot in enumerate(used):
            rows = np.flatnonzero(self.slots == slot)
            places = group * size + np.arange(len(rows))
            gather[places], scatter[rows] = rows, places
        return Groups(used, gather, scatter)
