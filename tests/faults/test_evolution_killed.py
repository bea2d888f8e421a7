"""Promise 2: the worker is killed at every stage of an evolution, and exactly one version comes of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from shared.artifacts import MANIFEST
from shared.types import EvolutionId
from tests.faults.conftest import Tell
from tests.faults.evolution_line import SHOP, TIMEOUT_S, Line, Missed, open_line

STAGES: Final = ("window", "evaluate before", "locate", "forget", "update", "evaluate")
PUBLISHING: Final = "publish"
BETWEEN: Final = "between artifact and registry"
TRIES: Final = 12  # strikes: a moment of milliseconds may be missed


@pytest.fixture
async def line(tmp_path_factory: pytest.TempPathFactory, rng: random.Random) -> AsyncIterator[Line]:
    async with open_line(tmp_path_factory.mktemp("line"), rng) as line:
        yield line


async def test_a_worker_killed_at_any_stage_makes_exactly_one_version(
    line: Line, full: bool, rng: random.Random, outcome: Tell
) -> None:
    plan = [(rng.choice(("window", "update", "evaluate")), BETWEEN)]
    if full:
        await bootstrap(line)  # it passes some of the stages in no time
        plan = [*zip(STAGES[::2], STAGES[1::2], strict=True), (PUBLISHING, BETWEEN)] * 2
    wanted = sum(map(len, plan))
    struck: Counter[str] = Counter()
    checked = 0
    while plan:
        known = await line.backend.registry.versions(SHOP)
        line.worker.start()
        evolution_id = await line.begun()
        found = await struck_at(line, evolution_id, plan[0], rng)
        checked += await line.check(known, await line.published(evolution_id))
        await asyncio.to_thread(line.worker.kill)
        struck.update(found)
        if set(plan[0]) <= set(found):
            plan.pop(0)
        assert struck.total() < wanted + TRIES, f"never struck at {plan[0]}: {struck}"
        await line.interact()

    outcome(
        2,
        "a worker killed at any stage, twice in a run, leaves what the next one finishes: one version, no trace",
        faults={f"worker killed: {point}": times for point, times in struck.items()},
        cases=checked,
    )


async def bootstrap(line: Line) -> None:
    line.worker.start()
    await line.published(await line.begun())
    await asyncio.to_thread(line.worker.kill)
    await line.interact()


async def struck_at(line: Line, evolution_id: EvolutionId, points: Sequence[str], rng: random.Random) -> list[str]:
    """Kill the run's worker at each point and start a new one; where it was struck, as what it left tells."""
    struck = []
    for point in points:
        try:
            await kill_at(line, evolution_id, point, rng.uniform(0.0, 0.4))
        except Missed:
            break
        found = await where_it_was(line, evolution_id)
        line.worker.start()
        if found is None:
            break
        struck.append(found)
        if found not in (*STAGES, PUBLISHING):
            break  # the next attempt has nothing left to do that could be struck
    return struck


async def kill_at(line: Line, evolution_id: EvolutionId, point: str, later_s: float) -> None:
    """Kill the worker at the point (in a stage: some time after its beginning); no process of it may be left."""
    if point in STAGES:
        await line.reach(evolution_id, point)
        await asyncio.sleep(later_s)
        await asyncio.to_thread(line.worker.kill)
        return
    await line.reach(evolution_id, STAGES[-1])
    known = set(line.backend.artifacts.names(SHOP))
    children = line.worker.children()

    def there() -> bool:
        return bool(line.staged()) if point == PUBLISHING else complete(line.folder) > known

    await asyncio.to_thread(kill_once, there, lambda: line.worker.kill(children))


def kill_once(there: Callable[[], bool], kill: Callable[[], None]) -> None:
    """Watch without a pause: publishing takes milliseconds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not there():
        assert time.monotonic() < deadline, "the run never came to its publication"
    kill()


def complete(folder: Path) -> set[str]:
    """The versions that can be seen, staged ones aside."""
    found = folder.glob(f"{SHOP}-*/{MANIFEST}")
    return {path.parent.name for path in found}


async def where_it_was(line: Line, evolution_id: EvolutionId) -> str | None:
    """Where the killed run was, as what it left tells; None where it had ended before."""
    record = await line.backend.evolutions.get(evolution_id)
    if record.status.final:
        return None
    registered = {manifest.name for manifest in await line.backend.registry.versions(SHOP)}
    if set(line.backend.artifacts.names(SHOP)) - registered:
        return BETWEEN
    if any(manifest.evolution_id == evolution_id for manifest in await line.backend.registry.versions(SHOP)):
        return "between registry and record"
    return PUBLISHING if line.staged() else record.stage
