"""Champion changes as the metrics show them: how many succeeded or failed in this process, and how long they took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.metrics import Metrics
from shared.types import AdapterName, DomainId


@dataclass(slots=True)
class _Change:
    """Another champion is wanted than before. `noticed`: when; `failed`: it was refused, and is tried again."""

    noticed: float
    failed: bool = False


class ChampionChanges:
    """A change fails once, however often its champion is tried, and may still succeed; ancestors are no change."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._pending: dict[DomainId, _Change] = {}

    def wanted(self, domain: DomainId) -> None:
        """The registry names another champion than before."""
        self._pending[domain] = _Change(noticed=self._clock())

    def flipped(
        self, domain: DomainId, *, before: AdapterName | None, answering: AdapterName | None, wanted: AdapterName | None
    ) -> None:
        """Requests have been moved: from the champion `before` to `answering`, where `wanted` was asked for."""
        change = self._pending.get(domain)
        if change is None:
            return
        if answering != wanted:
            if not change.failed:
                change.failed = True
                self._metrics.adapter_swaps.labels(domain, "failed").inc()
            return
        del self._pending[domain]
        if answering is not None and answering != before:
            self._metrics.adapter_swaps.labels(domain, "ok").inc()
            self._metrics.adapter_swap_seconds.observe(self._clock() - change.noticed)
