"""The stages of a run: timed, reported, and where a run can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from evolver.inputs import Cancelled, Progress, ShouldStop


class Stages:
    """Times the stages by a clock, reports their progress and notices cancellation; `seconds` by stage."""

    def __init__(
        self,
        progress: Progress,
        should_stop: ShouldStop = lambda: False,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._should_stop, self._clock = progress, should_stop, clock
        self._name = ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything inside counts as this stage."""
        self._name, started = name, self._clock()
        self.report(0.0)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - started

    def report(self, share: float) -> None:
        """Done share of the current stage, 0..1; raises `Cancelled` if the run should stop."""
        if self._should_stop():
            raise Cancelled
        self._progress(self._name, share)
