"""What EvoRec is meant to reach, and whether it does: tables of goals, made from the results of one dataset's seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evolver.bench.cases import DRAWN_SETS, KINDS, MEMORY, NEXT
from evolver.bench.paired import Difference
from evolver.bench.reading import (
    Results,
    between,
    figure,
    has_seconds,
    learning_seconds,
    mean_figure,
    n_rounds,
    of_like_code,
    over_seeds,
    rule_figure,
    strategies_of,
    sum_of,
    trainable_share,
)
from evolver.bench.results import BLEND, EVOREC, FINETUNE, FROZEN, RETRAIN
from evolver.bench.rules import RULES
from evolver.bench.scores import LLM, RETRIEVER
from evolver.bench.strategies import MAIN
from evolver.bench.tables import NOTHING, interval, markdown, start_kept
from evolver.locate import first_upper_layer

FIGURE = "ndcg@3"
COST_WHERE_LEVEL = 0.5  # of the seconds of the strategy that it is level with
NARROW = -0.02  # an interval that reaches lower shows no level
TOO_WIDE, TOO_FEW = "too wide to say", "too few users to say"
MOST_FORGOTTEN = -0.03  # of U_I's memory, lower end of the interval against `frozen`
GAIN_KEPT = 0.90  # of what `finetune` gains on U_I's next interactions
MOST_TRAINED = 0.30  # of LoRA's parameters
COST_PER_EXAMPLE = 0.60  # of `finetune`'s, where nothing below the upper two thirds trains
COST_OF_ROUND = 0.10  # of `retrain`'s

READING = [
    "NDCG@3 of the blend; differences with their intervals. U leads: EvoRec minus the best other strategy (without",
    "ablations). It leads where the interval is above zero; being level counts where it takes at most half of the",
    "other's seconds, and only a clear loss is decided where one of the others did not run. It is level with another",
    f"where zero is in the interval, which decides nothing where it reaches below {NARROW} (of the gain that is kept:",
    f"what lies above {GAIN_KEPT:.0%} of the other's). The blend beats rules and parts where it does so in every seed;",
    f"of one seed alone a lead below {-NARROW} decides nothing. Seconds per example count where the lowest located",
    "layer is in the upper two thirds, and seconds are held against another's where the same code made both.",
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a goal after one round. `met` is None where what was measured cannot decide it.

    >>> str(Verdict("0.2 of 0.1", met=False))
    '0.2 of 0.1: **missed**'
    """

    text: str
    met: bool | None

    def __str__(self) -> str:
        return self.text if self.met is None else f"{self.text}: {'met' if self.met else '**missed**'}"


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked for, and a verdict per round; None where the goal does not apply to a round."""

    what: str
    rounds: Sequence[Verdict | None]


Judge = Callable[[int], Verdict | None]
"""Of a round, by its number."""


def goals(seeds: Sequence[Results]) -> list[Goal]:
    """Those that these strategies can be held to."""
    names = strategies_of(seeds)
    if EVOREC not in names:
        return []
    judges: dict[str, Judge] = {}
    others = [name for name in names if name in MAIN and name != EVOREC]
    for kind, candidates in itertools.product(KINDS, DRAWN_SETS):
        where = f"`{kind}`, {candidates}"
        if others:
            judges[f"U leads, {where}"] = _leads(seeds, others, kind, candidates)
        if FINETUNE in names:
            judges[f"U_A level with `{FINETUNE}`, {where}"] = _level(seeds, kind, candidates)
        if FROZEN in names and kind == MEMORY:
            judges[f"U_I forgets at most {-MOST_FORGOTTEN:.0%}, {where}"] = _remembers(seeds, names, candidates)
        if {FROZEN, FINETUNE} <= {*names} and kind == NEXT:
            judges[f"U_I keeps {GAIN_KEPT:.0%} of `{FINETUNE}`'s gain, {where}"] = _keeps(seeds, candidates)
        judges[f"the blend beats each rule and part, {where}"] = _blend_wins(seeds, kind, candidates)
    judges[f"at most {MOST_TRAINED:.0%} of LoRA trains"] = _trains(seeds)
    if FINETUNE in names and has_seconds(seeds):
        judges[f"seconds per example at most {COST_PER_EXAMPLE:.0%} of `{FINETUNE}`'s"] = _per_example(seeds)
    if RETRAIN in names and has_seconds(seeds):
        judges[f"seconds at most {COST_OF_ROUND:.0%} of `{RETRAIN}`'s"] = _of_retraining(seeds)
    numbers = range(1, n_rounds(seeds) + 1)
    return [Goal(what, [judge(number) for number in numbers]) for what, judge in judges.items()]


def goals_table(found: Sequence[Goal]) -> list[str]:
    """A row for each goal, a column for each round; nothing where there are no goals."""
    if not found:
        return []
    header = ["goal", *(f"round {number}" for number in range(1, len(found[0].rounds) + 1))]
    rows = [[goal.what, *(str(said or "does not apply") for said in goal.rounds)] for goal in found]
    return ["### Goals", "", *READING, "", *markdown(header, rows, align="---")]


def goals_met(found: Sequence[Goal]) -> str:
    """How many of all verdicts, rounds counted one by one; what cannot be decided is not met.

    >>> goals_met([Goal("a", [Verdict("1", met=True), None]), Goal("b", [Verdict("2", met=False), None])])
    '1 of 2'
    """
    verdicts = [said.met for goal in found for said in goal.rounds if said is not None]
    return f"{verdicts.count(True)} of {len(verdicts)}" if verdicts else NOTHING


def _mean(seeds: Sequence[Results], read: Callable[[Results], float | None]) -> float:
    return float(np.mean(over_seeds(seeds, read)))


def _seconds(seeds: Sequence[Results], number: int, name: str) -> float:
    """Of learning, in one round."""
    return _mean(seeds, lambda one: learning_seconds(_cost(one, number, name)))


def _cost(one: Results, number: int, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = one["rounds"][number - 1]["strategies"][name]["cost"]
    return found


def _leads(seeds: Sequence[Results], others: Sequence[str], kind: str, candidates: str) -> Judge:
    absent = [name for name in MAIN if name not in (*others, EVOREC)]

    def judge(number: int) -> Verdict:
        best = max(others, key=lambda name: mean_figure(seeds, number, name, kind, candidates, "U", FIGURE))
        found = between(seeds, number, EVOREC, best, kind, candidates, "U")
        seconds = _seconds(seeds, number, best) if has_seconds(seeds) else 0.0
        share = _seconds(seeds, number, EVOREC) / seconds if seconds else float("inf")
        cost = f", {share:.2f} of its seconds" if seconds else ""
        said = f"{interval(found)} to `{best}`{cost}"
        if found.high < 0:
            return Verdict(said, met=False)
        if _too_wide(found):
            return Verdict(f"{said}: {TOO_WIDE}", None)
        if found.low <= 0 and not has_seconds(seeds):
            return Verdict(f"{said}: level, at an unknown cost", None)
        if absent:  # the best of them, or one that takes twice the seconds, may be among those
            return Verdict(f"{said}; not run: {', '.join(absent)}", None)
        if found.low > 0:
            return Verdict(said, met=True)
        if not of_like_code(seeds, number, EVOREC, best):
            return Verdict(f"{said}, of other code", None)
        return Verdict(said, share <= COST_WHERE_LEVEL)

    return judge


def _too_wide(found: Difference) -> bool:
    """Whether an interval holds both no loss and one that would count."""
    return found.low < NARROW and found.high >= 0


def _nobody(seeds: Sequence[Results], number: int, kind: str, candidates: str, group: str) -> bool:
    """Whether a group was empty in that round: there is no difference between two means over nobody."""
    return math.isnan(mean_figure(seeds, number, EVOREC, kind, candidates, group, FIGURE))


def _level(seeds: Sequence[Results], kind: str, candidates: str) -> Judge:
    def judge(number: int) -> Verdict | None:
        if _nobody(seeds, number, kind, candidates, "U_A"):
            return None
        found = between(seeds, number, EVOREC, FINETUNE, kind, candidates, "U_A")
        if _too_wide(found):
            return Verdict(f"{interval(found)}: {TOO_WIDE}", None)
        return Verdict(interval(found), found.high >= 0)

    return judge


def _remembers(seeds: Sequence[Results], names: Sequence[str], candidates: str) -> Judge:
    def judge(number: int) -> Verdict | None:
        if _nobody(seeds, number, MEMORY, candidates, "U_I"):
            return None
        known = mean_figure(seeds, number, FROZEN, MEMORY, candidates, "U_I", FIGURE)
        if not known:
            return Verdict(f"`{FROZEN}` finds nothing that could be forgotten", None)

        def lowest(name: str) -> float:
            return between(seeds, number, name, FROZEN, MEMORY, candidates, "U_I").low / known

        found = lowest(EVOREC)
        if math.isinf(found):
            return Verdict(TOO_FEW, None)
        beside = f" (`{FINETUNE}` {lowest(FINETUNE):+.1%})" if FINETUNE in names else ""
        return Verdict(f"{found:+.1%} at the lower end{beside}", found > MOST_FORGOTTEN)

    return judge


def _keeps(seeds: Sequence[Results], candidates: str) -> Judge:
    def judge(number: int) -> Verdict | None:
        if _nobody(seeds, number, NEXT, candidates, "U_I"):
            return None
        ours, theirs = (
            between(seeds, number, name, FROZEN, NEXT, candidates, "U_I").mean for name in (EVOREC, FINETUNE)
        )
        kept = GAIN_KEPT if theirs > 0 else 1.0
        above = {EVOREC: 1.0, FINETUNE: -kept, FROZEN: kept - 1.0}
        said = f"{ours / theirs:.1%}" if theirs > 0 else f"{ours:+.3f}, `{FINETUNE}` {theirs:+.3f}"
        if _too_wide(sum_of(seeds, number, above, NEXT, candidates, "U_I")):
            return Verdict(f"{said}: {TOO_WIDE}", None)
        return Verdict(said, ours >= kept * theirs)

    return judge


def _blend_wins(seeds: Sequence[Results], kind: str, candidates: str) -> Judge:
    def judge(number: int) -> Verdict:
        readers = {rule: rule_figure(number, rule, kind, candidates, FIGURE) for rule in RULES} | {
            part: figure(number, EVOREC, kind, candidates, part, "U", FIGURE) for part in (RETRIEVER, LLM)
        }
        alone = {name: over_seeds(seeds, read) for name, read in readers.items()}
        blend = over_seeds(seeds, figure(number, EVOREC, kind, candidates, BLEND, "U", FIGURE))
        best = max(alone, key=lambda name: np.mean(alone[name]))
        text = f"{np.mean(blend):.3f}, {best} {np.mean(alone[best]):.3f}"
        if len(blend) == 1 and 0 < blend[0] - alone[best][0] < -NARROW:
            return Verdict(f"{text}, of one seed", None)
        if np.mean(blend) <= np.mean(alone[best]):
            return Verdict(text, met=False)
        ahead = sum(all(mine > theirs[seed] for theirs in alone.values()) for seed, mine in enumerate(blend))
        if ahead < len(blend):
            return Verdict(f"{text}, ahead in {ahead} of {len(blend)} seeds", None)
        return Verdict(text, met=True)

    return judge


def _trains(seeds: Sequence[Results]) -> Judge:
    def judge(number: int) -> Verdict:
        most = max(trainable_share(_cost(one, number, EVOREC)) for one in seeds)
        kept = sum(start_kept(one["rounds"][number - 1]["strategies"][EVOREC].get("validation_loss")) for one in seeds)
        said = f", validation kept the parent's in {kept} of {len(seeds)} seeds" if kept else ""
        return Verdict(f"{most:.0%}{said}", most <= MOST_TRAINED + 1e-9)

    return judge


def _per_example(seeds: Sequence[Results]) -> Judge:
    def judge(number: int) -> Verdict | None:
        located = [one for one in seeds if _in_upper_two_thirds(one, number)]

        def examples(name: str) -> float:
            return _mean(located, lambda one: _cost(one, number, name)["examples"])

        def seconds(name: str) -> float:
            return _seconds(located, number, name) / examples(name)

        if not (located and examples(EVOREC) and examples(FINETUNE)):
            return None
        share = seconds(EVOREC) / seconds(FINETUNE)
        return _of_seconds(seeds, number, FINETUNE, share, COST_PER_EXAMPLE)

    return judge


def _in_upper_two_thirds(one: Results, number: int) -> bool:
    layers: Sequence[int] = one["rounds"][number - 1]["strategies"][EVOREC]["location"]["layers"]
    return min(layers) >= first_upper_layer(one["base"]["layers"])


def _of_retraining(seeds: Sequence[Results]) -> Judge:
    def judge(number: int) -> Verdict:
        share = _seconds(seeds, number, EVOREC) / _seconds(seeds, number, RETRAIN)
        return _of_seconds(seeds, number, RETRAIN, share, COST_OF_ROUND)

    return judge


def _of_seconds(seeds: Sequence[Results], number: int, other: str, share: float, most: float) -> Verdict:
    if not of_like_code(seeds, number, EVOREC, other):
        return Verdict(f"{share:.1%}, of other code", None)
    return Verdict(f"{share:.1%}", share <= most)
