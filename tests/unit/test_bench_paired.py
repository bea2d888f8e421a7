"""Differences over seeds, by hand and by what an interval is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evolver.bench.paired import asked, difference
from evolver.bench.scores import case_scores
from evolver.scoring import NOT_RETRIEVED


def seed(users: list[str], active: list[bool], **ranks: list[int]) -> dict[str, Any]:
    table = case_scores(users, active, [0] * len(users), {"popularity": [[0.0]] * len(users)})
    return asked(table, {name: np.array(found) for name, found in ranks.items()})


def test_a_gain_that_all_users_share_has_an_interval_without_width() -> None:
    one = seed(["a", "b", "c", "d"], [True, True, False, False], old=[4, 9, 1, 1], new=[1, 1, 1, NOT_RETRIEVED])
    active = difference([one], "new", "old", "U_A", 3)
    assert (active.mean, active.low, active.high) == (1.0, 1.0, 1.0)
    inactive = difference([one], "new", "old", "U_I", 3)
    assert (inactive.mean, inactive.low, inactive.high) == (-0.5, -1.0, 0.0)
    both = difference([one], "new", "old", "U", 3)
    assert both.mean == 0.25
    assert both.low < 0.25 < both.high


def test_seeds_count_alike_however_many_users_they_asked() -> None:
    few = seed(["a"], [True], old=[9], new=[1])
    many = seed(["b", "c", "d", "e"], [True] * 4, old=[9, 9, 9, 9], new=[9, 9, 9, 9])
    assert difference([few, many], "new", "old", "U_A", 3).mean == 0.5


def test_other_users_narrow_the_interval_and_the_same_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    ranks = [rng.integers(1, 8, size=200).tolist() for _ in range(2)]

    def of(names: str) -> dict[str, Any]:
        return seed([f"{names}{n}" for n in range(200)], [True] * 200, old=ranks[0], new=ranks[1])

    def width(*seeds: dict[str, Any]) -> float:
        found = difference(seeds, "new", "old", "U", 3)
        return found.high - found.low

    alone = width(of("a"))
    assert width(of("a"), of("a")) == pytest.approx(alone)
    assert width(of("a"), of("b")) == pytest.approx(alone / 2**0.5, rel=0.15)


def test_nobody_asked_is_no_difference() -> None:
    found = difference([seed(["a"], [True], old=[1], new=[4])], "new", "old", "U_I", 3)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
