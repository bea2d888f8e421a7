"""Figures read out of the results of one dataset's seeds: what tables, goals and plots are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evolver.bench.cases import KINDS, UNIFORM_SET
from evolver.bench.paired import GROUPS, Difference, combination
from evolver.bench.results import BLEND, CUTOFFS

Results = Mapping[str, Any]
"""One document that `evolver.bench.results` wrote."""


def strategies_of(seeds: Sequence[Results]) -> list[str]:
    """Those that every seed has, in the first one's order."""
    return [name for name in seeds[0]["strategies"] if all(name in one["strategies"] for one in seeds)]


def n_updates(seeds: Sequence[Results]) -> int:
    """How often a strategy learns in a round."""
    return int(seeds[0]["arguments"].get("updates_per_round", 1))


def n_rounds(seeds: Sequence[Results]) -> int:
    """Those that every seed has."""
    return min(len(one["rounds"]) for one in seeds)


def metric_names(candidates: str) -> list[str]:
    """The figures of a candidate set.

    >>> metric_names("uniform"), metric_names("catalog")
    (['hr@1', 'hr@3', 'ndcg@3'], ['hr@10', 'ndcg@10'])
    """
    cutoffs = CUTOFFS[candidates]
    return [*(f"hr@{k}" for k in cutoffs), f"ndcg@{cutoffs[-1]}"]


def over_seeds(seeds: Sequence[Results], value: Callable[[Results], float | None]) -> list[float]:
    """The value in each seed that has one."""
    return [one for one in map(value, seeds) if one is not None]


def figure(number: int, strategy: str, kind: str, candidates: str, ranker: str, group: str, metric: str) -> Any:
    """Reads one figure of a strategy in round `number` out of a seed's results; None where nobody was asked."""

    def read(one: Results) -> float | None:
        found = one["rounds"][number - 1]["strategies"][strategy]["metrics"][kind][candidates][ranker][group]
        value: float | None = found.get(metric)
        return value

    return read


def rule_figure(number: int, rule: str, kind: str, candidates: str, metric: str) -> Callable[[Results], float | None]:
    """Reads a figure of a plain rule over U in round `number` out of a seed's results; None where nobody was asked."""
    return lambda one: one["rounds"][number - 1]["rules"][kind][candidates][rule]["U"].get(metric)


def mean_figure(
    seeds: Sequence[Results], number: int, strategy: str, kind: str, candidates: str, group: str, metric: str
) -> float:
    """The mean over seeds of a figure of the blend; NaN where nobody was asked."""
    values = over_seeds(seeds, figure(number, strategy, kind, candidates, BLEND, group, metric))
    return float(np.mean(values)) if values else float("nan")


def between(
    seeds: Sequence[Results], number: int, name: str, reference: str, kind: str, candidates: str, group: str
) -> Difference:
    """NDCG of one strategy's blend minus that of another, in round `number`."""
    return sum_of(seeds, number, {name: 1.0, reference: -1.0}, kind, candidates, group)


def sum_of(
    seeds: Sequence[Results], number: int, coefficients: Mapping[str, float], kind: str, candidates: str, group: str
) -> Difference:
    """The sum of strategies' NDCG, each times its coefficient, in round `number`."""
    found = [one["rounds"][number - 1]["asked"][f"{kind}/{candidates}"] for one in seeds]
    return combination(found, coefficients, group, CUTOFFS[candidates][-1])


def n_asked(seeds: Sequence[Results]) -> dict[str, dict[str, tuple[int, int]]]:
    """kind -> U_A or U_I -> fewest and most users asked in any round and seed."""
    name = strategies_of(seeds)[0]
    found: dict[str, dict[str, list[int]]] = {kind: {group: [] for group in GROUPS[:2]} for kind in KINDS}
    for one in seeds:
        for a_round in one["rounds"]:
            for kind, of_group in found.items():
                for group, counts in of_group.items():
                    counts.append(a_round["strategies"][name]["metrics"][kind][UNIFORM_SET][BLEND][group]["n"])
    return {kind: {group: (min(ns), max(ns)) for group, ns in groups.items()} for kind, groups in found.items()}


def span(counts: Iterable[int]) -> str:
    """
    >>> span([1000, 1000]), span([62, 1136])
    ('1,000', '62 to 1,136')
    """
    few, many = min(kept := [*counts]), max(kept)
    return f"{few:,}" if few == many else f"{few:,} to {many:,}"


def has_seconds(seeds: Sequence[Results]) -> bool:
    """Whether seconds say anything: not where other processes used the same accelerator meanwhile."""
    return not any(one["arguments"].get("shared") for one in seeds)


def of_like_code(seeds: Sequence[Results], number: int, *names: str) -> bool:
    """Whether the same code made these strategies' versions of round `number`: else their seconds are not compared."""
    made = [one["rounds"][number - 1]["strategies"][name].get("code") for one in seeds for name in names]
    return len(set(made)) == 1


def mean_cost(one: Results, strategy: str, value: Callable[[Mapping[str, Any]], float]) -> float:
    """Over the rounds of a seed."""
    return float(np.mean([value(a_round["strategies"][strategy]["cost"]) for a_round in one["rounds"]]))


def learning_seconds(cost: Mapping[str, Any]) -> float:
    """Of all stages together."""
    return float(sum(cost["seconds"].values()))


def total_seconds(one: Results, strategy: str) -> float:
    """Of learning, per round."""
    return mean_cost(one, strategy, learning_seconds)


def mean_seconds(seeds: Sequence[Results], strategy: str) -> float:
    """Of learning, per round, over seeds."""
    return float(np.mean([total_seconds(one, strategy) for one in seeds]))


def took(one: Results) -> tuple[float, float]:
    """Seconds of a seed's learning, its bootstrap's included (as `total_seconds`), and of asking its versions, by the
    clock.
    """
    versions = [version for a_round in one["rounds"] for version in a_round["strategies"].values()]
    learning = sum(learning_seconds(made["cost"]) for made in (one["bootstrap"], *versions))
    asking = sum(version["evaluation_seconds"] for version in versions)
    return learning, asking


def trainable_share(cost: Mapping[str, Any]) -> float:
    """Of LoRA's parameters."""
    return float(cost["trainable_parameters"] / max(1, cost["lora_parameters"]))
