"""The retriever in the protocol that most publications use, so that its figures stand beside theirs.

Of each user with at least three interactions the last is the target, and the one before it is left out of training
too (others choose their epochs on it; here it is only read, as the newest of the history). All items are ranked but
those of the history, so users whose last item is one of these are not asked. Global time plays no part: what was
trained on may be newer than a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evolver.bench.timeline import Timeline
from evolver.device import device_of_run
from evolver.evaluate import gains
from evolver.retriever_training import retriever_config, train_retriever
from evolver.scoring import NOT_RETRIEVED
from evolver.splits import item_sequence
from shared.config import Settings
from shared.retriever import RetrieverIndex

CUTOFF = 10
LEAST = 3  # interactions: one to read, one left out, one to predict
FITTING = 0.8  # of the time, roughly


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure on the same 5-core data, leave-one-out, full catalog."""

    model: str
    source: str
    hit_rate: float


AMAZON_BEAUTY = (22_363, 12_101, 198_502)
"""Users, items and interactions of Amazon Beauty of 2014, 5-core: known by them, whatever its folder is called."""

PUBLISHED = {
    AMAZON_BEAUTY: (
        Published("SASRec", "cited at second hand", 0.0844),
        Published("LlamaRec", "arXiv 2311.02089", 0.0971),
    )
}


def published_on(*, users: int, items: int, interactions: int) -> tuple[Published, ...]:
    """Published figures on the data of this size; none where it is not known.

    >>> [one.model for one in published_on(users=22_363, items=12_101, interactions=198_502)]
    ['SASRec', 'LlamaRec']
    """
    return PUBLISHED.get((users, items, interactions), ())


def leave_one_out(timeline: Timeline, settings: Settings, report: Callable[[float], None]) -> dict[str, Any]:
    """HR@10 and NDCG@10 over all users with enough interactions and a new item at the end; `users` is how many. Where
    there are none, that alone.
    """
    inputs = timeline.known_by(len(timeline.events))
    sequences = {user: item_sequence(events) for user, events in inputs.histories.items() if len(events) >= LEAST}
    asked = [(history, target) for *history, target in sequences.values() if target not in history]
    if not asked:
        return {"users": 0}
    retriever = train_retriever(
        inputs.items,
        {user: sequence[:-2] for user, sequence in sequences.items()},
        epochs=settings.retriever_epochs,
        config=retriever_config(settings),
        seed=timeline.seed,
        on_step=lambda share: report(FITTING * share),
        device=torch.device(device_of_run(settings.train_device)),
    )
    index = RetrieverIndex(retriever, inputs.items)
    ranks = np.full(len(asked), NOT_RETRIEVED)
    for number, (history, target) in enumerate(asked):
        found = [item for item, _ in index.candidates(history, CUTOFF, exclude=frozenset(history))]
        if target in found:
            ranks[number] = 1 + found.index(target)
        report(FITTING + (1 - FITTING) * (number + 1) / len(asked))
    return {
        "users": len(asked),
        f"hr@{CUTOFF}": float((ranks <= CUTOFF).mean()),
        f"ndcg@{CUTOFF}": float(gains(ranks, CUTOFF).mean()),
    }
