"""Metrics and candidate draws."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolver.evaluate import (
    CandidatePool,
    Case,
    draw_candidates,
    gains,
    hit_rate,
    ndcg,
    paired_interval,
    rank_of,
    summarise,
)
from evolver.scoring import (
    Scored,
    Version,
    judged_candidates,
    make_cases,
    ranks,
    retrieved_cases,
    score_cases,
)
from evolver.splits import Target
from shared.config import Settings
from shared.errors import EvorecError
from shared.forgotten import ForgottenSet
from shared.prompt import Prompt, PromptBuilder
from shared.ranking import BlendWeights
from shared.retriever import Retriever, RetrieverIndex
from shared.types import Item, ItemId, UserId
from tests.conftest import make_settings
from tests.factories import interaction

POOL = [ItemId(f"i{n}") for n in range(60)]
UNIFORM = CandidatePool(POOL, np.ones(60))


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
    drawn = draw_candidates(UserId("u"), POOL[0], frozenset(own), UNIFORM, seed=seed)
    assert drawn[0] == POOL[0]
    assert len(set(drawn)) == len(drawn) == 20
    assert not set(drawn[1:]) & own
    assert drawn == draw_candidates(UserId("u"), POOL[0], frozenset(own), UNIFORM, seed=seed)


def test_weighted_draws_prefer_the_popular() -> None:
    weights = np.array([100.0] * 20 + [0.01] * 40)
    drawn = draw_candidates(UserId("u"), POOL[59], frozenset(), CandidatePool(POOL, weights), seed=0)
    assert sum(item in POOL[:20] for item in drawn) >= 18


def test_draws_are_in_proportion_to_the_weights_of_what_is_left() -> None:
    """Two of three items with weights 3, 2, 1: P(first, second) = w1 / 6 * w2 / (6 - w1)."""
    pool, rng = CandidatePool(POOL[:3], np.array([3.0, 2.0, 1.0])), np.random.default_rng(0)
    n = 20_000
    counts = Counter(tuple(pool.draw(2, (), rng)) for _ in range(n))
    for (a, w_a), (b, w_b) in permutations(zip(pool.items, pool.weights, strict=True), 2):
        assert counts[a, b] / n == pytest.approx(w_a / 6 * w_b / (6 - w_a), abs=0.02)


def test_what_has_no_weight_is_never_drawn() -> None:
    pool = CandidatePool(POOL[:4], np.array([0.0, 1.0, 1.0, 0.0]))
    assert set(pool.draw(4, {POOL[1]}, np.random.default_rng(0))) == {POOL[2]}
    assert CandidatePool([], np.ones(0)).draw(19, (), np.random.default_rng(0)) == []


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


def test_a_target_that_was_not_retrieved_is_no_hit() -> None:
    found = ranks([_scored((-1.0, -1.0), (0.0, 0.0), target=-1)], BlendWeights())
    assert gains([found[UserId("u")]], 10).tolist() == [0.0]


def test_gains_by_hand() -> None:
    assert gains([1, 2, 3, 4], 3).tolist() == pytest.approx([1.0, 0.6309297535714575, 0.5, 0.0])


def test_an_llm_whose_scores_are_no_numbers_ranks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolver.scoring.score_prompts", lambda *_, **__: [[-1.0, math.nan, -2.0]])
    index = RetrieverIndex(Retriever([]), [Item(item, f"thing {item}") for item in POOL])
    version = Version(cast("Any", "an LLM"), index, ForgottenSet())
    user = UserId("u")
    cases = [(Target(user, POOL[0], (), True), Case(user, POOL[0], tuple(POOL[:3]), True))]
    with pytest.raises(EvorecError, match="its weights have diverged"):
        score_cases(version, cases, PromptBuilder.load(Settings(_env_file=None)), {})


def test_a_retriever_whose_scores_are_no_numbers_ranks_nothing() -> None:
    retriever = Retriever(POOL)
    for weights in retriever.parameters():
        weights.data.fill_(math.nan)
    version = Version(None, RetrieverIndex(retriever, [Item(item, f"thing {item}") for item in POOL]), ForgottenSet())
    user = UserId("u")
    target = Target(user, POOL[0], (interaction("u", POOL[5]),), True)
    cases = [(target, Case(user, POOL[0], tuple(POOL[:3]), True))]
    with pytest.raises(EvorecError, match=r"the retriever's scores are not numbers: .* POST /admin/rollback"):
        score_cases(version, cases, PromptBuilder.load(Settings(_env_file=None)), {})


def test_before_the_bootstrap_the_catalogs_candidates_are_the_most_popular_that_the_user_has_not_seen() -> None:
    items = [Item(item, f"thing {item}", available=item != POOL[5]) for item in POOL[1:]]
    version = Version(None, RetrieverIndex(Retriever([]), items), ForgottenSet())
    popularity = {item: float(number) for number, item in enumerate(POOL[:9])}  # the first has left the catalog
    target = Target(UserId("u"), POOL[3], (interaction("u", POOL[8]), interaction("u", POOL[6])), True)
    ((_, few),), ((_, all_there_are),) = (retrieved_cases(version, [target], k, popularity) for k in (3, 20))
    assert set(few.candidates) == {POOL[7], POOL[4], POOL[3]}
    assert set(all_there_are.candidates) == {POOL[7], POOL[4], POOL[3], POOL[2], POOL[1]}


def test_the_llm_is_asked_only_where_its_answer_can_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Prompt] = []

    def answering(_model: object, prompts: list[Prompt], *_: object, **__: object) -> list[list[float]]:
        asked.extend(prompts)
        return [[-1.0] * prompt.n_candidates for prompt in prompts]

    monkeypatch.setattr("evolver.scoring.score_prompts", answering)
    index = RetrieverIndex(Retriever([]), [Item(item, f"thing {item}") for item in POOL])
    version = Version(cast("Any", "an LLM"), index, ForgottenSet())
    cases = [
        (Target(user, POOL[0], (), True), Case(user, POOL[0], tuple(candidates), True))
        for user, candidates in ((UserId("found"), POOL[:3]), (UserId("not found"), POOL[1:3]))
    ]
    found, not_found = score_cases(version, cases, PromptBuilder.load(Settings(_env_file=None)), {})
    assert [prompt.n_candidates for prompt in asked] == [3]
    assert found.llm == (-1.0,) * 3
    assert found.tokens == len(asked[0].token_ids)
    assert np.isnan(not_found.llm).all()
    assert len(not_found.llm) == 2
    assert not_found.tokens == 0


@pytest.mark.parametrize(("rank_candidates", "n"), [(5, 5), (20, 20), (50, 20)])
def test_versions_are_judged_by_prompts_that_they_are_trained_for(rank_candidates: int, n: int) -> None:
    """An LLM that never had more candidates has not learned the other labels."""
    judged = judged_candidates(make_settings(rank_candidates=rank_candidates))
    target = Target(UserId("u"), POOL[0], (), active=True)
    cases = make_cases([target], dict.fromkeys(POOL, 1.0), seed=0, n=judged)
    assert [len(case.candidates) for chosen in cases.values() for _, case in chosen] == [n, n]
