"""The worker's figures for Prometheus, read from Redis with each tick: runs happen in children that end with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from evolver.backend import Backend
from shared.config import Settings
from shared.errors import Unavailable
from shared.evolutions import Evolution, EvolutionStatus
from shared.telemetry import described
from shared.types import DomainId

log = structlog.get_logger(__name__)

LOOKED_AT = 100  # newest runs of a domain
COUNTED = 100_000


class Figures:
    """One registry for all domains; every worker tells the same."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._told: dict[tuple[Gauge, DomainId], frozenset[tuple[str, ...]]] = {}

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"evorec_{name}", what, ("domain", *labels), registry=registry)

        self.evolutions = gauge("evolutions", f"Of the newest {LOOKED_AT} runs, those with this status", "status")
        self.running = gauge("evolution_running", "1 while an evolution is queued or runs")
        self.pending = gauge("pending_interactions", f"Interactions no run has considered yet, at most {COUNTED:,}")
        self.dead_letters = gauge("dead_letters", "Dead letters that are kept")
        self.published_at = gauge("last_published_timestamp_seconds", "When the champion was made")
        self.stage_seconds = gauge("champion_stage_seconds", "Time of the stages of the champion's evolution", "stage")
        self.forgotten_share = gauge("champion_forgotten_share", "Share of interactions that its evolution forgot")
        self.hit_rate = gauge(
            "champion_panel_hit_rate", "HR@1 of its evolution's panel: before, after; U_A, U_I, U", "moment", "group"
        )

    def serve(self, settings: Settings) -> None:
        """In a thread of its own; nothing where no port is set. Unavailable where it cannot be listened on."""
        host, port = settings.worker_metrics_host, settings.worker_metrics_port
        if port is None:
            return
        try:
            start_http_server(port, host, self.registry)
        except OSError as error:
            raise Unavailable(
                f"the worker cannot serve its figures on port {port} (EVOREC_WORKER_METRICS_PORT) of {host}: "
                f"{error.strerror}; end what listens there, or set another port for this worker, or none"
            ) from error
        log.info("metrics_served", host=host, port=port)

    async def read(self, backend: Backend) -> None:
        """Every domain anew, where anybody can ask; one that cannot be read keeps its figures."""
        if backend.settings.worker_metrics_port is None:
            return
        for domain in await backend.catalog.domains():
            try:
                await self._read(backend, domain)
            except Exception as error:
                log.warning("figures_not_read", domain=domain, error=described(error))

    async def _read(self, backend: Backend, domain: DomainId) -> None:
        runs = await backend.evolutions.list(domain, LOOKED_AT)
        for status, n in _by_status(runs).items():
            self.evolutions.labels(domain, status).set(n)
        self.running.labels(domain).set(any(not run.status.final for run in runs))
        considered = await backend.registry.considered(domain)
        self.pending.labels(domain).set(await backend.log.count(domain, considered, at_most=COUNTED))
        self.dead_letters.labels(domain).set(await backend.dead_letters.count(domain))
        champion = await backend.registry.champion(domain)
        if champion is None:
            return
        manifest = await backend.registry.manifest(domain, champion)
        self.published_at.labels(domain).set(manifest.created_at.timestamp())
        self.forgotten_share.labels(domain).set(manifest.forgotten_share)
        self._of_champion(self.stage_seconds, domain, {(stage,): s for stage, s in manifest.stage_seconds.items()})
        rates: dict[tuple[str, ...], float] = {
            (moment, group): values["hr@1"]
            for moment, groups in manifest.metrics.items()
            for group, values in groups.items()
            if values.get("n") and "hr@1" in values  # of nobody the rate would be 0
        }
        self._of_champion(self.hit_rate, domain, rates)

    def _of_champion(self, gauge: Gauge, domain: DomainId, values: Mapping[tuple[str, ...], float]) -> None:
        """Nothing of an earlier champion stays: nobody may have been asked in a group."""
        for labels in self._told.get((gauge, domain), frozenset()) - values.keys():
            gauge.remove(domain, *labels)
        for labels, value in values.items():
            gauge.labels(domain, *labels).set(value)
        self._told[gauge, domain] = frozenset(values)


def _by_status(runs: Sequence[Evolution]) -> dict[str, int]:
    return {status: sum(run.status is status for run in runs) for status in EvolutionStatus}
