"""How well each ranks, all rounds together: strategies, the parts of what is served, and plain rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evolver.bench.cases import CATALOG_SET, DRAWN_SETS, KINDS, NEXT
from evolver.bench.paired import GROUPS
from evolver.bench.reading import Results, has_seconds, mean_seconds, strategies_of
from evolver.bench.results import BLEND, served_of
from evolver.bench.rules import RULES
from evolver.bench.scores import LLM, RETRIEVER
from evolver.bench.summary import ALL, BY_SIZE, PARTS, shares_of
from evolver.bench.tables import NOTHING, markdown

READING = [
    "NDCG@3, the mean over rounds, seeds and both drawn candidate sets. `all` is over both kinds of targets, and both",
    "groups count alike; `all, by size` counts each by how many users it has (of whom at most so many are asked), as a",
    "shop's mean over its users would. `catalog` is the whole pipeline over all items, as the service recommends: the",
    "groups alike, NDCG@10 of both kinds of targets, HR@10 of `next`. Seconds are those of a round's learning.",
]

Figures = Callable[[Mapping[str, Any], str, str], Mapping[str, Mapping[str, float]]]
"""(round, kind of target, candidate set) -> group -> metric -> figure; empty where that was not asked."""


def absolute(seeds: Sequence[Results]) -> list[str]:
    """A row for each strategy, then for the parts of the version that EvoRec serves (of the last strategy, where it was
    not run), then for each plain rule.
    """
    names = strategies_of(seeds)
    served = served_of(names)
    rankers: dict[str, Figures] = {name: partial(_of_version, name, BLEND) for name in names}
    rankers |= {f"{served}: its {part} alone": partial(_of_version, served, part) for part in (RETRIEVER, LLM)}
    rankers |= {rule: partial(_of_rule, rule) for rule in RULES}
    header = [
        "ranked by",
        *(f"`{kind}`, {group}" for kind, group in PARTS),
        ALL,
        BY_SIZE,
        "catalog, NDCG@10",
        "catalog, HR@10 of `next`",
        "learning, s",
    ]
    rows = [[name, *_cells(seeds, figures), _seconds(seeds, name)] for name, figures in rankers.items()]
    return ["### How well each ranks, all rounds together", "", *READING, "", *markdown(header, rows)]


def _cells(seeds: Sequence[Results], figures: Figures) -> list[str]:
    drawn = {kind: _of_groups(seeds, figures, kind, DRAWN_SETS, "ndcg@3") for kind in KINDS}
    sizes = {kind: _sizes(seeds, kind, len(DRAWN_SETS)) for kind in KINDS}
    catalog = [_of_groups(seeds, figures, kind, [CATALOG_SET], "ndcg@10") for kind in KINDS]
    means = [
        *(drawn[kind][:, GROUPS.index(group)].mean() for kind, group in PARTS),
        np.mean([drawn[kind].mean() for kind in KINDS]),
        np.mean([(drawn[kind] * sizes[kind]).sum(1).mean() for kind in KINDS]),
        np.mean([found.mean() for found in catalog]),
        _of_groups(seeds, figures, NEXT, [CATALOG_SET], "hr@10").mean(),
    ]
    return [NOTHING if np.isnan(mean) else f"{mean:.3f}" for mean in means]


def _of_groups(
    seeds: Sequence[Results], figures: Figures, kind: str, sets: Sequence[str], metric: str
) -> NDArray[np.float64]:
    """U_A's and U_I's figure in each seed, round and candidate set, NaN where there is none.  -> [N, 2]"""
    found = [figures(a_round, kind, one) for seed in seeds for a_round in seed["rounds"] for one in sets]
    return np.array([[of.get(group, {}).get(metric, np.nan) for group in GROUPS[:2]] for of in found])


def _sizes(seeds: Sequence[Results], kind: str, n_sets: int) -> NDArray[np.float64]:
    """The groups' shares of all users, row by row beside `_of_groups`'; NaN in older results, which lack them."""
    rounds = [a_round.get("population", {}).get(kind) for seed in seeds for a_round in seed["rounds"]]
    shares = [(np.nan, np.nan) if counts is None else shares_of(counts) for counts in rounds]
    return np.repeat(np.array(shares), n_sets, axis=0)


def _of_version(name: str, ranker: str, a_round: Mapping[str, Any], kind: str, candidates: str) -> Any:
    return a_round["strategies"][name]["metrics"][kind][candidates][ranker]


def _of_rule(rule: str, a_round: Mapping[str, Any], kind: str, candidates: str) -> Any:
    return a_round["rules"][kind].get(candidates, {}).get(rule, {})


def _seconds(seeds: Sequence[Results], name: str) -> str:
    known = name in strategies_of(seeds) and has_seconds(seeds)
    return f"{mean_seconds(seeds, name):,.0f}" if known else NOTHING
