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
            found = [word_buckets(item.title, item.category, item.brand, n_buckets) for item in items]
            return cls._joined(items, n_buckets, found)
        if known.items == tuple(items):
            return known
        starts = known.starts.tolist()
        spans = zip(known.items, starts, [*starts[1:], len(known.buckets)], strict=False)
        before = {item.item_id: (item, start, end) for item, start, end in spans}
        kept = known.buckets.tolist()
        found = []
        for item in items:
            old, start, end = before.get(item.item_id, (None, 0, 0))
            same = old is not None and (old.title, old.category, old.brand) == (item.title, item.category, item.brand)
            found.append(kept[start:end] if same else word_buckets(item.title, item.category, item.brand, n_buckets))
        return cls._joined(items, n_buckets, found)

    @classmethod
    def _joined(cls, items: Sequence[Item], n_buckets: int, found: Sequence[Sequence[int]]) -> ItemWords:
        flat = np.fromiter((bucket for buckets in found for bucket in buckets), dtype=np.int64)
        lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        return cls(tuple(items), n_buckets, flat, lengths.cumsum() - lengths)


@lru_cache(maxsize=500_000)
def word_buckets(title: str, category: str, brand: str, n_buckets: int) -> tuple[int, ...]:
    """Buckets, ascending, of the different words of a title, its category's last part and its brand."""
    leaf = category.rsplit(">", 1)[-1]
    words = {
        *_WORD.findall(title.lower()),
        f"category:{leaf.strip().lower()}",
        f"brand:{brand.lower()}" if brand else "",
    } - {""}
    return tuple(
        sorted(
            int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % n_buckets for word in words
        )
    )
