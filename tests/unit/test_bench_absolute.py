"""How well each ranks, all rounds together."""

from __future__ import annotations

from evolver.bench.absolute import absolute
from tests.bench_support import bench_results, rows_of


def test_groups_count_alike_and_by_size_and_parts_and_rules_stand_beside() -> None:
    """Of made-up users three quarters are inactive; a part has half of the blend's figure."""
    figures = {"frozen": {"U_A": 0.2, "U_I": 0.2}, "evorec": {"U_A": 0.6, "U_I": 0.4}}
    seeds = [
        bench_results([*figures], seed=seed, value=lambda name, _, group: figures[name].get(group, 0.0))
        for seed in range(2)
    ]
    rows = rows_of(absolute(seeds))
    #           memory, U_A and U_I; next; all; by size; catalog: NDCG@10, HR@10
    assert rows["evorec"][:8] == ["0.600", "0.400", "0.600", "0.400", "0.500", "0.450", "0.500", "0.500"]
    assert rows["frozen"][:8] == ["0.200"] * 8
    assert rows["evorec: its retriever alone"][4] == "0.250"
    assert rows["decayed popularity"][4:8] == ["0.111", "0.111", "–", "–"]
    assert rows["decayed popularity"][-1] == rows["evorec: its llm alone"][-1] == "–"


def test_results_of_before_know_no_sizes() -> None:
    found = bench_results(["evorec"], value=lambda *_: 0.5)
    for a_round in found["rounds"]:
        del a_round["population"]
    assert rows_of(absolute([found]))["evorec"][4:6] == ["0.500", "–"]
