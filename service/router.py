"""Who is answered by the challenger."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from shared.types import AdapterName, UserId

_HASH_BITS = 64


@dataclass(frozen=True, slots=True)
class DomainRoute:
    """Versions that this process answers with. `share` (0..1) of the users are the challenger's."""

    champion: AdapterName | None = None
    challenger: AdapterName | None = None
    share: float = 0.0

    @property
    def names(self) -> frozenset[AdapterName]:
        return frozenset(name for name in (self.champion, self.challenger) if name is not None)


def on_trial(user_id: UserId, challenger: AdapterName, share: float) -> bool:
    """Whether the user belongs to the challenger's share.

    Sticky: it depends on user and challenger alone, a larger share contains a smaller one, and the next trial draws
    other users.
    """
    digest = hashlib.blake2b(f"{challenger}\0{user_id}".encode(), digest_size=_HASH_BITS // 8, person=b"evorec-route")
    return int.from_bytes(digest.digest(), "big") < share * float(2**_HASH_BITS)


def choose(route: DomainRoute, user_id: UserId | None) -> AdapterName | None:
    """The version that answers this user; callers without a user id get the champion."""
    if route.challenger is not None and user_id is not None and on_trial(user_id, route.challenger, route.share):
        return route.challenger
    return route.champion
