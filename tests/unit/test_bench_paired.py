"""Differences over seeds, by hand and by what an interval is for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evolver.bench import paired
from evolver.bench.paired import FEWEST, Difference, asked, combination, difference
from evolver.bench.scores import case_scores
from evolver.scoring import NOT_RETRIEVED


def seed(users: list[str], active: list[bool], **ranks: list[int]) -> dict[str, Any]:
    table = case_scores(users, active, [0] * len(users), {"popularity": [[0.0]] * len(users)})
    return asked(table, {name: np.array(found) for name, found in ranks.items()})


def test_a_gain_that_all_users_share_has_an_interval_without_width() -> None:
    users = [f"u{number}" for number in range(4 * FEWEST)]
    active = [number < 2 * FEWEST for number in range(4 * FEWEST)]
    old, new = [4, 9] * FEWEST + [1, 1] * FEWEST, [1] * 2 * FEWEST + [1, NOT_RETRIEVED] * FEWEST
    one = seed(users, active, old=old, new=new)
    of_active = difference([one], "new", "old", "U_A", 3)
    assert (of_active.mean, of_active.low, of_active.high) == (1.0, 1.0, 1.0)
    inactive = difference([one], "new", "old", "U_I", 3)
    assert inactive.mean == -0.5
    assert -1.0 < inactive.low < -0.5 < inactive.high < 0.0
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


def test_of_few_users_an_interval_has_no_ends() -> None:
    def of(n: int) -> Difference:
        return difference(
            [seed([f"u{i}" for i in range(n)], [True] * n, old=[4] * n, new=[1] * n)], "new", "old", "U", 3
        )

    assert (of(FEWEST).low, of(FEWEST).high) == (1.0, 1.0)
    for few in (of(FEWEST - 1), of(1)):
        assert (few.mean, few.low, few.high) == (1.0, -math.inf, math.inf)
        assert few.of_few
    nobody = difference([seed(["a"], [True], old=[1], new=[4])], "new", "old", "U_I", 3)
    assert (nobody.mean, nobody.low, nobody.high) == (0.0, -math.inf, math.inf)


def test_users_too_many_to_keep_their_resamplings_have_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    old, new = (rng.integers(1, 8, size=200).tolist() for _ in range(2))
    one = seed([f"u{i}" for i in range(200)], [True] * 200, old=old, new=new)
    kept = difference([one], "new", "old", "U", 3)
    monkeypatch.setattr(paired, "_MOST_KEPT", 100)
    assert difference([one], "new", "old", "U", 3) == kept


def test_a_sum_of_strategies_is_taken_user_by_user() -> None:
    one = seed(["a", "b"], [True, True], old=[1, 4], new=[1, 1], best=[4, 1])
    found = combination([one], {"new": 1.0, "old": -0.5, "best": -0.5}, "U", 3)
    assert found.mean == 0.5
