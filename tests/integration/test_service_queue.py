"""What the service puts on the broker is what a Celery worker reads."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from redis.asyncio import Redis

from evolver import tasks
from evolver.worker import create_app
from service.queue import CeleryQueue
from shared.config import Settings
from shared.errors import Unavailable
from shared.redis_client import texts
from shared.types import DomainId, EvolutionId


async def test_an_evolution_is_one_json_message(redis: Redis, redis_settings: Settings) -> None:
    queue = CeleryQueue(redis_settings)
    await queue.enqueue(EvolutionId("shop-e000001"), DomainId("shop"))
    queue.close()
    await redis.select(1)
    (message,) = await redis.lrange("evorec-0", 0, -1)
    envelope = json.loads(message)
    assert envelope["headers"]["task"] in create_app(redis_settings).tasks
    assert envelope["content-type"] == "application/json"


async def test_databases_of_one_redis_have_a_queue_each(redis: Redis, redis_settings: Settings) -> None:
    assert redis_settings.redis_url is not None
    urls = {number: redis_settings.redis_url.replace("db=0", f"db={number}") for number in (0, 2)}
    environments = {number: redis_settings.model_copy(update={"redis_url": url}) for number, url in urls.items()}
    for number, settings in environments.items():
        queue = CeleryQueue(settings)
        await queue.enqueue(EvolutionId(f"asked-in-{number}"), DomainId("shop"))
        queue.close()
    await redis.select(1)
    for number, settings in environments.items():
        with create_app(settings) as worker:
            (name,) = worker.amqp.queues.consume_from
            tasks.enqueuer(worker)(EvolutionId(f"due-in-{number}"), DomainId("shop"))
        described = [json.loads(message)["headers"] for message in texts(await redis.lrange(name, 0, -1))]
        newest, oldest = (headers["argsrepr"] + headers["kwargsrepr"] for headers in described)
        assert f"due-in-{number}" in newest
        assert f"asked-in-{number}" in oldest


async def test_a_broker_that_never_answers_is_not_waited_for(redis_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        queue = CeleryQueue(redis_settings.model_copy(update={"broker_url": url}))
        async with asyncio.timeout(30):  # without a limit of its own it waits for ever
            with pytest.raises(Unavailable, match="could not be put into the queue"):
                await queue.enqueue(EvolutionId("shop-e000001"), DomainId("shop"))
    queue.close()


async def test_a_broker_that_is_away_is_said_within_seconds(redis_settings: Settings) -> None:
    queue = CeleryQueue(redis_settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"}))
    with pytest.raises(Unavailable, match="could not be put into the queue"):
        await queue.enqueue(EvolutionId("shop-e000001"), DomainId("shop"))
    queue.close()
