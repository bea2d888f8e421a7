"""Domains and their catalogs."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import structlog
from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from shared.changes import announce
from shared.dead_letters import DeadLetter, DeadLetters, Unreadable
from shared.redis_client import maybe_text, text, texts
from shared.redis_keys import DOMAINS, DomainKeys
from shared.types import DomainId, Item, ItemId

log = structlog.get_logger(__name__)

MAX_TEXT = 512
# Control characters, halves of surrogate pairs (no encoding takes them), line and paragraph separators.
_BLANKED = frozenset({"Cc", "Cs", "Zl", "Zp"})

# KEYS: items, catalog version.  ARGV: item id.  -> 1 where there was such an item
DELETE = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('INCR', KEYS[2])
return 1
"""


def clean_text(value: str) -> str:
    """One line of NFKC text without control characters, at most `MAX_TEXT` characters.

    >>> clean_text("  A\\x00 fine\\n\\tcream ")
    'A fine cream'
    """
    # NFKC may lengthen a text up to 18-fold; nothing beyond a generous cut can reach the result.
    normal = unicodedata.normalize("NFKC", value[: 8 * MAX_TEXT])
    spaced = "".join(" " if unicodedata.category(char) in _BLANKED else char for char in normal)
    return " ".join(spaced.split())[:MAX_TEXT].rstrip()


class CatalogStore:
    """A domain exists from its first `put` on."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._dead_letters = DeadLetters(redis)
        self._delete = redis.register_script(DELETE)

    async def put(self, domain: DomainId, items: Sequence[Item]) -> int:
        """Inserts or replaces; returns how many distinct items that were. Texts are cleaned on the way in."""
        records: dict[FieldT, EncodableT] = {item.item_id: _encode(item) for item in items}
        pipe = self._redis.pipeline(transaction=True)
        if records:
            pipe.hset(DomainKeys(domain).items, mapping=records)
        pipe.incr(DomainKeys(domain).catalog_version)
        await pipe.execute()
        await self._redis.sadd(DOMAINS, domain)
        await announce(self._redis, domain)
        return len(records)

    async def get(self, domain: DomainId, item_id: ItemId) -> Item | None:
        return (await self.get_many(domain, [item_id])).get(item_id)

    async def get_many(self, domain: DomainId, item_ids: Sequence[ItemId]) -> dict[ItemId, Item]:
        """The items that exist, of those asked for, in the order asked for."""
        if not item_ids:
            return {}
        records = await self._redis.hmget(DomainKeys(domain).items, list(item_ids))
        pairs = zip(item_ids, map(maybe_text, records), strict=True)
        items, unreadable = _decoded((item_id, record) for item_id, record in pairs if record is not None)
        await self._set_aside(domain, unreadable)
        return {item.item_id: item for item in items}

    async def delete(self, domain: DomainId, item_id: ItemId) -> bool:
        """False where there was no such item, and nothing changes."""
        keys = DomainKeys(domain)
        if not await self._delete(keys=[keys.items, keys.catalog_version], args=[item_id]):
            return False
        await announce(self._redis, domain)
        return True

    async def all(self, domain: DomainId) -> list[Item]:
        """The whole catalog, ordered by item id, so that everybody who numbers it numbers it alike."""
        records = await self._redis.hgetall(DomainKeys(domain).items)
        # A large catalog takes long, and a loop that serves has to answer meanwhile.
        items, unreadable = await asyncio.to_thread(_decoded_in_order, records)
        await self._set_aside(domain, unreadable)
        return items

    async def _set_aside(self, domain: DomainId, unreadable: Sequence[DeadLetter]) -> None:
        for letter in unreadable:
            if await self._dead_letters.add(domain, letter):
                log.warning("catalog_entry_unreadable", domain=domain, reason=letter.reason)

    async def version(self, domain: DomainId) -> int:
        """Grows with every change of the catalog; 0 for an unknown domain."""
        return int(await self._redis.get(DomainKeys(domain).catalog_version) or 0)

    async def domains(self) -> list[DomainId]:
        return [DomainId(domain) for domain in sorted(texts(await self._redis.smembers(DOMAINS)))]

    async def exists(self, domain: DomainId) -> bool:
        return bool(await self._redis.sismember(DOMAINS, domain))


def _encode(item: Item) -> str:
    return json.dumps(
        {
            "title": clean_text(item.title),
            "category": clean_text(item.category),
            "brand": clean_text(item.brand),
            "available": item.available,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _decoded_in_order(records: Mapping[bytes | str, bytes | str]) -> tuple[list[Item], list[DeadLetter]]:
    return _decoded((ItemId(text(item_id)), text(record)) for item_id, record in sorted(records.items()))


def _decoded(records: Iterable[tuple[ItemId, str]]) -> tuple[list[Item], list[DeadLetter]]:
    """The items that can be read; the others as dead letters."""
    items, unreadable = [], []
    for item_id, record in records:
        try:
            items.append(_decode(item_id, record))
        except Unreadable as error:
            unreadable.append(DeadLetter(reason=f"catalog entry: {error}", item_id=item_id, raw=record))
    return items, unreadable


def _decode(item_id: ItemId, record: str) -> Item:
    try:
        item_id.encode()
        item = Item(item_id, **json.loads(record))
        (item.title + item.category + item.brand).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"it is no item: {type(error).__name__}: {error}") from error
    return item
