"""The report's tables, as lines of Markdown, from the results of one dataset's seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from evolver.bench.cases import DRAWN_SETS, KINDS
from evolver.bench.leave_one_out import CUTOFF, published_on
from evolver.bench.paired import GROUPS, Difference
from evolver.bench.reading import (
    Results,
    between,
    figure,
    has_seconds,
    mean_cost,
    metric_names,
    n_rounds,
    over_seeds,
    rule_figure,
    strategies_of,
    total_seconds,
    trainable_share,
)
from evolver.bench.results import BLEND, EVOREC, FROZEN, SETS, served_of
from evolver.bench.rules import RULES
from evolver.bench.scores import LLM, RETRIEVER
from shared.ranking import Blends

NOTHING = "–"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and with several seeds their standard deviation (n - 1).

    >>> spread([0.5]), spread([0.4, 0.6])
    ('0.500', '0.500 ± 0.141')
    """
    if not values:
        return NOTHING
    mean = f"{np.mean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):,.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "---:") -> list[str]:
    """A table whose columns after the first are aligned so; an empty line follows."""
    lines = [f"| {' | '.join(header)} |", f"| --- |{f' {align} |' * (len(header) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def accuracy(seeds: Sequence[Results], kind: str, candidates: str, number: int) -> list[str]:
    """Every strategy's figures in one round, for each group."""
    metrics = metric_names(candidates)
    header = ["strategy", *(f"{group} {metric.upper()}" for group in GROUPS for metric in metrics)]
    rows = [
        [
            name,
            *(
                spread(over_seeds(seeds, figure(number, name, kind, candidates, BLEND, group, metric)))
                for group in GROUPS
                for metric in metrics
            ),
        ]
        for name in strategies_of(seeds)
    ]
    return markdown(header, rows)


def overview(seeds: Sequence[Results], kind: str) -> list[str]:
    """NDCG@3 over U after each round, on both drawn candidate sets."""
    columns = [(candidates, number) for candidates in DRAWN_SETS for number in range(1, n_rounds(seeds) + 1)]
    header = ["strategy", *(f"{candidates}, round {number}" for candidates, number in columns)]
    rows = [
        [
            name,
            *(
                spread(over_seeds(seeds, figure(number, name, kind, candidates, BLEND, "U", "ndcg@3")))
                for candidates, number in columns
            ),
        ]
        for name in strategies_of(seeds)
    ]
    return markdown(header, rows)


def intervals(seeds: Sequence[Results], reference: str, kind: str, candidates: str) -> list[str]:
    """Differences of NDCG to a reference with their intervals; bold where the interval leaves zero out."""
    columns = [(number, group) for number in range(1, n_rounds(seeds) + 1) for group in GROUPS]
    header = ["strategy", *(f"round {number}, {group}" for number, group in columns)]
    others = [name for name in strategies_of(seeds) if name != reference]
    pairs = [(reference, other) if reference == EVOREC else (other, reference) for other in others]
    rows = [
        [
            " - ".join(pair),
            *(interval(between(seeds, number, *pair, kind, candidates, group)) for number, group in columns),
        ]
        for pair in pairs
    ]
    return markdown(header, rows)


def interval(found: Difference) -> str:
    """
    >>> interval(Difference(0.05, 0.01, 0.09)), interval(Difference(0.0, -0.02, 0.01))
    ('**+0.050 [+0.010, +0.090]**', '+0.000 [-0.020, +0.010]')
    """
    if found.of_few:
        return f"{found.mean:+z.3f} [too few users]"
    text = f"{found.mean:+z.3f} [{found.low:+z.3f}, {found.high:+z.3f}]"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def sanity(seeds: Sequence[Results], kind: str, candidates: str) -> list[str]:
    """Plain rules, and the parts of the version that EvoRec serves (of the last strategy, where it was not run)."""
    served = served_of(strategies_of(seeds))
    metrics = metric_names(candidates)
    numbers = range(1, n_rounds(seeds) + 1)
    header = ["ranked by", *(f"round {number}, {metric.upper()}" for number in numbers for metric in metrics)]

    rows = [
        [
            rule,
            *(
                spread(over_seeds(seeds, rule_figure(number, rule, kind, candidates, metric)))
                for number in numbers
                for metric in metrics
            ),
        ]
        for rule in RULES
    ]
    parts = {RETRIEVER: "the retriever alone", LLM: "the LLM alone", BLEND: "the blend, as served"}
    for ranker, what in parts.items():
        cells = [
            spread(over_seeds(seeds, figure(number, served, kind, candidates, ranker, "U", metric)))
            for number in numbers
            for metric in metrics
        ]
        rows.append([f"{served}: {what}", *cells])
    return markdown(header, rows)


def cost(seeds: Sequence[Results]) -> list[str]:
    """Means over rounds, then over seeds, of what learning took."""
    columns: dict[str, Callable[[str], str]] = {}
    if has_seconds(seeds):
        columns |= {f"{stage}, s": partial(_stage_seconds, seeds, stage) for stage in _stages(seeds)}
        columns["total, s"] = lambda name: spread([total_seconds(one, name) for one in seeds], 1)
        columns["s per example"] = partial(_per_example, seeds)
    header = ["strategy", *columns, "examples", "tokens forward", "tokens backward", "trainable", "memory, MiB"]
    rows = []
    for name in strategies_of(seeds):
        rows.append(
            [
                name,
                *(cell(name) for cell in columns.values()),
                spread([mean_cost(one, name, _examples) for one in seeds], 0),
                spread([mean_cost(one, name, lambda cost: cost["tokens_forward"]) for one in seeds], 0),
                spread([mean_cost(one, name, lambda cost: cost["tokens_backward"]) for one in seeds], 0),
                f"{np.mean([mean_cost(one, name, trainable_share) for one in seeds]):.0%}",
                _memory(seeds, name),
            ]
        )
    return markdown(header, rows)


def _memory(seeds: Sequence[Results], name: str) -> str:
    """What learning added; older results have the whole process's memory instead, with what was left in it."""
    added = [mean_cost(one, name, lambda cost: float(cost.get("added_memory_mib", np.nan))) for one in seeds]
    return spread([mib for mib in added if not np.isnan(mib)], 0)


def _stages(seeds: Sequence[Results]) -> list[str]:
    """The stages of learning that any strategy of all seeds has, in their order."""
    names = strategies_of(seeds)
    costs = [a_round["strategies"][name]["cost"] for one in seeds for a_round in one["rounds"] for name in names]
    return list(dict.fromkeys(stage for one in costs for stage in one["seconds"]))


def _stage_seconds(seeds: Sequence[Results], stage: str, name: str) -> str:
    return spread([mean_cost(one, name, lambda cost: float(cost["seconds"].get(stage, 0.0))) for one in seeds], 1)


def _per_example(seeds: Sequence[Results], name: str) -> str:
    found = [total_seconds(one, name) / examples for one in seeds if (examples := mean_cost(one, name, _examples))]
    return spread(found, 3)


def _examples(cost: Mapping[str, Any]) -> float:
    return float(cost["examples"])


def versions(seeds: Sequence[Results]) -> list[str]:
    """What each version is made of: one row per strategy, round and seed."""
    loss = "validation loss (with the consistency term, where there is one)"
    header = ["strategy", "round", "seed", "layers trained", loss, "forgotten", "consistency"]
    header += ["LLM : retriever : popularity, of given candidates", "of the retriever's own"]
    rows = []
    for name in strategies_of(seeds):
        for number in range(1, n_rounds(seeds) + 1):
            for one in seeds:
                found = one["rounds"][number - 1]["strategies"][name]
                blends = Blends.model_validate(found["blend"])
                rows.append(
                    [
                        name,
                        str(number),
                        str(one["seed"]),
                        ", ".join(map(str, found["location"]["layers"])) or "none",
                        _validation(found.get("validation_loss")),
                        f"{found['forgotten_share']:.1%}",
                        f"{found['consistency']:g}",
                        *(f"{w.llm:g} : {w.retriever:g} : {w.popularity:g}" for w in (blends.given, blends.retrieved)),
                    ]
                )
    return markdown(header, rows)


def _validation(losses: tuple[float, float] | None) -> str:
    """Before and after an update; one that was no better left the LoRA that it started from.

    >>> _validation((2.5, 2.25)), _validation((2.5, 2.5))
    ('2.500 → 2.250', '2.500, start kept')
    """
    if losses is None:
        return NOTHING
    before, after = losses
    return f"{before:.3f}, start kept" if start_kept(losses) else f"{before:.3f} → {after:.3f}"


def start_kept(losses: Sequence[float] | None) -> bool:
    """Whether there was an update, and no checkpoint of it was better than the LoRA that it started from."""
    return losses is not None and losses[1] >= losses[0]


def leave_one_out(seeds: Sequence[Results]) -> list[str]:
    """The retriever beside published figures of the same protocol; nothing where it was not tried."""
    tried = [found for one in seeds if (found := one.get("leave_one_out")) and found["users"]]
    if not tried:
        return []
    data = seeds[0]["data"]
    hit_rate, ndcg = (spread([found[f"{metric}@{CUTOFF}"] for found in tried], 4) for metric in ("hr", "ndcg"))
    rows = [["this retriever", hit_rate, ndcg, f"{tried[0]['users']:,} users, without items of the history"]]
    rows += [
        [one.model, f"{one.hit_rate:.4f}", NOTHING, f"published: {one.source}"]
        for one in published_on(users=data["users"], items=data["items"], interactions=data["interactions"])
    ]
    return [
        "### Leave-one-out, all items",
        "",
        "The protocol of most publications: each user's last interaction is the target, the one before it is left out",
        "of training, and time plays no part. Published models choose their epochs on the interaction left out and may",
        "rank the items of the history too; the data is the same, the order of one day's interactions is not (here it",
        "is shuffled).",
        "",
        *markdown(["model", f"HR@{CUTOFF}", f"NDCG@{CUTOFF}", "of"], rows),
    ]


def main_tables(seeds: Sequence[Results]) -> list[str]:
    """What most readers look for, under its headings."""
    return [
        *(line for kind in KINDS for line in [f"### NDCG@3 over U, `{kind}`", "", *overview(seeds, kind)]),
        *["### Cost per round", "", *cost(seeds)],
        *_sanity(seeds),
        *leave_one_out(seeds),
    ]


def all_figures(seeds: Sequence[Results]) -> list[str]:
    """The rest: every figure of every round, and every difference."""
    return [
        *_differences(seeds),
        *_accuracies(seeds),
        *["### What the versions are made of", "", *versions(seeds)],
    ]


def _differences(seeds: Sequence[Results]) -> list[str]:
    lines: list[str] = []
    names = strategies_of(seeds)
    references = [one for one in (FROZEN, EVOREC) if one in names and len(names) > 1]
    for reference, kind, candidates in itertools.product(references, KINDS, SETS):
        metric = metric_names(candidates)[-1].upper()
        lines += [f"### {metric} against `{reference}`, `{kind}`, {candidates} candidates", ""]
        lines += intervals(seeds, reference, kind, candidates)
    return lines


def _sanity(seeds: Sequence[Results]) -> list[str]:
    lines: list[str] = []
    for kind, candidates in itertools.product(KINDS, DRAWN_SETS):
        lines += [f"### Plain rules and parts, `{kind}`, {candidates} candidates, U", ""]
        lines += sanity(seeds, kind, candidates)
    return lines


def _accuracies(seeds: Sequence[Results]) -> list[str]:
    lines: list[str] = []
    for kind, candidates, number in itertools.product(KINDS, SETS, range(1, n_rounds(seeds) + 1)):
        lines += [f"### Round {number}, `{kind}`, {candidates} candidates", ""]
        lines += accuracy(seeds, kind, candidates, number)
    return lines
