from __future__ import annotations

import asyncio
import threading

import pytest
from redis.asyncio import Redis

from shared.catalog import MAX_TEXT, CatalogStore, _decode
from shared.types import DomainId, Item, ItemId
from tests.factories import BEAUTY

CREAM = Item(ItemId("i1"), "Cream", "Skin", "Acme")
SOAP = Item(ItemId("i2"), "Soap", available=False)


async def test_the_first_put_creates_the_domain(redis: Redis) -> None:
    catalog = CatalogStore(redis)
    assert not await catalog.exists(BEAUTY)
    assert await catalog.domains() == []
    assert await catalog.version(BEAUTY) == 0
    assert await catalog.put(BEAUTY, [SOAP, CREAM]) == 2
    assert await catalog.put(DomainId("toys"), []) == 0
    assert await catalog.exists(BEAUTY)
    assert await catalog.domains() == [BEAUTY, "toys"]


async def test_what_was_put_is_got(redis: Redis) -> None:
    catalog = CatalogStore(redis)
    await catalog.put(BEAUTY, [SOAP, CREAM])
    assert await catalog.get(BEAUTY, CREAM.item_id) == CREAM
    assert await catalog.get(BEAUTY, ItemId("never")) is None
    assert await catalog.get(DomainId("toys"), CREAM.item_id) is None
    assert await catalog.all(BEAUTY) == [CREAM, SOAP]
    found = await catalog.get_many(BEAUTY, [SOAP.item_id, ItemId("never"), CREAM.item_id])
    assert list(found.values()) == [SOAP, CREAM]
    assert await catalog.get_many(BEAUTY, []) == {}


async def test_the_last_of_two_with_one_id_wins(redis: Redis) -> None:
    catalog = CatalogStore(redis)
    assert await catalog.put(BEAUTY, [CREAM, Item(CREAM.item_id, "Better cream")]) == 1
    assert await catalog.all(BEAUTY) == [Item(CREAM.item_id, "Better cream")]


async def test_texts_are_cleaned(redis: Redis) -> None:
    catalog = CatalogStore(redis)
    await catalog.put(BEAUTY, [Item(ItemId("i"), "two\nlines\x00\ud800 " + "x" * 10_000, " a\tb ", "\u2028")])
    (item,) = await catalog.all(BEAUTY)
    assert item.title.startswith("two lines xxx")
    assert len(item.title) == MAX_TEXT
    assert (item.category, item.brand) == ("a b", "")


async def test_every_change_raises_the_version(redis: Redis) -> None:
    catalog = CatalogStore(redis)
    versions = [await catalog.version(BEAUTY)]
    for change in (catalog.put(BEAUTY, [CREAM]), catalog.put(BEAUTY, [CREAM]), catalog.delete(BEAUTY, CREAM.item_id)):
        assert await change
        versions.append(await catalog.version(BEAUTY))
    assert versions == sorted(set(versions))
    assert await catalog.all(BEAUTY) == []
    assert await catalog.exists(BEAUTY)


async def test_deleting_what_is_not_there_changes_nothing(redis: Redis) -> None:
    """Every change has each replica read the whole catalog anew."""
    catalog = CatalogStore(redis)
    await catalog.put(BEAUTY, [CREAM])
    version = await catalog.version(BEAUTY)
    assert not await catalog.delete(BEAUTY, SOAP.item_id)
    assert not await catalog.delete(DomainId("toys"), CREAM.item_id)
    assert await catalog.version(BEAUTY) == version
    assert await catalog.version(DomainId("toys")) == 0


async def test_the_loop_goes_on_while_a_catalog_is_decoded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = CatalogStore(redis)
    await catalog.put(BEAUTY, [CREAM, SOAP])
    decode, begun, answered = _decode, threading.Event(), threading.Event()

    def slow(item_id: ItemId, record: str) -> Item:
        begun.set()
        assert answered.wait(20)
        return decode(item_id, record)

    monkeypatch.setattr("shared.catalog._decode", slow)
    reading = asyncio.create_task(catalog.all(BEAUTY))
    async with asyncio.timeout(20):
        while not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    answered.set()
    assert await reading == [CREAM, SOAP]
