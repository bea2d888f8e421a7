"""That something of a domain has changed, told by one process to all: aliases and routes, or the catalog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.domains import validate_domain
from shared.errors import InvalidInput
from shared.redis_keys import CHANGES_CHANNEL
from shared.telemetry import described
from shared.types import DomainId

log = structlog.get_logger(__name__)

RECONNECT_S = 1.0


async def announce(redis: Redis, domain: DomainId) -> None:
    await redis.publish(CHANGES_CHANNEL, domain)


async def changes(redis: Redis) -> AsyncIterator[DomainId]:
    """Domains of which something changed, for ever; reconnects by itself.

    A message sent while the connection was down is lost, so that whoever listens has to poll as well.
    """
    while True:
        try:
            async with redis.pubsub() as pubsub:
                await pubsub.subscribe(CHANGES_CHANNEL)
                while True:
                    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5.0)
                    if message is None:
                        continue
                    try:
                        domain = validate_domain(message["data"])
                    except InvalidInput as error:
                        log.warning("change_unreadable", channel=CHANGES_CHANNEL, error=str(error))
                    else:
                        yield domain
        except (RedisError, OSError, UnicodeDecodeError) as error:
            log.warning("changes_lost", remedy="trying again", error=described(error))
            await asyncio.sleep(RECONNECT_S)
