"""A small dataset for the benchmark: users who buy within their shelf, over some months."""

from __future__ import annotations

import numpy as np

from shared.config import Settings
from shared.types import Interaction, Item, ItemId
from tests.factories import interaction

DAY = 86_400.0
N_ITEMS = 60
N_SHELVES = 5
SETTINGS = Settings(_env_file=None, max_validation_users=6)


def make_items(n: int = N_ITEMS) -> tuple[Item, ...]:
    return tuple(
        Item(ItemId(f"i{number:03d}"), f"thing{number} of shelf{number % N_SHELVES}", f"shelf{number % N_SHELVES}")
        for number in range(n)
    )


def make_interactions(n_users: int = 80, n: int = 900, seed: int = 0) -> tuple[Interaction, ...]:
    """One interaction every quarter of a day, oldest first; nobody buys a thing twice."""
    rng = np.random.default_rng(seed)
    bought: set[tuple[int, int]] = set()
    events = []
    while len(events) < n:
        user = int(rng.integers(n_users))
        item = int(rng.integers(N_ITEMS // N_SHELVES)) * N_SHELVES + user % N_SHELVES
        item = item if rng.random() < 0.8 else int(rng.integers(N_ITEMS))
        if (user, item) not in bought:
            bought.add((user, item))
            events.append(interaction(f"u{user:03d}", f"i{item:03d}", at=len(events) * DAY / 4))
    return tuple(events)
