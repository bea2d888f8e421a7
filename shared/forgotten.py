"""The forgotten set: interactions that a version no longer takes into account, in prompts and in retrieval.

It is part of the version that forgot them: a descendant's set contains its ancestors', but for users who were erased
meanwhile, and a rollback remembers.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from shared.errors import InvalidArtifact
from shared.types import Interaction, UserId

FORGOTTEN_FILE = "forgotten.json.gz"


class ForgottenSet:
    """Immutable: user -> ids of the events forgotten of them."""

    def __init__(self, events: Mapping[UserId, frozenset[str]] | None = None) -> None:
        self._events = {user: ids for user, ids in (events or {}).items() if ids}

    def __len__(self) -> int:
        return sum(len(ids) for ids in self._events.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForgottenSet) and self._events == other._events

    def __hash__(self) -> int:
        return hash(frozenset(self._events.items()))

    @property
    def users(self) -> frozenset[UserId]:
        """Of whom something is forgotten."""
        return frozenset(self._events)

    def of(self, user_id: UserId) -> frozenset[str]:
        """Event ids forgotten of a user."""
        return self._events.get(user_id, frozenset())

    def filter(self, user_id: UserId, history: Sequence[Interaction]) -> tuple[Interaction, ...]:
        """The history without what has been forgotten."""
        forgotten = self.of(user_id)
        return tuple(event for event in history if event.event_id not in forgotten)

    def union(self, other: ForgottenSet) -> ForgottenSet:
        """Both sets' events."""
        users = {*self._events, *other._events}
        return ForgottenSet({user: self.of(user) | other.of(user) for user in users})

    def among(self, users: Container[UserId]) -> ForgottenSet:
        """What is forgotten of these users."""
        return ForgottenSet({user: ids for user, ids in self._events.items() if user in users})

    def save(self, folder: Path) -> None:
        """Write `forgotten.json.gz`; equal sets give equal bytes."""
        content = {user: sorted(self._events[user]) for user in sorted(self._events)}
        (folder / FORGOTTEN_FILE).write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))

    @classmethod
    def load(cls, folder: Path) -> ForgottenSet:
        """Read `forgotten.json.gz`; raises `InvalidArtifact` where it is missing or damaged."""
        path = folder / FORGOTTEN_FILE
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            return cls({UserId(user): frozenset(ids) for user, ids in content.items()})
        except (OSError, EOFError, ValueError, AttributeError, TypeError) as error:
            raise InvalidArtifact(f"{path} is no readable set of forgotten interactions: {error}") from error
