"""The panel: users who are only ever evaluated on, never trained on."""

from __future__ import annotations

import hashlib
from typing import Final

from shared.types import UserId

_HASH_BYTES: Final = 8
_HASH_RANGE: Final = 256.0**_HASH_BYTES


def in_panel(user_id: UserId, share: float, fold: int = 0) -> bool:
    """Whether this user belongs to the panel: a share (0..1) of all users, by hash of the id.

    A function of the id alone, so that a user stays in or out for every version of every domain, and a larger
    share always contains a smaller one. The hash is salted: the partitions hash the same ids for another purpose.
    `fold` 0, 1, ... of the same share are panels without a user in common.
    """
    digest = hashlib.blake2b(user_id.encode(), digest_size=_HASH_BYTES, person=b"evorec-panel").digest()
    return fold * share * _HASH_RANGE <= int.from_bytes(digest, "big") < (fold + 1) * share * _HASH_RANGE
