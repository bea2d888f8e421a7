"""EvoRec against every other strategy, over all rounds and candidate sets at once: what each of its parts adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evolver.bench.cases import CATALOG_SET, DRAWN_SETS, KINDS
from evolver.bench.paired import GROUPS, Difference, Shares, difference
from evolver.bench.reading import Results, has_seconds, mean_seconds, strategies_of
from evolver.bench.results import CUTOFFS, EVOREC
from evolver.bench.tables import NOTHING, interval, markdown

ALIKE: Shares = (0.5, 0.5)
PARTS = tuple((kind, group) for kind in KINDS for group in GROUPS[:2])
ALL, BY_SIZE, CATALOG = "all", "all, by size", "catalog"
AHEAD, BEHIND, LEVEL = "ahead", "behind", "level"

READING = [
    "EvoRec's NDCG@3 (`catalog`: NDCG@10) minus that of each other strategy, counted as above. An ablation lacks a",
    "part or replaces it: where EvoRec is ahead of it the part adds something, where it is level nothing shows that it",
    "does.",
]


Compared = Mapping[str, Mapping[str, Difference]]
"""Other strategy -> part (`memory, U_A`, ..., `ALL` of them) -> EvoRec's NDCG minus the other's."""


def compared(seeds: Sequence[Results]) -> Compared:
    """EvoRec and each other strategy; nothing where EvoRec was not run, or was alone."""
    names = strategies_of(seeds)
    if EVOREC not in names:
        return {}
    sized = all("population" in a_round for one in seeds for a_round in one["rounds"])  # older results lack it
    return {
        other: {
            **{f"{kind}, {group}": _pooled(seeds, other, [kind], group) for kind, group in PARTS},
            ALL: _pooled(seeds, other, KINDS, "U"),
            **({BY_SIZE: _pooled(seeds, other, KINDS, "U", by_size=True)} if sized else {}),
            CATALOG: _pooled(seeds, other, KINDS, "U", [CATALOG_SET]),
        }
        for other in names
        if other != EVOREC
    }


def summary(seeds: Sequence[Results], found: Compared) -> list[str]:
    """A row for each other strategy; `found` is what `compared` gave."""
    if not found:
        return []
    over_all = [part for part in next(iter(found.values())) if part in (ALL, BY_SIZE, CATALOG)]
    header = ["EvoRec and", *(f"`{kind}`, {group}" for kind, group in PARTS), *over_all, "its seconds", "EvoRec is"]
    rows = [
        [other, *map(interval, parts.values()), _share_of_seconds(seeds, other), verdict(parts[ALL])]
        for other, parts in found.items()
    ]
    return ["### EvoRec and each other strategy, all rounds together", "", *READING, "", *markdown(header, rows)]


def _pooled(
    seeds: Sequence[Results],
    other: str,
    kinds: Sequence[str],
    group: str,
    sets: Sequence[str] = DRAWN_SETS,
    *,
    by_size: bool = False,
) -> Difference:
    """Over rounds, candidate sets and these kinds of targets; a user is resampled with all of it."""
    tables = [
        (a_round, kind, candidates)
        for one in seeds
        for a_round in one["rounds"]
        for kind in kinds
        for candidates in sets
    ]
    found = [a_round["asked"][f"{kind}/{candidates}"] for a_round, kind, candidates in tables]
    shares = [shares_of(a_round["population"][kind]) if by_size else ALIKE for a_round, kind, _ in tables]
    return difference(found, EVOREC, other, group, CUTOFFS[sets[0]][-1], shares=shares)


def shares_of(population: Mapping[str, int]) -> Shares:
    """Of U_A and of U_I, by how many users they have."""
    active, inactive = (population[group] / sum(population.values()) for group in GROUPS[:2])
    return active, inactive


def _share_of_seconds(seeds: Sequence[Results], other: str) -> str:
    """EvoRec's seconds of learning as a multiple of the other's."""
    theirs = mean_seconds(seeds, other) if has_seconds(seeds) else 0.0
    return f"{mean_seconds(seeds, EVOREC) / theirs:.2f}x" if theirs else NOTHING


def verdict(found: Difference) -> str:
    """
    >>> verdict(Difference(0.02, 0.01, 0.03)), verdict(Difference(0.02, -0.01, 0.05))
    ('ahead', 'level')
    """
    if found.of_few:
        return NOTHING
    if found.low > 0:
        return AHEAD
    return BEHIND if found.high < 0 else LEVEL
