"""The words of DESIGN.md as types. Every value here is immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

DomainId = NewType("DomainId", str)
UserId = NewType("UserId", str)
ItemId = NewType("ItemId", str)
AdapterName = NewType("AdapterName", str)
EvolutionId = NewType("EvolutionId", str)

# Redis stream id per partition, e.g. {0: "1719230000000-3"}; a missing partition means "from the start".
StreamPositions = Mapping[int, str]
STREAM_START = "0-0"

EVENT_TYPE_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"


def order_of(stream_id: str) -> tuple[int, int]:
    """Stream ids as numbers: "9-0" comes before "10-0"."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of a domain's catalog."""

    item_id: ItemId
    title: str
    category: str = ""
    brand: str = ""
    available: bool = True


@dataclass(frozen=True, slots=True)
class Interaction:
    """One event: a user did something with an item at a time (`timestamp`: unix seconds).

    `stream_id` is empty until the interaction has been appended to the stream.
    """

    event_id: str
    user_id: UserId
    item_id: ItemId
    timestamp: float
    event_type: str = "purchase"
    value: float | None = None
    recommendation_id: str | None = None
    stream_id: str = ""
