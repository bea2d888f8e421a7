"""Settings that the data in Redis were written by: others would look for them elsewhere, or add up unlike things."""

from __future__ import annotations

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.config import Settings
from shared.errors import Conflict
from shared.redis_client import connect, maybe_text
from shared.redis_keys import FIXED_SETTINGS
from shared.telemetry import described

log = structlog.get_logger(__name__)

FIXED = {
    "partitions": "a user's interactions would be looked for under other keys",
    "popularity_half_life_days": "popularity would be the sum of weights that decay unlike",
}
ANSWER_WITHIN_S = 3.0


async def keep_fixed_settings(redis: Redis, settings: Settings) -> None:
    """To be called before anything is written by these settings, which then stay with the data. Raises `Conflict` where
    the data of this Redis were written by others. (Those of an earlier release do not say: who comes first decides.)
    """
    for name, value in _values(settings).items():
        await redis.hsetnx(FIXED_SETTINGS, name, value)
    await require_fixed_settings(redis, settings)


async def require_fixed_settings(redis: Redis, settings: Settings) -> None:
    """Raises `Conflict` where the data of this Redis were written by other settings; writes nothing."""
    ours = _values(settings)
    theirs = await redis.hmget(FIXED_SETTINGS, [*ours])
    differ = [
        f"EVOREC_{name.upper()} is {ours[name]} here and was {value} when they were written: {FIXED[name]}"
        for name, value in zip(ours, map(maybe_text, theirs), strict=True)
        if value not in (None, ours[name])
    ]
    if differ:
        raise Conflict(
            f"this Redis has interactions of other settings. {'; '.join(differ)}. Set it back; to change it, ingest "
            "everything anew into an empty Redis."
        )


def _values(settings: Settings) -> dict[str, str]:
    return {name: str(getattr(settings, name)) for name in FIXED}


async def require_fixed_settings_at_start(settings: Settings) -> None:
    """The same for a process that is about to start. Without Redis nothing can be told, and that is no reason not to
    start.
    """
    redis = connect(settings, answer_within_s=ANSWER_WITHIN_S)
    try:
        await require_fixed_settings(redis, settings)
    except (RedisError, OSError) as error:
        log.debug("fixed_settings_unknown", error=described(error))
    finally:
        await redis.aclose()
