"""An item's words as the retriever reads them: the part of an item's vector that no training changes.

Finding them is Python's work, half a minute for a million items, so a catalog that changes keeps those of the items
that stayed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.categories import leaf
from shared.types import Item

_WORD = re.compile(r"\w+", re.UNICODE)


@dataclass(frozen=True, slots=True)
class ItemWords:
    """`buckets` [N]: rows of the retriever's word table, item after item; `starts` [I]: where each item's begin."""

    items: tuple[Item, ...]
    n_buckets: int
    buckets: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, items: Sequence[Item], n_buckets: int, known: ItemWords | None = None) -> ItemWords:
        """The items' words; those of items that `known` has with the same text are taken from there."""
        if known is None or known.n_buckets != n_buckets:
            known = cls((), n_buckets, np.zeros(0, np.int64), np.zeros(0, np.int64))
        if known.items == tuple(items):
            return known
        found = known._rows_of(items)  # [I], -1 where the words have to be looked for
        new = [_words(items[row], n_buckets) for row in np.flatnonzero(found < 0)]
        # Both after one another; `first` says where each item's begin there, and so they are put in order.
        flat = np.concatenate([known.buckets, np.fromiter((b for words in new for b in words), np.int64)])
        new_lengths = np.fromiter(map(len, new), np.int64)
        first = np.concatenate([known.starts, len(known.buckets) + new_lengths.cumsum() - new_lengths])
        lengths = np.concatenate([np.diff(known.starts, append=len(known.buckets)), new_lengths])
        found[found < 0] = len(known.items) + np.arange(len(new))
        return cls(tuple(items), n_buckets, *_gathered(flat, first, lengths, found))

    def take(self, rows: NDArray[np.int64]) -> ItemWords:
        """Those of some of the items, in the order of `rows`."""
        lengths = np.diff(self.starts, append=len(self.buckets))
        items = tuple(self.items[row] for row in rows)
        return ItemWords(items, self.n_buckets, *_gathered(self.buckets, self.starts, lengths, rows))

    def _rows_of(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """The row of each item that is here with the same text, else -1.  -> [I]"""
        rows = {item.item_id: row for row, item in enumerate(self.items)}
        found = np.full(len(items), -1, np.int64)
        for place, item in enumerate(items):
            row = rows.get(item.item_id)
            if row is None:
                continue
            old = self.items[row]
            if old.title == item.title and old.category == item.category and old.brand == item.brand:
                found[place] = row
        return found


def _gathered(
    buckets: NDArray[np.int64], first: NDArray[np.int64], lengths: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Buckets and starts of some rows, each of which has `lengths` buckets from `first` on."""
    lengths = lengths[rows]
    starts = lengths.cumsum() - lengths
    places = np.repeat(first[rows] - starts, lengths) + np.arange(lengths.sum())
    return buckets[places], starts


def _words(item: Item, n_buckets: int) -> tuple[int, ...]:
    return word_buckets(item.title, item.category, item.brand, n_buckets)


@lru_cache(maxsize=500_000)
def word_buckets(title: str, category: str, brand: str, n_buckets: int) -> tuple[int, ...]:
    """Buckets, ascending, of the different words of a title, its category's last part and its brand."""
    words = {
        *_WORD.findall(title.lower()),
        f"category:{leaf(category).lower()}",
        f"brand:{brand.lower()}" if brand else "",
    } - {""}
    return tuple(
        sorted(
            int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % n_buckets for word in words
        )
    )
