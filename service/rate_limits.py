"""Rate limits per API key, or per client address where there is no key. In memory: each replica counts for itself."""

from __future__ import annotations

import math
import time
from typing import ClassVar

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from shared.errors import EvorecError, InvalidInput


class TooManyRequests(EvorecError):
    status: ClassVar[int] = 429
    title: ClassVar[str] = "Too many requests"


class RateLimits:
    """`rates`: such as `200/second` or `200/second;5000/minute`; None: no limit. InvalidInput where it is neither."""

    def __init__(self, rates: str | None) -> None:
        self._rates: list[RateLimitItem] = []
        if rates is not None:
            try:
                self._rates = parse_many(rates)
            except ValueError:
                raise InvalidInput("EVOREC_RATE_LIMIT is nothing like '200/second'") from None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, caller: str) -> None:
        """One more request of the caller's; TooManyRequests, with the seconds to wait, beyond a rate."""
        for rate in self._rates:
            if not self._limiter.hit(rate, caller):
                error = TooManyRequests(f"more than {rate}")
                wait = self._limiter.get_window_stats(rate, caller).reset_time - time.time()
                error.retry_after_s = max(1, math.ceil(wait))
                raise error
