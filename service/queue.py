"""Hands evolutions to the workers, through Celery's broker. The service knows the task by its name alone."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from celery import Celery

from shared.config import Settings
from shared.errors import Unavailable
from shared.evolutions import EVOLVE_TASK
from shared.redis_urls import broker_url, task_queue
from shared.types import DomainId, EvolutionId


class EvolutionQueue(Protocol):
    async def enqueue(self, evolution_id: EvolutionId, domain: DomainId) -> None:
        """Unavailable where the broker cannot be reached."""


class CeleryQueue:
    """JSON messages only; results live in the evolution's record, not in Celery."""

    def __init__(self, settings: Settings) -> None:
        self._app = Celery("evorec-service", broker=broker_url(settings), set_as_current=False)
        self._app.conf.update(
            task_serializer="json",
            task_default_queue=task_queue(settings),
            accept_content=["json"],
            task_ignore_result=True,
            # A caller waits for the answer: say within seconds that the broker is away.
            broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 5, "max_retries": 1},
            broker_connection_timeout=2,
        )

    async def enqueue(self, evolution_id: EvolutionId, domain: DomainId) -> None:
        try:
            await asyncio.to_thread(self._send, evolution_id, domain)
        except Exception as error:
            raise Unavailable(f"the evolution could not be put into the queue: {error}") from error

    def _send(self, evolution_id: EvolutionId, domain: DomainId) -> None:
        arguments: dict[str, Any] = {"evolution_id": evolution_id, "domain": domain}
        # The id makes a repeated message recognisable in the worker's log.
        self._app.send_task(
            EVOLVE_TASK, kwargs=arguments, task_id=evolution_id, retry=True, retry_policy={"max_retries": 1}
        )

    def close(self) -> None:
        self._app.close()
