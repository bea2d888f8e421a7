"""Hit rates of the panel over HTTP: the item that a user really took next, ranked among 19 that they did not take."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploy.client import Recommendation, ServiceClient
from evolver.stores import Store
from shared.panel import in_panel
from shared.types import DomainId, ItemId, UserId

N_CANDIDATES = 20
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """One question to the service: which of `candidates` does the user take? `target` is the answer of the future."""

    user: UserId
    target: ItemId
    candidates: tuple[ItemId, ...]
    active: bool  # has interactions in the second period (U_A), or not (U_I)


@dataclass(frozen=True, slots=True)
class HitRates:
    """Shares of trials whose target came first, and among the first three."""

    n: int
    hr1: float
    hr3: float


def panel_trials(store: Store, panel_share: float, seed: int) -> tuple[Trial, ...]:
    """The same trials for every version that is compared: users and draws depend on store and seed alone."""
    own: dict[UserId, set[ItemId]] = {}
    for event in (*store.first_period, *store.second_period):
        own.setdefault(event.user_id, set()).add(event.item_id)
    active = {event.user_id for event in store.second_period}
    catalog = sorted(item.item_id for item in store.items)
    trials = []
    for user in sorted(own):
        target = store.future.get(user)
        if target is None or not in_panel(user, panel_share):
            continue
        rng = random.Random(f"{seed}:{user}")
        others = rng.sample([item for item in catalog if item not in own[user] and item != target], N_CANDIDATES - 1)
        trials.append(Trial(user, target, tuple(rng.sample([target, *others], N_CANDIDATES)), user in active))
    return tuple(trials)


def rank_of(target: ItemId, answer: Recommendation) -> int:
    """1 is best. Equal scores count against the target; an answer without it ranks it behind everything.

    >>> from deploy.client import Recommended
    >>> items = (Recommended(ItemId("a"), 0.4, ""), Recommended(ItemId("b"), 0.4, ""))
    >>> rank_of(ItemId("a"), Recommendation(items, None, False))
    2
    """
    scores = {item.item_id: item.score for item in answer.items}
    if target not in scores:
        return len(scores) + 1
    return sum(score >= scores[target] for score in scores.values())


def hit_rates(trials: Sequence[Trial], ranks: Sequence[int]) -> dict[str, HitRates]:
    """Per group: U_A, U_I and U (both)."""
    groups: Mapping[str, Callable[[Trial], bool]] = {
        "U_A": lambda trial: trial.active,
        "U_I": lambda trial: not trial.active,
        "U": lambda trial: True,
    }
    return {
        name: _rates([rank for trial, rank in zip(trials, ranks, strict=True) if belongs(trial)])
        for name, belongs in groups.items()
    }


async def ask(
    client: ServiceClient, domain: DomainId, trials: Sequence[Trial], done: Callable[[], object]
) -> list[int]:
    """The rank of every trial's target under the serving version; `done()` after each. Raises what the first one that
    failed did.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def rank(trial: Trial) -> int:
        async with slots:
            answer = await client.recommend(domain, trial.user, count=N_CANDIDATES, candidates=trial.candidates)
        done()
        return rank_of(trial.target, answer)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rank(trial)) for trial in trials]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]


def _rates(ranks: Sequence[int]) -> HitRates:
    n = len(ranks)
    if n == 0:
        return HitRates(0, 0.0, 0.0)
    return HitRates(n, sum(rank == 1 for rank in ranks) / n, sum(rank <= 3 for rank in ranks) / n)
