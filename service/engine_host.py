"""Keeps one ranking engine running: builds it off the request path, and builds another when it dies or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

import structlog

from service.ports import EngineFactory, PromptTokens, RankingEngine
from shared.config import Settings

log = structlog.get_logger(__name__)

WATCH_S = 0.5
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
CHECKS_IN_SILENCE = 6  # checks that an engine gets in the time that it may be silent


class EngineState(StrEnum):
    starting = "starting"
    running = "running"
    failed = "failed"
    closed = "closed"


class EngineHost:
    """`current` is the engine to use now, None while there is none. `generation` counts the engines so far."""

    def __init__(self, factory: EngineFactory, settings: Settings) -> None:
        self._factory = factory
        self._settings = settings
        self._engine: RankingEngine | None = None
        self._listeners: list[Callable[[], None]] = []
        self.generation = 0
        self.state = EngineState.starting
        self.error: str | None = None

    @property
    def current(self) -> RankingEngine | None:
        return self._engine if self._engine is not None and self._engine.alive else None

    @property
    def prompt_tokens(self) -> PromptTokens:
        """Of the engine that runs now."""
        return self._engine.prompt_tokens if self._engine is not None else PromptTokens()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever an engine has come or gone."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Until cancelled. Every failure doubles the pause before the next engine; an engine that lived resets it."""
        retry_s = FIRST_RETRY_S
        while True:
            if await self._start():
                retry_s = FIRST_RETRY_S
                await self._watch()
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    async def _start(self) -> bool:
        self._become(EngineState.starting)
        try:
            self._engine = await self._factory(self._settings)
        except Exception as error:
            self.error = str(error)
            log.error("engine_failed_to_start", error=self.error)
            self._become(EngineState.failed)
            return False
        self.generation += 1
        self.error = None
        log.info("engine_running", generation=self.generation, base_model=self._settings.base_model)
        self._become(EngineState.running)
        return True

    async def _watch(self) -> None:
        """Returns once the engine has died or hangs, and its remains are cleared away."""
        engine = self._engine
        if engine is None:
            return
        hanging = asyncio.create_task(self._until_silent(engine), name="engine-checks")
        try:
            while engine.alive and not hanging.done():  # noqa: ASYNC110 - vLLM tells its death by a flag alone
                await asyncio.sleep(WATCH_S)
        finally:
            hanging.cancel()
        self._engine = None
        self.error = "the engine died"
        if engine.alive:
            self.error = f"the engine answered nothing for {self._settings.engine_silent_s:g} s"
        log.error("engine_lost", generation=self.generation, reason=self.error)
        self._become(EngineState.failed)
        try:
            await engine.close()
        except Exception as error:  # its remains must not keep the next one from starting
            log.error("engine_not_closed", generation=self.generation, error=repr(error))

    async def _until_silent(self, engine: RankingEngine) -> None:
        """Returns once the engine has left a check unanswered for too long."""
        looks = round(self._settings.engine_silent_s / WATCH_S)
        while True:
            check = asyncio.create_task(engine.check())
            try:
                # Counted, not timed: all processes may have been stopped together, a machine that slept.
                for _ in range(looks):
                    await asyncio.wait([check], timeout=WATCH_S)
                    if check.done():
                        break
                else:
                    return
            finally:
                check.cancel()
            if check.exception() is not None:  # an answer as well; whether it has died is asked elsewhere
                log.debug("engine_check_failed", error=repr(check.exception()))
            await asyncio.sleep(self._settings.engine_silent_s / CHECKS_IN_SILENCE)

    def _become(self, state: EngineState) -> None:
        self.state = state
        for listener in self._listeners:
            listener()

    async def close(self) -> None:
        """After `run` has been cancelled."""
        engine, self._engine = self._engine, None
        self._become(EngineState.closed)
        if engine is not None:
            await engine.close()
