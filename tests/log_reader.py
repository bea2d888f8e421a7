"""All of an interaction log, as whoever reads it is to see it."""

from __future__ import annotations

from shared.stream import InteractionLog
from shared.types import STREAM_START, DomainId, Interaction


async def read_all(log: InteractionLog, domain: DomainId) -> list[Interaction]:
    """Partition by partition, in stream order; of an event that was appended twice the first."""
    once: dict[tuple[int, str], Interaction] = {}
    for partition, until in (await log.tail(domain)).items():
        async for event in log.entries(domain, partition, STREAM_START, until):
            once.setdefault((partition, event.event_id), event)
    return [*once.values()]
