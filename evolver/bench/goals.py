"""What EvoRec is meant to reach, and whether it does: tables of goals, made from the results of one dataset's seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evolver.bench.cases import DRAWN_SETS, KINDS, MEMORY, NEXT
from evolver.bench.reading import (
    Results,
    between,
    figure,
    has_seconds,
    learning_seconds,
    mean_figure,
    n_rounds,
    over_seeds,
    rule_figure,
    strategies_of,
    trainable_share,
)
from evolver.bench.results import EVOREC, FINETUNE, FROZEN, RETRAIN
from evolver.bench.rules import RULES
from evolver.bench.scores import LLM, RETRIEVER
from evolver.bench.tables import interval, markdown
from evolver.locate import first_upper_layer

FIGURE = "ndcg@3"
COST_WHERE_LEVEL = 0.5  # of the seconds of the strategy that it is level with
MOST_FORGOTTEN = -0.03  # of U_I's memory, lower end of the interval against `frozen`
GAIN_KEPT = 0.90  # of what `finetune` gains on U_I's next interactions
MOST_TRAINED = 0.30  # of LoRA's parameters
COST_PER_EXAMPLE = 0.60  # of `finetune`'s, where nothing below the upper two thirds trains
COST_OF_ROUND = 0.10  # of `retrain`'s

Cell = Callable[[int], str | None]
"""What is said of a round; None where the goal does not apply."""


def goals(seeds: Sequence[Results]) -> list[str]:
    """A row for each goal that these strategies can be held to, a column for each round."""
    names = strategies_of(seeds)
    if EVOREC not in names:
        return []
    rows: list[tuple[str, Cell]] = []
    others = [name for name in names if name != EVOREC and not name.startswith(f"{EVOREC}-")]
    for kind, candidates in itertools.product(KINDS, DRAWN_SETS):
        where = f"`{kind}`, {candidates}"
        if others:
            rows.append((f"U leads, {where}", _leads(seeds, others, kind, candidates)))
        if FINETUNE in names:
            rows.append((f"U_A level with `{FINETUNE}`, {where}", _level(seeds, kind, candidates)))
        if FROZEN in names and kind == MEMORY:
            rows.append((f"U_I forgets at most {-MOST_FORGOTTEN:.0%}, {where}", _remembers(seeds, names, candidates)))
        if {FROZEN, FINETUNE} <= {*names} and kind == NEXT:
            rows.append((f"U_I keeps {GAIN_KEPT:.0%} of `{FINETUNE}`'s gain, {where}", _keeps(seeds, candidates)))
        rows.append((f"the blend beats each rule and part, {where}", _blend_wins(seeds, kind, candidates)))
    rows.append((f"at most {MOST_TRAINED:.0%} of LoRA trains", _trains(seeds)))
    if FINETUNE in names and has_seconds(seeds):
        rows.append((f"seconds per example at most {COST_PER_EXAMPLE:.0%} of `{FINETUNE}`'s", _per_example(seeds)))
    if RETRAIN in names and has_seconds(seeds):
        rows.append((f"seconds at most {COST_OF_ROUND:.0%} of `{RETRAIN}`'s", _of_retraining(seeds)))
    numbers = range(1, n_rounds(seeds) + 1)
    table = markdown(
        ["goal", *(f"round {number}" for number in numbers)],
        [[what, *(cell(number) or "does not apply" for number in numbers)] for what, cell in rows],
        align="---",
    )
    return [
        "NDCG@3 of the blend; differences with their intervals. U leads: EvoRec minus the best other strategy (without",
        "ablations); being level with it counts where it takes at most half of its seconds. Seconds per example count",
        "where the lowest located layer is in the upper two thirds.",
        "",
        *table,
    ]


def said(text: str, met: bool) -> str:
    """
    >>> said("0.2 of 0.1", met=False)
    '0.2 of 0.1: **missed**'
    """
    return f"{text}: {'met' if met else '**missed**'}"


def _mean(seeds: Sequence[Results], read: Callable[[Results], float | None]) -> float:
    return float(np.mean(over_seeds(seeds, read)))


def _seconds(seeds: Sequence[Results], number: int, name: str) -> float:
    """Of learning, in one round."""
    return _mean(seeds, lambda one: learning_seconds(_cost(one, number, name)))


def _cost(one: Results, number: int, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = one["rounds"][number - 1]["strategies"][name]["cost"]
    return found


def _leads(seeds: Sequence[Results], others: Sequence[str], kind: str, candidates: str) -> Cell:
    def cell(number: int) -> str:
        best = max(others, key=lambda name: mean_figure(seeds, number, name, kind, candidates, "U", FIGURE))
        found = between(seeds, number, EVOREC, best, kind, candidates, "U")
        seconds = _seconds(seeds, number, best) if has_seconds(seeds) else 0.0
        share = _seconds(seeds, number, EVOREC) / seconds if seconds else float("inf")
        met = found.mean >= 0 or (found.high >= 0 and share <= COST_WHERE_LEVEL)
        cost = f", {share:.2f} of its seconds" if seconds else ""
        if found.low <= 0 <= found.high and not (met or has_seconds(seeds)):
            return f"{interval(found)} to `{best}`: level, at an unknown cost"
        return said(f"{interval(found)} to `{best}`{cost}", met)

    return cell


def _level(seeds: Sequence[Results], kind: str, candidates: str) -> Cell:
    def cell(number: int) -> str:
        found = between(seeds, number, EVOREC, FINETUNE, kind, candidates, "U_A")
        return said(interval(found), found.high >= 0)

    return cell


def _remembers(seeds: Sequence[Results], names: Sequence[str], candidates: str) -> Cell:
    def lowest(number: int, name: str) -> float:
        low = between(seeds, number, name, FROZEN, MEMORY, candidates, "U_I").low
        return low / mean_figure(seeds, number, FROZEN, MEMORY, candidates, "U_I", FIGURE)

    def cell(number: int) -> str:
        found = lowest(number, EVOREC)
        beside = f" (`{FINETUNE}` {lowest(number, FINETUNE):+.1%})" if FINETUNE in names else ""
        return said(f"{found:+.1%} at the lower end{beside}", found > MOST_FORGOTTEN)

    return cell


def _keeps(seeds: Sequence[Results], candidates: str) -> Cell:
    def cell(number: int) -> str:
        ours, theirs = (
            between(seeds, number, name, FROZEN, NEXT, candidates, "U_I").mean for name in (EVOREC, FINETUNE)
        )
        if theirs <= 0:
            return said(f"{ours:+.3f}, `{FINETUNE}` {theirs:+.3f}", ours >= theirs)
        return said(f"{ours / theirs:.0%}", ours / theirs >= GAIN_KEPT)

    return cell


def _blend_wins(seeds: Sequence[Results], kind: str, candidates: str) -> Cell:
    def cell(number: int) -> str:
        alone = {rule: _mean(seeds, rule_figure(number, rule, kind, candidates, FIGURE)) for rule in RULES} | {
            part: _mean(seeds, figure(number, EVOREC, kind, candidates, part, "U", FIGURE)) for part in (RETRIEVER, LLM)
        }
        best = max(alone, key=lambda name: alone[name])
        blend = mean_figure(seeds, number, EVOREC, kind, candidates, "U", FIGURE)
        return said(f"{blend:.3f}, {best} {alone[best]:.3f}", blend > alone[best])

    return cell


def _trains(seeds: Sequence[Results]) -> Cell:
    def cell(number: int) -> str:
        most = max(trainable_share(_cost(one, number, EVOREC)) for one in seeds)
        return said(f"{most:.0%}", most <= MOST_TRAINED + 1e-9)

    return cell


def _per_example(seeds: Sequence[Results]) -> Cell:
    def cell(number: int) -> str | None:
        located = [one for one in seeds if _in_upper_two_thirds(one, number)]
        if not located:
            return None

        def seconds(name: str) -> float:
            return _seconds(located, number, name) / _mean(located, lambda one: _cost(one, number, name)["examples"])

        share = seconds(EVOREC) / seconds(FINETUNE)
        return said(f"{share:.0%}", share <= COST_PER_EXAMPLE)

    return cell


def _in_upper_two_thirds(one: Results, number: int) -> bool:
    layers: Sequence[int] = one["rounds"][number - 1]["strategies"][EVOREC]["location"]["layers"]
    return min(layers) >= first_upper_layer(one["base"]["layers"])


def _of_retraining(seeds: Sequence[Results]) -> Cell:
    def cell(number: int) -> str:
        share = _seconds(seeds, number, EVOREC) / _seconds(seeds, number, RETRAIN)
        return said(f"{share:.0%}", share <= COST_OF_ROUND)

    return cell
