"""What may be the id of a domain."""

from __future__ import annotations

import re

from shared.errors import InvalidInput
from shared.types import DomainId

# Narrow, because a domain names folders, keys and adapters.
DOMAIN_PATTERN = r"[a-z0-9][a-z0-9_-]{0,63}"


def validate_domain(value: str) -> DomainId:
    """The domain's id, or InvalidInput."""
    if not re.fullmatch(DOMAIN_PATTERN, value):
        raise InvalidInput(
            f"domain {value[:80]!r} must be 1 to 64 of a-z, 0-9, '-' and '_', starting with a letter or digit"
        )
    return DomainId(value)
