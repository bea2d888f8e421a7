"""Interactions as the text that streams and histories hold, and their ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from shared.dead_letters import Unreadable
from shared.types import Interaction, ItemId, UserId

MAX_TIMESTAMP = 253_402_300_800.0  # the year 10000


def event_id_of(user_id: UserId, item_id: ItemId, event_type: str, timestamp: float) -> str:
    """The id of an event that came without one: the same event sent twice has the same id."""
    # JSON keeps the parts apart: ("a", "bc") and ("ab", "c") differ.
    content = json.dumps([user_id, item_id, event_type, float(timestamp)])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def with_id(event: Interaction) -> Interaction:
    """The event; one that came without an id gets `event_id_of` it."""
    if event.event_id:
        return event
    return replace(event, event_id=event_id_of(event.user_id, event.item_id, event.event_type, event.timestamp))


def encode(interaction: Interaction) -> str:
    """One line of JSON; absent values are left out, since every interaction is stored twice."""
    record: dict[str, object] = {
        "id": interaction.event_id,
        "user": interaction.user_id,
        "item": interaction.item_id,
        "at": interaction.timestamp,
        "type": interaction.event_type,
    }
    if interaction.value is not None:
        record["value"] = interaction.value
    if interaction.recommendation_id is not None:
        record["recommendation"] = interaction.recommendation_id
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def decode(payload: str, stream_id: str) -> Interaction:
    """Unreadable where the payload is none of ours."""
    try:
        record = json.loads(payload)
        timestamp = float(record["at"])
        if not abs(timestamp) < MAX_TIMESTAMP:  # of NaN as well
            raise Unreadable(f"its time {timestamp} is none")
        return Interaction(
            event_id=_text(record["id"]),
            user_id=UserId(_text(record["user"])),
            item_id=ItemId(_text(record["item"])),
            timestamp=timestamp,
            event_type=_text(record["type"]),
            value=record.get("value"),
            recommendation_id=record.get("recommendation"),
            stream_id=stream_id,
        )
    except Unreadable:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Unreadable(f"it is no interaction: {type(error).__name__}: {error}") from error


def user_of(payload: object) -> UserId | None:
    """Whose event it is, where at least that can be read: erasure has to find it."""
    try:
        return UserId(_text(json.loads(str(payload))["user"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Unreadable(f"{value!r:.100} is no text")
    value.encode()  # UnicodeEncodeError, a ValueError, for half a character
    return value
