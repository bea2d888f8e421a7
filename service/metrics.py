"""The Prometheus metrics of the service, named once. (The worker's are `evolver.figures`.)

Label values stay few: no user, item or request id is ever one.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import exposition as _exposition

CONTENT_TYPE = _exposition.CONTENT_TYPE_LATEST

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_STAGE_S = (0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Metrics:
    """Made once per process and handed to whoever counts; its own registry keeps tests and processes apart."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        self.http_requests = Counter(
            "evorec_http_requests", "HTTP requests", ("method", "route", "status"), registry=registry
        )
        self.rate_limited = Counter(
            "evorec_rate_limited",
            "Requests beyond EVOREC_RATE_LIMIT; `key`: its name, none (no keys configured), unknown (strangers)",
            ("key",),
            registry=registry,
        )
        self.http_seconds = Histogram(
            "evorec_http_request_seconds", "HTTP latency", ("method", "route"), buckets=_REQUEST_S, registry=registry
        )
        self.recommendations = Counter(
            "evorec_recommendations",
            "Recommendations; `degraded` is empty or the reason",
            ("domain", "adapter", "degraded"),
            registry=registry,
        )
        self.recommend_stage_seconds = Histogram(
            "evorec_recommend_stage_seconds",
            "Time of a recommendation's stages (history, retrieve, prompt, rank)",
            ("stage",),
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.prompt_tokens = Gauge(
            "evorec_engine_prompt_tokens", "Prompt tokens ranked by the engine since it started", registry=registry
        )
        self.cached_prompt_tokens = Gauge(
            "evorec_engine_cached_prompt_tokens", "Of those, tokens that its prefix cache had", registry=registry
        )
        self.store_available = Gauge(
            "evorec_store_available", "1 while requests can read the data store, else 0", registry=registry
        )
        self.rankings_running = Gauge("evorec_rankings_running", "Rankings in the engine", registry=registry)
        self.interactions = Counter(
            "evorec_interactions",
            "Interactions received; `outcome`: accepted, duplicate, rejected",
            ("domain", "outcome"),
            registry=registry,
        )
        self.adapter_loaded = Gauge(
            "evorec_adapter_loaded", "1 while the engine holds the adapter", ("domain", "adapter"), registry=registry
        )
        self.adapter_swaps = Counter(
            "evorec_adapter_swaps",
            "Changes of champion; `outcome`: ok, failed",
            ("domain", "outcome"),
            registry=registry,
        )
        self.adapter_refusals = Counter(
            "evorec_adapter_refusals",
            "Adapter versions not served; `cause`: the kind of error; log and GET /admin/adapters have its text",
            ("domain", "cause"),
            registry=registry,
        )
        self.adapter_swap_seconds = Histogram(
            "evorec_adapter_swap_seconds",
            "From noticing a new champion to answering with it",
            buckets=_STAGE_S,
            registry=registry,
        )

    def render(self) -> bytes:
        """The exposition text of `GET /metrics`."""
        return generate_latest(self.registry)
