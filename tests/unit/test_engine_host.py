"""An engine that dies or hangs is replaced; one that is slow, or cannot answer a check, is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from service.engine_host import EngineHost, EngineState
from service.ports import RankingEngine
from shared.config import Settings
from tests.conftest import make_settings
from tests.fake_engine import FakeEngine

SILENT_S = 0.2


class World:
    """A host that runs, and the engines that it has started."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.host = EngineHost(self._start, make_settings().model_copy(update={"engine_silent_s": SILENT_S}))

    async def _start(self, _: Settings) -> RankingEngine:
        self.engines.append(FakeEngine(100, 100))
        return self.engines[-1]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("service.engine_host.WATCH_S", 0.02)
    monkeypatch.setattr("service.engine_host.FIRST_RETRY_S", 0.01)
    world = World()
    running = asyncio.create_task(world.host.run())
    await world.until(lambda: world.host.current is not None)
    yield world
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.host.close()


async def test_an_engine_that_answers_nothing_is_closed_and_replaced(world: World) -> None:
    said: list[tuple[EngineState, str | None]] = []
    world.host.on_change(lambda: said.append((world.host.state, world.host.error)))
    world.engines[0].gate = asyncio.Event()
    await world.until(lambda: world.host.generation == 2)
    assert not world.engines[0].alive
    assert world.host.current is world.engines[1]
    assert said[0] == (EngineState.failed, f"the engine answered nothing for {SILENT_S} s")


async def test_an_engine_that_died_is_replaced(world: World) -> None:
    world.engines[0].die()
    await world.until(lambda: world.host.generation == 2)
    assert world.host.current is world.engines[1]


async def test_an_engine_that_is_slow_or_fails_a_check_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = 0

    async def check() -> None:
        nonlocal checks
        checks += 1
        await asyncio.sleep(SILENT_S / 4)
        if checks % 2:
            raise RuntimeError("vLLM has no such call")

    monkeypatch.setattr(world.engines[0], "check", check)
    await world.until(lambda: checks == 6)
    assert world.host.generation == 1
    assert world.host.current is world.engines[0]


async def test_an_engine_that_cannot_be_closed_keeps_no_other_from_starting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def close() -> None:
        raise RuntimeError("vLLM does not shut down")

    monkeypatch.setattr(world.engines[0], "close", close)
    world.engines[0].die()
    await world.until(lambda: world.host.generation == 2)
    assert world.host.current is world.engines[1]
