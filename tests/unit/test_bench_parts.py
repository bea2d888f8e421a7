"""The blend and its parts, all rounds together."""

from __future__ import annotations

from evolver.bench.parts import parts
from tests.bench_support import bench_results, rows_of


def test_the_served_blend_stands_against_each_part_and_rule() -> None:
    """A made-up part, or rule, finds half as many targets as the blend does; both groups count alike."""
    figures = {"evorec": {"U_A": 0.6, "U_I": 0.2}, "frozen": {"U_A": 0.9, "U_I": 0.9}}
    seeds = [
        bench_results([*figures], seed=seed, value=lambda name, _, group: figures[name].get(group, 0.0))
        for seed in (0, 1)
    ]
    rows = rows_of(parts(seeds))
    assert all(cell.startswith("**+0.200 [") for cell in rows["retriever"])
    assert rows["decayed popularity"][2] == rows["decayed popularity"][5] == "–"  # no rule ranks the catalog's
    assert rows["decayed popularity"][1] == rows["retriever"][1]


def test_a_part_that_ranks_as_well_is_not_beaten() -> None:
    found = bench_results(["evorec"], value=lambda *_: 0.5)
    for a_round in found["rounds"]:
        for asked in a_round["asked"].values():
            asked["alone"]["retriever"] = asked["ranks"]["evorec"]
    assert rows_of(parts([found]))["retriever"] == ["+0.000 [+0.000, +0.000]"] * 6


def test_results_of_before_have_no_such_table() -> None:
    found = bench_results(["evorec"], value=lambda *_: 0.5)
    del found["rounds"][1]["asked"]["next/uniform"]["alone"]
    assert parts([found]) == []
