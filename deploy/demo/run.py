"""The demo's story: a store opens, its first period teaches version 1, tastes drift, the next version follows them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.client import Recommendation, ServiceClient
from deploy.demo.memory import PeakMemory
from deploy.demo.report import SHOWN, DemoReport, Shown
from deploy.demo.state import DOMAIN, DemoState
from deploy.demo.trial import HitRates, Trial, ask, hit_rates, panel_trials
from deploy.following import EvolutionFailed, follow, require_finished
from deploy.loading import load_interactions, load_items
from deploy.local.stack import service_ready, start_processes, start_redis
from deploy.local.supervisor import LineSink, Supervisor
from deploy.output import counting_progress
from evolver.stores import Store
from shared.errors import EvorecError
from shared.evolutions import Evolution
from shared.types import AdapterName, Interaction, UserId

_START_TIMEOUT_S = 900.0
_SWAP_TIMEOUT_S = 60.0
_TRAFFIC_INTERVAL_S = 1.0


@dataclass(slots=True)
class _Clock:
    """Seconds of each stage, in the order in which they ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 2)


@dataclass(slots=True)
class _Traffic:
    """What recommendations saw while the evolution ran."""

    answered: int = 0
    failed: int = 0


async def run_demo(state: DemoState, store: Store, console: Console) -> DemoReport:
    """Starts the stack on a fresh state, tells the story, and stops everything again."""
    began = time.monotonic()
    clock = _Clock()
    with contextlib.ExitStack() as files:
        async with PeakMemory().sampling() as memory, Supervisor(_log_files(state, files)) as supervisor:
            with clock.stage("start: Redis, worker, service"), _pulse(console, "Starting Redis, worker and service"):
                await start_redis(supervisor, state.settings, state.env, state.folder)
                await start_processes(supervisor, state.env, state.folder)
                await supervisor.guard(service_ready(state.url, timeout_s=_START_TIMEOUT_S))
            async with ServiceClient(state.url) as client:
                story = await supervisor.guard(_Story(client, store, state, console, clock).tell())
            with clock.stage("stop"), _pulse(console, "Stopping"):
                await supervisor.stop()
    return DemoReport(
        bootstrap=story.bootstrap,
        evolution=story.evolution,
        shown=story.shown,
        before=story.before,
        after=story.after,
        requests_meanwhile=story.traffic.answered,
        failures_meanwhile=story.traffic.failed,
        stage_seconds=clock.seconds,
        total_seconds=round(time.monotonic() - began, 1),
        peak_pss_bytes=memory.peak_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Told:
    bootstrap: Evolution
    evolution: Evolution
    shown: tuple[Shown, ...]
    before: dict[str, HitRates]
    after: dict[str, HitRates]
    traffic: _Traffic


@dataclass(frozen=True, slots=True)
class _Story:
    client: ServiceClient
    store: Store
    state: DemoState
    console: Console
    clock: _Clock

    async def tell(self) -> _Told:
        with self.clock.stage("load the store and its first period"):
            await self._load("Catalog and first period", self.store.first_period, with_items=True)
        with self.clock.stage("bootstrap version 1"):
            bootstrap = await self._evolve("Bootstrap")
        users = cast_of(self.store)
        with self.clock.stage("recommendations before"):
            earlier = [await self._recommend(user) for user in users.values()]
        with self.clock.stage("stream the second period"):
            await self._load("Second period", self.store.second_period)
        trials = panel_trials(self.store, self.state.settings.panel_share, self.state.settings.seed)
        with self.clock.stage("panel before"):
            before = await self._measure("Panel, before", trials)
        with self.clock.stage("evolution"):
            async with self._traffic(tuple(users.values())) as traffic:
                evolution = await self._evolve("Evolution")
        with self.clock.stage("panel and recommendations after"):
            after = await self._measure("Panel, after", trials)
            shown = [
                await self._show(kind, user, old) for (kind, user), old in zip(users.items(), earlier, strict=True)
            ]
        return _Told(bootstrap, evolution, tuple(shown), before, after, traffic)

    async def _load(self, label: str, events: Sequence[Interaction], with_items: bool = False) -> None:
        items = self.store.items if with_items else ()
        with counting_progress(self.console) as progress:
            bar = progress.add_task(label, total=len(items) + len(events))
            put = await load_items(self.client, DOMAIN, items, lambda n: progress.advance(bar, n))
            sent = await load_interactions(self.client, DOMAIN, events, lambda n: progress.advance(bar, n))
        if put.rejected or sent.rejected:
            raise EvorecError(
                f"the service rejected rows of the demo store: {(put.first_rejected, sent.first_rejected)}"
            )

    async def _evolve(self, label: str) -> Evolution:
        """Returns once the service answers with the new version."""
        evolution_id = await self.client.evolve(DOMAIN, force=True)
        evolution = require_finished(await follow(self.client, evolution_id, self.console, label))
        if evolution.adapter is not None:
            with _pulse(self.console, f"{label}: the service takes {evolution.adapter}"):
                await self._answered_by(evolution.adapter)
        return evolution

    async def _answered_by(self, adapter: AdapterName) -> None:
        user = next(iter(self.store.future))
        deadline = time.monotonic() + _SWAP_TIMEOUT_S
        while (answer := await self.client.recommend(DOMAIN, user, count=1)).adapter != adapter:
            if time.monotonic() > deadline:
                raise EvolutionFailed(
                    f"{adapter} is published, but {answer.adapter} still answers (see {self.state.logs})"
                )
            await asyncio.sleep(0.2)

    async def _measure(self, label: str, trials: Sequence[Trial]) -> dict[str, HitRates]:
        with counting_progress(self.console) as progress:
            bar = progress.add_task(label, total=len(trials))
            return hit_rates(trials, await ask(self.client, DOMAIN, trials, lambda: progress.advance(bar)))

    async def _recommend(self, user: UserId) -> Recommendation:
        return await self.client.recommend(DOMAIN, user, count=SHOWN)

    async def _show(self, kind: str, user: UserId, before: Recommendation) -> Shown:
        forgotten = await self.client.forgotten_events(DOMAIN, user)
        after = await self._recommend(user)
        return Shown(user, kind, before, after, len(forgotten), len(forgotten & self.store.outdated))

    @contextlib.asynccontextmanager
    async def _traffic(self, users: Sequence[UserId]) -> AsyncIterator[_Traffic]:
        """Recommendations go on while the evolution runs and the adapters are swapped."""
        seen = _Traffic()

        async def ask_again_and_again() -> None:
            while True:
                for user in users:
                    try:
                        answer = await self._recommend(user)
                        seen.answered += answer.adapter is not None
                        seen.failed += answer.adapter is None
                    except EvorecError:
                        seen.failed += 1
                    await asyncio.sleep(_TRAFFIC_INTERVAL_S)

        task = asyncio.create_task(ask_again_and_again())
        try:
            yield seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def cast_of(store: Store) -> dict[str, UserId]:
    """Kind -> the user who is shown: of each kind the one with most purchases in the second period (ties: by id)."""
    purchases: dict[UserId, int] = {}
    for event in store.second_period:
        purchases[event.user_id] = purchases.get(event.user_id, 0) + 1
    ranked = sorted(purchases, key=lambda user: (-purchases[user], user))
    kinds = {"drifting": store.drifting, "steady": store.steady}
    return {kind: next(user for user in ranked if user in members) for kind, members in kinds.items()}


@contextlib.contextmanager
def _pulse(console: Console, label: str) -> Iterator[None]:
    """A bar for work that cannot say how far it is."""
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(label, total=None)
        yield
        progress.update(task, total=1, completed=1)


def _log_files(state: DemoState, files: contextlib.ExitStack) -> LineSink:
    """One log file per process; closed with `files`."""
    opened: dict[str, TextIO] = {}

    def sink(name: str, line: str) -> None:
        if name not in opened:
            log = (state.logs / f"{name}.log").open("w", buffering=1, encoding="utf-8")
            opened[name] = files.enter_context(log)
        opened[name].write(line + "\n")

    return sink
