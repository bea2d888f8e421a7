"""The retriever's words of a catalog that changes: what is kept is what would be found anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared.item_words import ItemWords
from shared.types import Item, ItemId

WORDS = st.sampled_from(["Green", "tea", "tent", "", "tea tea", "Tent für zwei"])
CATALOGS = st.lists(
    st.builds(
        Item, st.integers(0, 9).map(lambda n: ItemId(f"i{n}")), title=WORDS, category=WORDS, available=st.booleans()
    ),
    max_size=8,
    unique_by=lambda item: item.item_id,
)


@given(CATALOGS, CATALOGS)
def test_words_over_a_changed_catalog_are_those_found_anew(before: list[Item], after: list[Item]) -> None:
    anew = ItemWords.of(after, 64)
    kept = ItemWords.of(after, 64, ItemWords.of(before, 64))
    assert kept.items == anew.items
    assert np.array_equal(kept.buckets, anew.buckets)
    assert np.array_equal(kept.starts, anew.starts)


@given(CATALOGS, st.data())
def test_words_of_some_items_are_those_found_for_them(items: list[Item], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sampled_from(range(len(items))), unique=True)) if items else []
    taken = ItemWords.of(items, 64).take(np.array(rows, np.int64))
    anew = ItemWords.of([items[row] for row in rows], 64)
    assert taken.items == anew.items
    assert np.array_equal(taken.buckets, anew.buckets)
    assert np.array_equal(taken.starts, anew.starts)


def test_an_unchanged_catalog_keeps_its_words() -> None:
    items = [Item(ItemId("a"), "green tea"), Item(ItemId("b"), "tent")]
    words = ItemWords.of(items, 64)
    assert ItemWords.of([*items], 64, words) is words
    assert ItemWords.of([replace(items[0], available=False), items[1]], 64, words) is not words


def test_words_of_a_table_of_another_size_are_found_anew() -> None:
    items = [Item(ItemId("a"), "green tea")]
    assert int(ItemWords.of(items, 4, ItemWords.of(items, 1 << 30)).buckets.max()) < 4
