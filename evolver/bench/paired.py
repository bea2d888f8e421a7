"""Differences between strategies over all seeds of a benchmark, user by user, with bootstrap intervals.

With d_su = NDCG(a) - NDCG(b) of user u in seed s, who is one of n_s users that were asked there, of S seeds:

    mean = 1/S sum_s 1/n_s sum_u d_su

Users are resampled with all that the seeds asked them, so a user whom several seeds asked is not counted as several.
The interval is of users and these seeds' draws; how much training varies from seed to seed is the ± of other tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from evolver.bench.scores import CaseScores, gains
from evolver.evaluate import BOOTSTRAP_DRAWS
from evolver.scoring import NOT_RETRIEVED

GROUPS = ("U_A", "U_I", "U")
_UNRANKED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def group_masks(active: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Which of the users are in U_A, in U_I and in U.  active: [N] -> [N] each"""
    return dict(zip(GROUPS, (active, ~active, np.ones(len(active), dtype=np.bool_)), strict=True))


def asked(table: CaseScores, ranks: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Who was asked, and the rank that each strategy gave to what they took (0: not retrieved), as lines of numbers.

    Users are told apart by a checksum of their id.
    """
    return {
        "users": _line(np.array([crc32(user.encode()) for user in table.users], dtype=np.int64)),
        "active": _line(table.active.astype(np.int64)),
        "ranks": {name: _line(np.where(found < NOT_RETRIEVED, found, _UNRANKED)) for name, found in ranks.items()},
    }


def difference(of_seeds: Sequence[Mapping[str, Any]], name: str, reference: str, group: str, k: int) -> Difference:
    """NDCG@k of one strategy minus that of another. `of_seeds`: what `asked` gave in each seed; zero without users."""
    users, values, shares = [], [], []
    for one in of_seeds:
        chosen = group_masks(_numbers(one["active"]) == 1)[group]
        if chosen.any():
            new, old = (gains(_ranks(one["ranks"][which]), k)[chosen] for which in (name, reference))
            users.append(_numbers(one["users"])[chosen])
            shares.append(np.full(len(new), 1 / len(new)))
            values.append((new - old) / len(new))
    if not users:
        return Difference(0.0, 0.0, 0.0)
    _, who = np.unique(np.concatenate(users), return_inverse=True)
    total, share = (np.bincount(who, weights=np.concatenate(parts)) for parts in (values, shares))
    draws = _draws(len(total))
    ends = np.quantile((draws @ total) / (draws @ share), [0.025, 0.975])
    # Processors add up in different orders: without their last digits, a page is the same page everywhere.
    mean, low, high = (round(float(found), 12) for found in (total.sum() / share.sum(), *ends))
    return Difference(mean, low, high)


@lru_cache(maxsize=8)
def _draws(n_users: int) -> NDArray[np.float64]:
    """How often each user is drawn in each resampling.  -> [draws, users]"""
    rng = np.random.default_rng(n_users)
    return rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=BOOTSTRAP_DRAWS).astype(np.float64)


def _ranks(line: str) -> NDArray[np.int64]:
    stored = _numbers(line)
    return np.where(stored == _UNRANKED, NOT_RETRIEVED, stored)


def _line(numbers: NDArray[np.int64]) -> str:
    return " ".join(map(str, numbers.tolist()))


def _numbers(line: str) -> NDArray[np.int64]:
    return np.array(line.split(), dtype=np.int64)
