"""What a base is made from: a catalog, and what its users bought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.types import Interaction, Item, UserId


@dataclass(frozen=True, slots=True)
class Corpus:
    """One catalog with its users' purchases in time order, as indices into `items`."""

    items: tuple[Item, ...]
    sequences: dict[UserId, tuple[int, ...]]


def corpus_of(items: Sequence[Item], events: Iterable[Interaction]) -> Corpus:
    """`events`: each user's oldest first; those with unknown items are left out."""
    index = {item.item_id: number for number, item in enumerate(items)}
    sequences: dict[UserId, list[int]] = {}
    for event in events:
        if event.item_id in index:
            sequences.setdefault(event.user_id, []).append(index[event.item_id])
    return Corpus(tuple(items), {user: tuple(sequence) for user, sequence in sequences.items()})


def by_category(items: Sequence[Item]) -> dict[str, np.ndarray]:
    """The indices of each category's items."""
    shelves: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        shelves.setdefault(item.category, []).append(index)
    return {category: np.array(indices) for category, indices in shelves.items()}
