"""The blend's weights are those of the choices that were made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evolver.blend import LLM_AMONG_RETRIEVED, PARENT_WORTH, PRIOR, choose_blend, likeliest
from evolver.evaluate import Case
from evolver.scoring import Scored
from shared.errors import EvorecError
from shared.ranking import Blends, BlendWeights, log_odds
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
    assert values(likeliest(sets, PRIOR, 1)) == pytest.approx(true, abs=0.1)


def test_an_expert_that_is_wrong_gets_nothing_and_never_a_negative_weight() -> None:
    found = likeliest([scored(500, BlendWeights(llm=-1.0, retriever=1.0), seed=0)], PRIOR, 1)
    assert 0.0 <= found.llm < 0.01
    assert found.retriever > 0.6


def test_few_users_hardly_move_the_prior_and_nobody_does_not() -> None:
    one = likeliest([scored(1, BlendWeights(llm=0.0, retriever=5.0), seed=3)], PRIOR, 1)
    assert values(one) == pytest.approx(values(PRIOR), abs=0.6)
    assert likeliest([], PRIOR, 1) == likeliest([[], []], PRIOR, 1) == PRIOR


def test_few_users_hardly_move_the_parents_weights_and_many_do() -> None:
    parent, true = BlendWeights(llm=0.3, retriever=1.5, popularity=0.0), BlendWeights(llm=1.0, retriever=0.5)
    few, many = (likeliest([scored(n, true, seed=3)], parent, PARENT_WORTH) for n in (2, 2000))
    assert values(few) == pytest.approx(values(parent), abs=0.1)
    assert values(many) == pytest.approx(values(true), abs=0.1)
    assert likeliest([], parent, PARENT_WORTH) == likeliest([[], []], parent, PARENT_WORTH) == parent


def test_users_with_fewer_candidates_and_targets_that_were_not_retrieved_do_no_harm() -> None:
    weights = BlendWeights(llm=1.0, retriever=1.0, popularity=1.0)
    some = scored(200, weights, seed=1)
    fewer = scored(200, weights, seed=2, n_candidates=3)
    lost = [Scored(one.case, -1, (np.nan,) * 8, one.retriever, one.popularity) for one in some]
    assert likeliest([[*some, *fewer, *lost]], PRIOR, 1) == likeliest([[*some, *fewer]], PRIOR, 1)
    assert values(likeliest([[*some, *fewer]], PRIOR, 1)) == pytest.approx((1.0, 1.0, 1.0), abs=0.3)


def test_weights_that_are_no_numbers_are_not_chosen() -> None:
    found = scored(20, BlendWeights(llm=1.0), seed=0)
    diverged = replace(found[0], retriever=(float("nan"),) * len(found[0].retriever))
    with pytest.raises(EvorecError, match=r"the blend's weights are not numbers \(LLM nan"):
        likeliest([[diverged, *found[1:]]], PRIOR, 1)
    with pytest.raises(EvorecError, match="the parent's weights"):
        likeliest([found], BlendWeights(llm=float("nan")), PARENT_WORTH)


def test_the_retrievers_own_candidates_have_weights_of_their_own() -> None:
    """Among these the LLM says nothing that the retriever has not said; among drawn ones it does."""
    drawn, own = BlendWeights(llm=1.0, retriever=0.5), BlendWeights(llm=0.0, retriever=1.0)
    found = choose_blend([scored(2000, drawn, seed=1)], scored(2000, own, seed=2))
    assert values(found.given) == pytest.approx(values(drawn), abs=0.1)
    assert values(found.retrieved) == pytest.approx(values(own), abs=0.1)


def test_where_nobodys_target_was_retrieved_the_llm_has_a_part_of_its_weight_or_the_parents() -> None:
    drawn = [scored(2000, BlendWeights(llm=1.0, retriever=0.5), seed=1)]
    lost = [replace(one, target=-1) for one in scored(20, PRIOR, seed=2)]
    found = choose_blend(drawn, lost)
    assert found.retrieved.llm == pytest.approx(LLM_AMONG_RETRIEVED * found.given.llm, abs=1e-4)
    assert (found.retrieved.retriever, found.retrieved.popularity) == (found.given.retriever, found.given.popularity)
    parent = Blends(given=PRIOR, retrieved=BlendWeights(llm=0.7, retriever=0.2))
    assert choose_blend(drawn, lost, parent).retrieved == parent.retrieved
    assert choose_blend([], [], parent) == parent


def test_versions_of_before_have_one_blend_for_both() -> None:
    one = BlendWeights(llm=0.3, retriever=0.6, popularity=0.1)
    assert Blends.model_validate_json(one.model_dump_json()) == Blends.alike(one)
    two = Blends(given=one, retrieved=PRIOR)
    assert Blends.model_validate_json(two.model_dump_json()) == two
