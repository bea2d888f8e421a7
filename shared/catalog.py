"""Domains and their catalogs."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence

import structlog
from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from shared.dead_letters import DeadLetter, DeadLetters, Unreadable
from shared.redis_client import maybe_text, text, texts
from shared.redis_keys import CHANGES_CHANNEL, DOMAINS, DomainKeys
from shared.types import DomainId, Item, ItemId

log = structlog.get_logger(__name__)

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
        self._dead_letters = DeadLetters(redis)

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
        return (await self.get_many(domain, [item_id])).get(item_id)

    async def get_many(self, domain: DomainId, item_ids: Sequence[ItemId]) -> dict[ItemId, Item]:
        """The items that exist, of those asked for, in the order asked for."""
        if not item_ids:
            return {}
        records = await self._redis.hmget(DomainKeys(domain).items, list(item_ids))
        pairs = zip(item_ids, map(maybe_text, records), strict=True)
        return {
            item.item_id: item
            for item in await self._decoded(domain, ((i, record) for i, record in pairs if record is not None))
        }

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
        pairs = ((ItemId(text(item_id)), text(record)) for item_id, record in sorted(records.items()))
        return await self._decoded(domain, pairs)

    async def _decoded(self, domain: DomainId, records: Iterable[tuple[ItemId, str]]) -> list[Item]:
        """The items that can be read; the others become dead letters."""
        items = []
        for item_id, record in records:
            try:
                items.append(_decode(item_id, record))
            except Unreadable as error:
                letter = DeadLetter(reason=f"catalog entry: {error}", item_id=item_id, raw=record)
                if await self._dead_letters.add(domain, letter):
                    log.warning("catalog_entry_unreadable", domain=domain, reason=str(error))
        return items

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
    try:
        item_id.encode()
        item = Item(item_id, **json.loads(record))
        (item.title + item.category + item.brand).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"it is no item: {type(error).__name__}: {error}") from error
    return item
