"""EvoRec and each other strategy, all rounds together."""

from __future__ import annotations

from evolver.bench.summary import compared, summary
from tests.bench_support import bench_results


def rows_of(*values: dict[str, float]) -> dict[str, list[str]]:
    """Each strategy's cells; one dictionary of figures for each seed."""
    seeds = [
        bench_results(list(value), seed=seed, value=lambda name, _, __, value=value: value[name])  # type: ignore[misc]
        for seed, value in enumerate(values)
    ]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in summary(seeds, compared(seeds))
        if line.startswith("| ")
    ]
    return {name: cells for name, *cells in table[2:]}


def test_a_part_that_adds_something_and_one_that_does_not_are_told_apart() -> None:
    rows = rows_of({"evorec": 0.4, "finetune": 0.5, "evorec-without-forget": 0.4, "evorec-all-layers": 0.3})
    assert rows["finetune"][4].startswith("**-0.100 [")
    assert {name: cells[-1] for name, cells in rows.items()} == {
        "finetune": "behind",
        "evorec-without-forget": "level",
        "evorec-all-layers": "ahead",
    }


def test_seeds_are_averaged_and_seconds_are_a_multiple() -> None:
    rows = rows_of({"frozen": 0.2, "finetune": 0.3, "evorec": 0.4}, {"frozen": 0.2, "finetune": 0.3, "evorec": 0.5})
    assert rows["frozen"][4].startswith("**+0.250 [")
    assert rows["frozen"][5] == "–"
    # (6 + 40) / (3 + 20)
    assert rows["finetune"][5] == "2.00x"


def test_seconds_of_a_shared_accelerator_are_not_compared() -> None:
    found = bench_results(["finetune", "evorec"], value=lambda *_: 0.4)
    found["arguments"] |= {"shared": True}
    row = next(line for line in summary([found], compared([found])) if line.startswith("| finetune"))
    assert row.endswith("| – | level |")


def test_there_is_no_table_without_evorec_or_with_it_alone() -> None:
    assert not rows_of({"frozen": 0.2, "finetune": 0.3})
    assert not rows_of({"evorec": 0.2})
