"""EvoRec and each other strategy, all rounds together."""

from __future__ import annotations

from evolver.bench.paired import difference
from evolver.bench.summary import BY_SIZE, CATALOG, compared, summary
from tests.bench_support import bench_results, rows_of


def rows_beside(*values: dict[str, float]) -> dict[str, list[str]]:
    """Each strategy's cells; one dictionary of figures for each seed."""
    seeds = [
        bench_results(list(value), seed=seed, value=lambda name, _, __, value=value: value[name])  # type: ignore[misc]
        for seed, value in enumerate(values)
    ]
    return rows_of(summary(seeds, compared(seeds)))


def test_a_part_that_adds_something_and_one_that_does_not_are_told_apart() -> None:
    rows = rows_beside({"evorec": 0.4, "finetune": 0.5, "evorec-without-forget": 0.4, "evorec-all-layers": 0.3})
    assert rows["finetune"][4].startswith("**-0.100 [")
    assert {name: cells[-1] for name, cells in rows.items()} == {
        "finetune": "behind",
        "evorec-without-forget": "level",
        "evorec-all-layers": "ahead",
    }


def test_seeds_are_averaged_and_seconds_are_a_multiple() -> None:
    rows = rows_beside({"frozen": 0.2, "finetune": 0.3, "evorec": 0.4}, {"frozen": 0.2, "finetune": 0.3, "evorec": 0.5})
    assert rows["frozen"][4].startswith("**+0.250 [")
    assert rows["frozen"][-2] == "–"
    # (6 + 40) / (3 + 20)
    assert rows["finetune"][-2] == "2.00x"


def test_groups_count_alike_and_by_how_many_users_they_have() -> None:
    """Of made-up users three quarters are inactive."""
    ahead_of_active = {"evorec": {"U_A": 0.6, "U_I": 0.4}, "finetune": {"U_A": 0.4, "U_I": 0.4}}
    found = bench_results([*ahead_of_active], value=lambda name, _, group: ahead_of_active[name].get(group, 0.0))
    parts = compared([found])["finetune"]
    assert (parts["all"].mean, parts[BY_SIZE].mean) == (0.1, 0.05)
    assert parts[CATALOG].mean == 0.1
    for a_round in found["rounds"]:
        del a_round["population"]
    assert [*compared([found])["finetune"]] == [part for part in parts if part != BY_SIZE]


def test_groups_count_alike_where_one_of_them_is_small() -> None:
    found = bench_results(["evorec", "finetune"], value=lambda *_: 0.0)
    for a_round in found["rounds"]:
        for asked in a_round["asked"].values():
            asked["users"], asked["active"] = " ".join(map(str, range(100))), " ".join("1" * 20 + "0" * 80)
            asked["ranks"] = {"evorec": " ".join("1" * 20 + "0" * 80), "finetune": " ".join("0" * 100)}
    parts = compared([found])["finetune"]
    assert (parts["all"].mean, parts[CATALOG].mean, parts[BY_SIZE].mean) == (0.5, 0.5, 0.25)


def test_of_few_users_nothing_is_said_and_nothing_is_bold() -> None:
    found = bench_results(["evorec", "finetune"], value=lambda *_: 0.0)
    for a_round in found["rounds"]:
        for asked in a_round["asked"].values():
            asked["users"], asked["active"] = "1 2 3", "1 0 0"
            asked["ranks"] = {"evorec": "1 1 1", "finetune": "0 0 0"}
    row = next(line for line in summary([found], compared([found])) if line.startswith("| finetune"))
    assert row.count("+1.000 [too few users]") == 7
    assert row.endswith("| – |")
    assert "**" not in row


def test_where_a_group_was_not_asked_the_other_one_is_all() -> None:
    found = bench_results(["evorec", "finetune"], value=lambda name, *_: 0.5 if name == "evorec" else 0.25)
    asked = found["rounds"][0]["asked"]["memory/uniform"]
    alone = {**asked, "active": asked["active"].replace("0", "1")}
    assert difference([alone], "evorec", "finetune", "U", 3, shares=[(0.25, 0.75)]).mean == 0.25


def test_seconds_of_a_shared_accelerator_are_not_compared() -> None:
    found = bench_results(["finetune", "evorec"], value=lambda *_: 0.4)
    found["arguments"] |= {"shared": True}
    row = next(line for line in summary([found], compared([found])) if line.startswith("| finetune"))
    assert row.endswith("| – | level |")


def test_there_is_no_table_without_evorec_or_with_it_alone() -> None:
    assert not rows_beside({"frozen": 0.2, "finetune": 0.3})
    assert not rows_beside({"evorec": 0.2})
