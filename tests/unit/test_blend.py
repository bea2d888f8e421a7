"""The blend's weights are those of the choices that were made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evolver.blend import PRIOR, choose_blend
from evolver.evaluate import Case
from evolver.scoring import Scored
from shared.errors import EvorecError
from shared.ranking import BlendWeights, log_odds
from shared.types import ItemId, UserId


def scored(n: int, weights: BlendWeights, *, seed: int, n_candidates: int = 8) -> list[Scored]:
    """Users who choose as a blend with these weights says."""
    rng = np.random.default_rng(seed)
    made = []
    for user in range(n):
        llm, retriever = (np.log(rng.dirichlet(np.ones(n_candidates))) for _ in range(2))
        shares = rng.dirichlet(np.ones(n_candidates))
        odds = np.exp(log_odds(llm, retriever, shares, weights))
        target = int(rng.choice(n_candidates, p=odds / odds.sum()))
        items = tuple(ItemId(str(number)) for number in range(n_candidates))
        case = Case(UserId(str(user)), items[target], items, True)
        made.append(Scored(case, target, tuple(llm), tuple(retriever), tuple(shares)))
    return made


def values(weights: BlendWeights) -> tuple[float, float, float]:
    return weights.llm, weights.retriever, weights.popularity


@pytest.mark.parametrize("true", [(0.8, 0.3, 0.5), (0.2, 1.5, 0.0)])
def test_the_weights_of_the_choices_are_found(true: tuple[float, float, float]) -> None:
    llm, retriever, popularity = true
    weights = BlendWeights(llm=llm, retriever=retriever, popularity=popularity)
    sets = [scored(2000, weights, seed=seed) for seed in range(2)]
    assert values(choose_blend(sets)) == pytest.approx(true, abs=0.1)


def test_an_expert_that_is_wrong_gets_nothing_and_never_a_negative_weight() -> None:
    found = choose_blend([scored(500, BlendWeights(llm=-1.0, retriever=1.0), seed=0)])
    assert 0.0 <= found.llm < 0.01
    assert found.retriever > 0.6


def test_few_users_hardly_move_the_prior_and_nobody_does_not() -> None:
    one = choose_blend([scored(1, BlendWeights(llm=0.0, retriever=5.0), seed=3)])
    assert values(one) == pytest.approx(values(PRIOR), abs=0.6)
    assert choose_blend([]) == choose_blend([[], []]) == PRIOR


def test_few_users_hardly_move_the_parents_weights_and_many_do() -> None:
    parent, true = BlendWeights(llm=0.3, retriever=1.5, popularity=0.0), BlendWeights(llm=1.0, retriever=0.5)
    few, many = (choose_blend([scored(n, true, seed=3)], parent) for n in (2, 2000))
    assert values(few) == pytest.approx(values(parent), abs=0.1)
    assert values(many) == pytest.approx(values(true), abs=0.1)
    assert choose_blend([], parent) == choose_blend([[], []], parent) == parent


def test_users_with_fewer_candidates_and_targets_that_were_not_retrieved_do_no_harm() -> None:
    weights = BlendWeights(llm=1.0, retriever=1.0, popularity=1.0)
    some = scored(200, weights, seed=1)
    fewer = scored(200, weights, seed=2, n_candidates=3)
    lost = [Scored(one.case, -1, (np.nan,) * 8, one.retriever, one.popularity) for one in some]
    assert choose_blend([[*some, *fewer, *lost]]) == choose_blend([[*some, *fewer]])
    assert values(choose_blend([[*some, *fewer]])) == pytest.approx((1.0, 1.0, 1.0), abs=0.3)


def test_weights_that_are_no_numbers_are_not_chosen() -> None:
    found = scored(20, BlendWeights(llm=1.0), seed=0)
    diverged = replace(found[0], retriever=(float("nan"),) * len(found[0].retriever))
    with pytest.raises(EvorecError, match=r"the blend's weights are not numbers \(LLM nan"):
        choose_blend([[diverged, *found[1:]]])
    with pytest.raises(EvorecError, match="the parent's weights"):
        choose_blend([found], BlendWeights(llm=float("nan")))
