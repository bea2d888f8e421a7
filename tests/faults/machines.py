"""What the state machines of the fault tests share: an event loop each, a real Redis, and counts of what they did."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import ClassVar, TypeVar

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from redis.asyncio import Redis

from shared.config import Settings
from shared.redis_client import connect

T = TypeVar("T")


class RedisMachine(RuleBasedStateMachine):
    """`settings`, `folder` and `done` are set on a subclass by `explore`; Redis is empty when an example begins."""

    settings: ClassVar[Settings]
    folder: ClassVar[Path]
    done: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self.client: Redis = connect(self.settings)
        self.run(self.client.flushdb())
        self.done["examples"] += 1

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self._runner.run(wait())

    def teardown(self) -> None:
        self.run(self.client.aclose())
        self._runner.close()


def explore(machine: type[RedisMachine], settings: Settings, folder: Path, *, full: bool) -> Counter[str]:
    """Runs the machine, seeded, and returns how often it did what."""
    done: Counter[str] = Counter()
    bound = type(machine.__name__, (machine,), {"settings": settings, "folder": folder, "done": done})
    run_state_machine_as_test(
        bound,
        settings=hypothesis_settings(
            max_examples=120 if full else 12,
            stateful_step_count=50 if full else 30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return done
