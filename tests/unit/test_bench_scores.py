"""Saved scores: ranks by hand, the same as the evolver's, and the same after a round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evolver.bench.scores import LLM, POPULARITY, RETRIEVER, CaseScores, load_scores, of_version, save_scores
from evolver.evaluate import Case
from evolver.scoring import NOT_RETRIEVED, Scored, ranks
from shared.ranking import BlendWeights
from shared.types import ItemId, UserId

WEIGHTS = BlendWeights(llm=1.0, retriever=0.5, popularity=0.25)


def _scored(n_cases: int, seed: int = 0) -> list[Scored]:
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(n_cases):
        width = int(rng.integers(0 if number == 1 else 1, 6))
        items = tuple(ItemId(f"i{column}") for column in range(width))
        target = -1 if number % 5 == 1 else int(rng.integers(max(1, width)))
        experts = rng.integers(-3, 0, size=(2, width)).astype(float).tolist()  # whole numbers: ties happen
        shares = rng.integers(0, 3, size=width) / 10
        case = Case(UserId(f"u{number}"), ItemId(f"i{target}"), items, active=number % 2 == 0)
        cases.append(Scored(case, target, tuple(experts[0]), tuple(experts[1]), tuple(shares.tolist())))
    return cases


def test_ties_count_against_the_target_and_what_was_not_retrieved_ranks_last() -> None:
    nan = np.nan
    scores = np.array([[0.5, 0.5, 0.1], [0.1, 0.9, nan], [0.3, 0.2, 0.1]], dtype=np.float32)
    table = CaseScores(np.array(["a", "b", "c"]), np.array([True, True, False]), np.array([0, 1, -1]), {LLM: scores})
    assert table.rank_by(LLM).tolist() == [2, 1, NOT_RETRIEVED]


def test_ranks_are_the_ones_that_an_evolution_computes() -> None:
    scored = _scored(200)
    table = of_version(scored)
    found = table.ranks(table.blended(WEIGHTS)).tolist()
    assert dict(zip(table.users.tolist(), found, strict=True)) == ranks(scored, WEIGHTS)


def test_a_round_trip_through_the_file_changes_nothing(tmp_path: Path) -> None:
    tables = {"memory/uniform": of_version(_scored(30)), "next/catalog": of_version(_scored(20, seed=1))}
    save_scores(tmp_path / "scores.npz", tables)
    loaded = load_scores(tmp_path / "scores.npz")
    assert loaded.keys() == tables.keys()
    for name, table in tables.items():
        for field in ("users", "active", "target"):
            np.testing.assert_array_equal(getattr(loaded[name], field), getattr(table, field))
        assert loaded[name].experts.keys() == {LLM, RETRIEVER, POPULARITY}
        for expert, values in table.experts.items():
            np.testing.assert_array_equal(loaded[name].experts[expert], values)


def test_nobody_asked_is_no_rank() -> None:
    table = of_version([])
    assert table.ranks(table.blended(WEIGHTS)).tolist() == []
