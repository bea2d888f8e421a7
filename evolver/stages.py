"""The stages of a run: timed, reported, and where a run can be stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from evolver.inputs import Cancelled, Progress, ShouldStop


class Stages:
    """Times the stages, reports their progress and notices cancellation; `seconds` by stage."""

    def __init__(self, progress: Progress, should_stop: ShouldStop = lambda: False) -> None:
        self._progress, self._should_stop = progress, should_stop
        self._name = ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything inside counts as this stage."""
        self._name, started = name, time.monotonic()
        self.report(0.0)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def report(self, share: float) -> None:
        """Done share of the current stage, 0..1; raises `Cancelled` if the run should stop."""
        if self._should_stop():
            raise Cancelled
        self._progress(self._name, share)
