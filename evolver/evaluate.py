"""Evaluate: how well a version ranks for the panel, before and after, on active (U_A) and inactive users (U_I).

Each panel user's last interaction by the window's end, with an item not had before (ADR 0031), is the target, its
history all before it; 19 further candidates are drawn from the items known by then, never the user's own, seeded and
the same for every version compared: uniformly (the usual protocol) and weighted by time-decayed popularity to the power
0.75, because uniform draws mostly measure popularity.

    HR@k   = 1[rank <= k]
    NDCG@k = 1[rank <= k] / log2(1 + rank)          (one relevant item)
    rank   = 1 + #{others with a score >= the target's}      score ties count against the target
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.types import ItemId, UserId

N_CANDIDATES = 20
POPULARITY_POWER = 0.75
BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """One evaluated ranking: candidates in label order, `target` one of them or not; `active`: of U_A."""

    user_id: UserId
    target: ItemId
    candidates: tuple[ItemId, ...]
    active: bool


def rank_of(scores: Sequence[float], target: int) -> int:
    """1 + the number of other candidates scored at least as high.

    >>> rank_of([0.2, 0.5, 0.2], 0)
    3
    """
    return sum(score >= scores[target] for score in scores)


def hit_rate(ranks: Sequence[int], k: int) -> float:
    """HR@k over users.

    >>> hit_rate([1, 4], 3)
    0.5
    """
    return float(np.mean([rank <= k for rank in ranks])) if ranks else 0.0


def ndcg(ranks: Sequence[int], k: int) -> float:
    """NDCG@k over users, one relevant item each.

    >>> round(ndcg([1, 3], 3), 3)
    0.75
    """
    return float(gains(ranks, k).mean()) if ranks else 0.0


def gains(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """NDCG@k of each user.  ranks: [N] -> [N]

    >>> gains([1, 3, 4], 3).round(3).tolist()
    [1.0, 0.5, 0.0]
    """
    found = np.asarray(ranks)
    return np.where(found <= k, 1 / np.log2(1 + found), 0.0)


@dataclass(frozen=True)
class CandidatePool:
    """The items that candidates are drawn from, and how likely: `weights` [len(items)], at least 0."""

    items: Sequence[ItemId]
    weights: np.ndarray

    @cached_property
    def rows(self) -> Mapping[ItemId, int]:
        """Where each item stands."""
        return {item: row for row, item in enumerate(self.items)}

    def draw(self, n: int, exclude: Collection[ItemId], rng: np.random.Generator) -> list[ItemId]:
        """Up to n different items, one after the other in proportion to the weights of those that are left.

        Those with the smallest E / w, for E drawn from an exponential distribution, are such draws (Efraimidis and
        Spirakis, 2006), in one pass over the pool.
        """
        with np.errstate(divide="ignore"):
            keys = rng.standard_exponential(len(self.items)) / self.weights
        keys[[self.rows[item] for item in exclude if item in self.rows]] = np.inf
        n = min(n, int(np.isfinite(keys).sum()))
        if not n:
            return []
        first = np.argpartition(keys, n - 1)[:n]
        return [self.items[row] for row in first[np.argsort(keys[first])]]


def draw_candidates(
    user_id: UserId, target: ItemId, own: frozenset[ItemId], pool: CandidatePool, *, seed: int, n: int = N_CANDIDATES
) -> tuple[ItemId, ...]:
    """The target and up to n - 1 different draws from the pool, none of them the user's own."""
    rng = np.random.default_rng([seed, *user_id.encode()])
    return (target, *pool.draw(n - 1, own | {target}, rng))


def summarise(
    ranks: Mapping[UserId, int], active: frozenset[UserId], *, prefix: str = "", cutoffs: Sequence[int] = (1, 3)
) -> dict[str, dict[str, float]]:
    """n, HR at each cutoff and NDCG at the last, for U_A, U_I and U; names get the prefix (e.g. "weighted:")."""
    groups = {
        "U_A": [rank for user, rank in ranks.items() if user in active],
        "U_I": [rank for user, rank in ranks.items() if user not in active],
        "U": list(ranks.values()),
    }
    return {
        group: {
            f"{prefix}n": float(len(values)),
            **{f"{prefix}hr@{k}": hit_rate(values, k) for k in cutoffs},
            f"{prefix}ndcg@{cutoffs[-1]}": ndcg(values, cutoffs[-1]),
        }
        for group, values in groups.items()
    }


def paired_interval(before: ArrayLike, after: ArrayLike, *, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of mean(after - before), users resampled in pairs."""
    difference = np.asarray(after) - np.asarray(before)
    if len(difference) == 0:
        return (0.0, 0.0)
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), size=(BOOTSTRAP_DRAWS, len(difference)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
