"""Figures, differences and tables of the benchmark against hand-computed ones."""

from __future__ import annotations

import math
import re

import pytest

from evolver.bench.cases import KINDS
from evolver.bench.leave_one_out import AMAZON_BEAUTY
from evolver.bench.paired import group_masks
from evolver.bench.results import BLEND, metrics, version_ranks
from evolver.bench.scores import LLM, RETRIEVER, case_scores
from evolver.bench.tables import accuracy, cost, intervals, leave_one_out, overview, sanity, spread
from shared.ranking import Blends, BlendWeights
from tests.bench_support import bench_results

VALUES = {"frozen": 0.3, "finetune": 0.4, "evorec": 0.5}


def _value(name: str, number: int, group: str) -> float:
    return VALUES[name] + number / 100 - (0.1 if group == "U_I" else 0.0)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_figures_of_three_users_by_hand() -> None:
    """The LLM puts the targets on ranks 1 and 3 (active users) and 2 (inactive): NDCG@3 is 1, 1/2 and 1/log2(3)."""
    llm = [[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]]
    retriever = [[0.0, 0.0, 0.0, 0.0]] * 3
    shares = [[0.25] * 4] * 3
    experts = {LLM: llm, RETRIEVER: retriever, "popularity": shares}
    tables = {"next/uniform": case_scores(["a", "b", "c"], [True, True, False], [0, 2, 1], experts)}
    ranks = version_ranks(tables, Blends.alike(BlendWeights(llm=1.0, retriever=1.0, popularity=1.0)))
    assert {name: found.tolist() for name, found in ranks["next/uniform"].items()} == {
        BLEND: [1, 3, 2],
        LLM: [1, 3, 2],
        RETRIEVER: [4, 4, 4],  # all alike: ties count against the target
    }
    found = metrics(tables, ranks)["next"]["uniform"][BLEND]
    assert found["U_A"] == {"n": 2, "hr@1": 0.5, "hr@3": 1.0, "ndcg@3": 0.75}
    assert found["U_I"] == {"n": 1, "hr@1": 0.0, "hr@3": 1.0, "ndcg@3": pytest.approx(1 / math.log2(3))}
    assert found["U"]["ndcg@3"] == pytest.approx((1.5 + 1 / math.log2(3)) / 3)


def test_the_catalogs_candidates_are_blended_as_the_retrievers_own() -> None:
    experts = {LLM: [[3.0, 0.0]], RETRIEVER: [[0.0, 3.0]], "popularity": [[0.5, 0.5]]}
    tables = {f"next/{name}": case_scores(["a"], [True], [0], experts) for name in ("uniform", "catalog")}
    blends = Blends(given=BlendWeights(llm=1.0), retrieved=BlendWeights(llm=0.0, retriever=1.0))
    ranks = version_ranks(tables, blends)
    assert [ranks[f"next/{name}"][BLEND].tolist() for name in ("uniform", "catalog")] == [[1], [2]]


def test_groups_without_users_have_no_figure() -> None:
    tables = {"memory/catalog": case_scores(["a"], [True], [-1], {LLM: [[]], RETRIEVER: [[]], "popularity": [[]]})}
    found = metrics(tables, version_ranks(tables, Blends.alike(BlendWeights())))["memory"]["catalog"][BLEND]
    assert found["U_I"] == {"n": 0}
    assert found["U_A"] == {"n": 1, "hr@10": 0.0, "ndcg@10": 0.0}
    assert [int(mask.sum()) for mask in group_masks(tables["memory/catalog"].active).values()] == [1, 0, 1]


def test_tables_have_mean_and_deviation_over_seeds() -> None:
    shifted = bench_results([*VALUES], seed=1, value=lambda *which: _value(*which) + 0.02)
    seeds = [bench_results([*VALUES], value=_value), shifted]
    lines = accuracy(seeds, "memory", "uniform", 2)
    assert _cells(lines[0])[:4] == ["strategy", "U_A HR@1", "U_A HR@3", "U_A NDCG@3"]
    evorec = _cells(lines[4])
    assert evorec[0] == "evorec"
    assert (evorec[1], evorec[4], evorec[7]) == ("0.530 ± 0.014", "0.430 ± 0.014", "0.530 ± 0.014")
    for kind in KINDS:
        assert _cells(overview(seeds[:1], kind)[2]) == ["frozen", *["0.310", "0.320", "0.330"] * 2]


def test_differences_are_bold_where_their_interval_leaves_zero_out_and_turn_round_for_evorec() -> None:
    seeds = [bench_results([*VALUES], n_rounds=1, value=_value)]
    against_frozen = _cells(intervals(seeds, "frozen", "next", "weighted")[2])
    assert against_frozen[0] == "finetune - frozen"
    assert re.fullmatch(r"\*\*\+0\.100 \[\+0\.0\d\d, \+0\.1\d\d\]\*\*", against_frozen[1])
    against_others = _cells(intervals(seeds, "evorec", "next", "weighted")[2])
    assert against_others[0] == "evorec - frozen"
    assert against_others[1].startswith("**+0.200 [+0.1")
    same = [bench_results([*VALUES], n_rounds=1, value=lambda *_: 0.3)]
    assert _cells(intervals(same, "frozen", "next", "weighted")[2])[1] == "+0.000 [+0.000, +0.000]"


def test_cost_and_sanity_rows_by_hand() -> None:
    seeds = [bench_results([*VALUES], value=_value)]
    lines = cost(seeds)
    assert _cells(lines[2]) == ["frozen", "0.0", "0.0", "0.0", "–", "0", "0", "0", "30%", "512"]
    assert _cells(lines[4]) == ["evorec", "6.0", "40.0", "46.0", "0.230", "200", "4,000", "2,000", "30%", "512"]
    rows = [_cells(line) for line in sanity(seeds, "memory", "weighted")[2:-1]]
    assert [row[0] for row in rows[-3:]] == [
        "evorec: the retriever alone",
        "evorec: the LLM alone",
        "evorec: the blend, as served",
    ]
    assert (rows[0][:2], rows[-2][1], rows[-1][1]) == (["popularity", "0.111"], "0.255", "0.510")


def test_a_deviation_needs_two_seeds() -> None:
    assert (spread([]), spread([1.0], 1), spread([1.0, 3.0], 1)) == ("–", "1.0", "2.0 ± 1.4")


def test_published_figures_stand_beside_the_retriever_where_the_data_is_theirs() -> None:
    seeds = [{**bench_results([*VALUES], seed=seed, value=_value), "leave_one_out": None} for seed in range(2)]
    assert leave_one_out(seeds) == []
    tried = {"users": 80, "hr@10": 0.0512, "ndcg@10": 0.0301}
    lines = leave_one_out([{**one, "leave_one_out": tried} for one in seeds])
    assert "| this retriever | 0.0512 ± 0.0000 | 0.0301 ± 0.0000 | 80 users, without items of the history |" in lines
    assert not any("SASRec" in line for line in lines)
    beauty = dict(zip(("users", "items", "interactions"), AMAZON_BEAUTY, strict=True))
    on_beauty = [{**one, "leave_one_out": tried, "data": {**one["data"], **beauty}} for one in seeds]
    assert any(line.startswith("| SASRec | 0.0844 |") for line in leave_one_out(on_beauty))
