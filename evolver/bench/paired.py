"""Differences between strategies over all seeds of a benchmark, user by user, with bootstrap intervals.

With d_su = NDCG(a) - NDCG(b) of user u in seed s, who is one of n_s users that were asked there, of S seeds:

    mean = 1/S sum_s 1/n_s sum_u d_su

`combination` takes any weighted sum of strategies in place of a - b. With `shares`, U counts its groups by these
instead: 1/n_s becomes share_g / n_sg for the n_sg users of group g.

Users are resampled with all that the seeds asked them, so a user whom several seeds asked is not counted as several.
The interval is of users and these seeds' draws; how much training varies from seed to seed is the ± of other tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from evolver.bench.scores import CaseScores
from evolver.evaluate import BOOTSTRAP_DRAWS, gains
from evolver.scoring import NOT_RETRIEVED

GROUPS = ("U_A", "U_I", "U")
FEWEST = 20  # users: resampling fewer says nothing of others
_UNRANKED = 0
_AT_ONCE = 50  # resamplings drawn at once
_MOST_KEPT = 10_000  # users whose resamplings are kept

Shares = tuple[float, float]
"""Of U_A and of U_I among a population."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean and its 95 % interval, which is without ends where it is of fewer than `FEWEST` users."""

    mean: float
    low: float
    high: float

    @property
    def of_few(self) -> bool:
        return math.isinf(self.low)


def group_masks(active: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Which of the users are in U_A, in U_I and in U.  active: [N] -> [N] each"""
    return dict(zip(GROUPS, (active, ~active, np.ones(len(active), dtype=np.bool_)), strict=True))


def asked(table: CaseScores, ranks: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Who was asked, and the rank that each strategy gave to what they took, as lines of numbers.

    Users are told apart by a checksum of their id.
    """
    return {
        "users": _line(np.array([crc32(user.encode()) for user in table.users], dtype=np.int64)),
        "active": _line(table.active.astype(np.int64)),
        "ranks": rank_lines(ranks),
    }


def rank_lines(ranks: Mapping[str, NDArray[np.int64]]) -> dict[str, str]:
    """Whoever ranked -> the users' ranks as a line of numbers (0: not retrieved)."""
    return {name: _line(np.where(found < NOT_RETRIEVED, found, _UNRANKED)) for name, found in ranks.items()}


def difference(
    of_seeds: Sequence[Mapping[str, Any]],
    name: str,
    reference: str,
    group: str,
    k: int,
    *,
    shares: Sequence[Shares] | None = None,
) -> Difference:
    """NDCG@k of one strategy minus that of another, as `combination`."""
    return combination(of_seeds, {name: 1.0, reference: -1.0}, group, k, shares=shares)


def combination(
    of_seeds: Sequence[Mapping[str, Any]],
    coefficients: Mapping[str, float],
    group: str,
    k: int,
    *,
    shares: Sequence[Shares] | None = None,
) -> Difference:
    """The sum of strategies' NDCG@k, each times its coefficient. `of_seeds`: what `asked` gave in each seed; zero
    without users. `shares`: of U_A and U_I in each of them.
    """
    users, values, weights = [], [], []
    for number, one in enumerate(of_seeds):
        active = _numbers(one["active"]) == 1
        chosen = group_masks(active)[group]
        if chosen.any():
            found = [factor * gains(_ranks(one["ranks"][name]), k)[chosen] for name, factor in coefficients.items()]
            weight = _weights(active[chosen], shares[number] if shares else None)
            users.append(_numbers(one["users"])[chosen])
            weights.append(weight)
            values.append(np.sum(found, axis=0) * weight)
    if not users:
        return Difference(0.0, -math.inf, math.inf)
    _, who = np.unique(np.concatenate(users), return_inverse=True)
    total, share = (np.bincount(who, weights=np.concatenate(parts)) for parts in (values, weights))
    if len(total) < FEWEST:
        return Difference(round(float(total.sum() / share.sum()), 12), -math.inf, math.inf)
    means = [(draws @ total) / (draws @ share) for draws in map(np.float64, _draws(len(total)))]
    ends = np.quantile(np.concatenate(means), [0.025, 0.975])
    # Processors add up in different orders: without their last digits, a page is the same page everywhere.
    mean, low, high = (round(float(found), 12) for found in (total.sum() / share.sum(), *ends))
    return Difference(mean, low, high)


def _weights(active: NDArray[np.bool_], shares: Shares | None) -> NDArray[np.float64]:
    """What each of these users counts; 1 together.  active: [N] -> [N]"""
    if shares is None:
        return np.full(len(active), 1 / len(active))
    found = np.where(active, shares[0] / max(1, active.sum()), shares[1] / max(1, (~active).sum()))
    weights: NDArray[np.float64] = found / found.sum()  # where a group was not asked the other one is all
    return weights


def _draws(n_users: int) -> Iterable[NDArray[np.uint8]]:
    """How often each user is drawn in each resampling, some resamplings at a time.  -> [`_AT_ONCE`, users] each"""
    return _kept_draws(n_users) if n_users <= _MOST_KEPT else _drawn(n_users)


@lru_cache(maxsize=32)
def _kept_draws(n_users: int) -> list[NDArray[np.uint8]]:
    """A report asks for the same numbers of users over and over, and most of its time would be these draws."""
    return [*_drawn(n_users)]


def _drawn(n_users: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(n_users)
    for _ in range(0, BOOTSTRAP_DRAWS, _AT_ONCE):
        yield rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=_AT_ONCE).astype(np.uint8)


def _ranks(line: str) -> NDArray[np.int64]:
    stored = _numbers(line)
    return np.where(stored == _UNRANKED, NOT_RETRIEVED, stored)


def _line(numbers: NDArray[np.int64]) -> str:
    return " ".join(map(str, numbers.tolist()))


@lru_cache(maxsize=1024)
def _numbers(line: str) -> NDArray[np.int64]:
    return np.array(line.split(), dtype=np.int64)
