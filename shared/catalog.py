"""Domains and their catalogs."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from shared.redis_client import maybe_text, text, texts
from shared.redis_keys import CHANGES_CHANNEL, DOMAINS, DomainKeys
from shared.types import DomainId, Item, ItemId

MAX_TEXT = 512
# Control characters, halves of surrogate pairs (no encoding takes them), line and paragraph separators.
_BLANKED = frozenset({"Cc", "Cs", "Zl", "Zp"})


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

    async def put(self, domain: DomainId, items: Sequence[Item]) -> int:
        """Inserts or replaces; returns how many distinct items that were. Texts are cleaned on the way in."""
        records: dict[FieldT, EncodableT] = {item.item_id: _encode(item) for item in items}
        pipe = self._redis.pipeline(transaction=True)
        if records:
            pipe.hset(DomainKeys(domain).items, mapping=records)
        pipe.incr(DomainKeys(domain).catalog_version)
        await pipe.execute()
        await self._redis.sadd(DOMAINS, domain)
        await self._redis.publish(CHANGES_CHANNEL, domain)
        return len(records)

    async def get(self, domain: DomainId, item_id: ItemId) -> Item | None:
        record = maybe_text(await self._redis.hget(DomainKeys(domain).items, item_id))
        return None if record is None else _decode(item_id, record)

    async def get_many(self, domain: DomainId, item_ids: Sequence[ItemId]) -> dict[ItemId, Item]:
        """The items that exist, of those asked for, in the order asked for."""
        if not item_ids:
            return {}
        records = await self._redis.hmget(DomainKeys(domain).items, list(item_ids))
        pairs = zip(item_ids, map(maybe_text, records), strict=True)
        return {item_id: _decode(item_id, record) for item_id, record in pairs if record is not None}

    async def delete(self, domain: DomainId, item_id: ItemId) -> bool:
        """False where there was no such item."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.hdel(DomainKeys(domain).items, item_id)
        pipe.incr(DomainKeys(domain).catalog_version)
        removed, _ = await pipe.execute()
        await self._redis.publish(CHANGES_CHANNEL, domain)
        return bool(removed)

    async def all(self, domain: DomainId) -> list[Item]:
        """The whole catalog, ordered by item id, so that everybody who numbers it numbers it alike."""
        records = await self._redis.hgetall(DomainKeys(domain).items)
        return [_decode(ItemId(text(item_id)), text(record)) for item_id, record in sorted(records.items())]

    async def size(self, domain: DomainId) -> int:
        return int(await self._redis.hlen(DomainKeys(domain).items))

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


def _decode(item_id: ItemId, record: str) -> Item:
    return Item(item_id, **json.loads(record))
