"""The Celery task: loads nothing itself, decides nothing itself, delegates."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog
from celery import Celery
from celery.exceptions import InvalidTaskError
from celery.worker.request import Request

from evolver import upkeep
from evolver.attempt import Surroundings
from evolver.backend import open_backend
from evolver.evolve import evolve
from evolver.trigger import Enqueue
from evolver.upkeep import EnqueueUpkeep
from shared.config import Settings
from shared.domains import validate_domain
from shared.errors import NotFound
from shared.evolutions import EVOLVE_TASK
from shared.types import DomainId, EvolutionId

log = structlog.get_logger(__name__)

UPKEEP_TASK: Final = "evolver.upkeep"
"""Argument: domain."""


class CheckedRequest(Request):  # type: ignore[misc]  # celery is not annotated
    """A message whose body is JSON of another shape is discarded; Celery's own request would end the worker, which
    would get the message again."""

    def __init__(self, message: Any, **options: Any) -> None:
        try:
            super().__init__(message, **options)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidTaskError(f"not a task's arguments: {error!r}") from error


def register(app: Celery, settings: Settings, surroundings: Surroundings) -> None:
    """Add the tasks to the app."""

    @app.task(name=EVOLVE_TASK, Request=CheckedRequest, shared=False)  # type: ignore[untyped-decorator]
    def evolve_task(evolution_id: str, domain: str) -> None:
        # Delivered twice, or again after a crash: `evolve` does nothing for a run that is finished or held elsewhere.
        structlog.contextvars.bind_contextvars(evolution_id=evolution_id, domain=domain)
        try:
            asyncio.run(evolve(settings, EvolutionId(evolution_id), validate_domain(domain), surroundings))
        except NotFound as error:
            log.warning("evolution_unknown", error=str(error))
        finally:
            structlog.contextvars.clear_contextvars()

    @app.task(name=UPKEEP_TASK, Request=CheckedRequest, shared=False)  # type: ignore[untyped-decorator]
    def upkeep_task(domain: str) -> None:
        asyncio.run(_upkeep(settings, validate_domain(domain)))


async def _upkeep(settings: Settings, domain: DomainId) -> None:
    async with open_backend(settings) as backend:
        await upkeep.from_queue(backend, domain)


def enqueuer(app: Celery) -> Enqueue:
    """Puts evolutions into the queue of the app's broker."""

    def enqueue(evolution_id: EvolutionId, domain: DomainId) -> None:
        app.send_task(EVOLVE_TASK, args=[evolution_id, domain], retry=False)

    return enqueue


def upkeep_enqueuer(app: Celery) -> EnqueueUpkeep:
    """Puts upkeeps into the queue of the app's broker."""

    def enqueue(domain: DomainId) -> None:
        app.send_task(UPKEEP_TASK, args=[domain], retry=False)

    return enqueue
