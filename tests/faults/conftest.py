"""Fixtures of the fault tests. FAULTS=full (`make faults`) runs them at full size and writes their outcomes down; with
FAULTS_RECORD set, the short form does so as well where no full one has been.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import pytest

from tests.faults.results import Outcome, save

SEED = 20261124


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the suite runs at full size; otherwise in the short, seeded form of `make test`."""
    size = os.environ.get("FAULTS", "short")
    if size not in ("short", "full"):
        pytest.fail(f"FAULTS={size!r} must be short or full")
    return size == "full"


@pytest.fixture
def rng() -> random.Random:
    """When and where faults strike: the same for every run of a test."""
    return random.Random(SEED)


class Tell(Protocol):
    def __call__(self, promise: int, what: str, *, faults: Mapping[str, int], cases: int, lost: int = 0) -> None:
        """Note what was tried, fail where anything was lost or nothing was tried."""


@pytest.fixture
def outcome(request: pytest.FixtureRequest, full: bool, record_property: Callable[[str, object], None]) -> Tell:
    """To be called last in a test, once its assertions hold."""
    started = time.monotonic()

    def tell(promise: int, what: str, *, faults: Mapping[str, int], cases: int, lost: int = 0) -> None:
        seconds, size = round(time.monotonic() - started, 1), "full" if full else "short"
        found = Outcome(promise, what, dict(faults), cases, lost, seconds, size)
        record_property("outcome", found)
        assert cases > 0, "a fault test that checked nothing says nothing"
        assert lost == 0, f"{what}: {lost} of {cases} lost"
        if full or "FAULTS_RECORD" in os.environ:
            save(request.node.nodeid, found)

    return tell
