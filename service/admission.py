"""How much is taken in at once: beyond, nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import Overloaded


class Admission:
    """Places for `limit` requests; `name`: what they are, for people."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """One for the block; Overloaded where all are taken."""
        if self._taken >= self._limit:
            raise Overloaded(f"{self._taken} {self._name} are being taken in already; send this one again in a moment")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
