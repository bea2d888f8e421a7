"""How much is taken in at once: beyond, nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import Overloaded


class Admission:
    """Places for `limit` requests; `doing`: what is done with them, for people."""

    def __init__(self, limit: int, doing: str) -> None:
        self._limit = limit
        self._doing = doing
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """One for the block; Overloaded where all are taken."""
        if self._taken >= self._limit:
            raise Overloaded(f"{self._taken} {self._doing} already; ask again in a moment")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
