"""The blend that is served against each of its parts, and each plain rule, alone: what each of them adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evolver.bench.cases import DRAWN_SETS, KINDS
from evolver.bench.paired import Difference, combination
from evolver.bench.reading import Results, strategies_of
from evolver.bench.results import ALONE, CUTOFFS, SETS, served_of
from evolver.bench.summary import ALIKE
from evolver.bench.tables import NOTHING, interval, markdown

READING = [
    "NDCG@3 (`catalog`: NDCG@10) of the blend, as the version is served, minus that of one of its parts, or of a plain",
    "rule, alone: over U, both groups alike. The catalog's candidates are the retriever's own, and no rule ranks them.",
]


def parts(seeds: Sequence[Results]) -> list[str]:
    """A row for each part and rule; nothing of results of before, which lack their ranks."""
    everything = [table for one in seeds for a_round in one["rounds"] for table in a_round["asked"].values()]
    if not all(ALONE in table for table in everything):
        return []
    served = served_of(strategies_of(seeds))
    columns = [(kind, candidates) for kind in KINDS for candidates in SETS]
    header = [f"the blend of `{served}` and", *(f"`{kind}`, {candidates}" for kind, candidates in columns)]
    first = f"{KINDS[0]}/{DRAWN_SETS[0]}"
    rows = [
        [name, *(_cell(seeds, served, name, kind, candidates) for kind, candidates in columns)]
        for name in seeds[0]["rounds"][0]["asked"][first][ALONE]
    ]
    return ["### The blend and its parts, all rounds together", "", *READING, "", *markdown(header, rows)]


def _cell(seeds: Sequence[Results], served: str, name: str, kind: str, candidates: str) -> str:
    tables = [a_round["asked"][f"{kind}/{candidates}"] for one in seeds for a_round in one["rounds"]]
    ranked = all(name in table[ALONE] for table in tables)
    return interval(_difference(tables, served, name, CUTOFFS[candidates][-1])) if ranked else NOTHING


def _difference(tables: Sequence[Any], served: str, name: str, k: int) -> Difference:
    found = [{**table, "ranks": table["ranks"] | table[ALONE]} for table in tables]
    return combination(found, {served: 1.0, name: -1.0}, "U", k, shares=[ALIKE] * len(found))
