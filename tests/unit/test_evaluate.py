"""Metrics and candidate draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolver.evaluate import Case, draw_candidates, gain, hit_rate, ndcg, paired_interval, rank_of, summarise
from evolver.scoring import Scored, choose_blend, ranks
from shared.ranking import BlendWeights
from shared.types import ItemId, UserId

POOL = [ItemId(f"i{n}") for n in range(60)]


def test_ties_count_against_the_target() -> None:
    assert rank_of([1.0] * 20, 7) == 20
    assert rank_of([0.3, 0.2, 0.1], 0) == 1


def test_one_hit_at_rank_two_of_three_users() -> None:
    """Ranks 2, 4, 1: HR@1 = 1/3, HR@3 = 2/3, NDCG@3 = (1/log2(3) + 0 + 1) / 3."""
    found = [2, 4, 1]
    assert hit_rate(found, 1) == pytest.approx(1 / 3)
    assert hit_rate(found, 3) == pytest.approx(2 / 3)
    assert ndcg(found, 3) == pytest.approx((1 / np.log2(3) + 1) / 3)


@given(st.sets(st.sampled_from(POOL), max_size=30), st.integers(0, 5))
def test_candidates_hold_the_target_and_never_the_users_own(own: set[ItemId], seed: int) -> None:
    drawn = draw_candidates(UserId("u"), POOL[0], frozenset(own), POOL, np.ones(60), seed=seed)
    assert drawn[0] == POOL[0]
    assert len(set(drawn)) == len(drawn) == 20
    assert not set(drawn[1:]) & own
    assert drawn == draw_candidates(UserId("u"), POOL[0], frozenset(own), POOL, np.ones(60), seed=seed)


def test_weighted_draws_prefer_the_popular() -> None:
    weights = np.array([100.0] * 20 + [0.01] * 40)
    drawn = draw_candidates(UserId("u"), POOL[59], frozenset(), POOL, weights, seed=0)
    assert sum(item in POOL[:20] for item in drawn) >= 18


def test_groups_are_told_apart() -> None:
    metrics = summarise({UserId("a"): 1, UserId("b"): 5}, frozenset({UserId("a")}), prefix="weighted:")
    assert metrics["U_A"] == {"weighted:n": 1.0, "weighted:hr@1": 1.0, "weighted:hr@3": 1.0, "weighted:ndcg@3": 1.0}
    assert metrics["U_I"]["weighted:ndcg@3"] == 0.0
    assert metrics["U"]["weighted:n"] == 2.0


def test_the_interval_of_a_constant_difference_is_that_difference() -> None:
    assert paired_interval([0.1, 0.4], [0.3, 0.6], seed=0) == pytest.approx((0.2, 0.2))
    assert paired_interval([], [], seed=0) == (0.0, 0.0)


def _scored(llm: tuple[float, ...], retriever: tuple[float, ...], user: str = "u", target: int = 0) -> Scored:
    items = tuple(ItemId(str(n)) for n in range(len(llm)))
    case = Case(UserId(user), items[0], items, True)
    return Scored(case, target, llm, retriever, (0.1,) * len(llm))


def test_the_blend_trusts_the_expert_that_is_right() -> None:
    good = [_scored((-0.1, -3.0), (-5.0, -0.1), str(n)) for n in range(9)]
    assert choose_blend([good]).retriever < 0.6
    bad = [_scored((-1.0, -0.9), (-0.1, -5.0), str(n)) for n in range(9)]
    assert choose_blend([bad]).retriever > 0


def test_a_target_that_was_not_retrieved_is_no_hit() -> None:
    found = ranks([_scored((-1.0, -1.0), (0.0, 0.0), target=-1)], BlendWeights())
    assert gain(found[UserId("u")], 10) == 0.0
