"""Fixtures of the evolver's tests; a test module asks for them by `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from evolver.backend import Backend
from shared.config import Settings
from tests.integration.evolver_support import WorkerProcess, base_model_stub


@pytest.fixture
def evolver_settings(redis_settings: Settings, tmp_path: Path) -> Settings:
    """Short leases and ticks; triggers that a handful of events fires; a base model that can only be hashed."""
    return redis_settings.model_copy(
        update={
            "base_model": str(base_model_stub(tmp_path / "base")),
            "lease_s": 2,
            "trigger_tick_s": 0.2,
            "evolve_min_interactions": 10,
            "panel_share": 0.2,
        }
    )


@pytest.fixture
async def backend(redis: Redis, evolver_settings: Settings) -> Backend:
    """The stores, over an empty Redis and an empty artifact store."""
    return Backend.over(redis, evolver_settings)


@pytest.fixture
def worker(evolver_settings: Settings) -> Iterator[WorkerProcess]:
    """A worker process, not started yet; killed with all its children at the end."""
    process = WorkerProcess(evolver_settings)
    yield process
    process.kill()
