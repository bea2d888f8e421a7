"""Maximum inner product search for catalogs that are too large for one matrix product per request: FAISS.

A flat scan over half-precision vectors, re-ranked exactly. Of what FAISS offers it is the one that loses nothing: on a
million 64-wide vectors it found all of the exact top 20 in a sixth of the time, builds in well under a second (the
catalog may change at any moment) and takes a filter; inverted lists lost a third of the items on the same vectors
(ADR 0013).
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

# Re-ranked exactly: more than are asked for, since half precision may swap neighbours.
SPARE = 2


class HalfPrecisionIndex:
    """Immutable; safe to share between threads."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """vectors: [I, d], not copied."""
        self._vectors = vectors
        self._index = faiss.IndexScalarQuantizer(
            vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        self._index.add(vectors)

    def best(self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]) -> tuple[list[int], list[float]]:
        """The k rows with the largest inner products and these, best first.  query: [d], allowed: [I]"""
        bits = np.packbits(allowed, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        _, found = self._index.search(query[None], SPARE * k, params=parameters)
        rows = found[0][found[0] >= 0]
        scores = self._vectors[rows] @ query
        order = np.argsort(-scores, kind="stable")[:k]
        return rows[order].tolist(), scores[order].tolist()
