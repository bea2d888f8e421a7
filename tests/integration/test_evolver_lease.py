"""The lease: one holder at a time, and a token that fences out whoever slept through it."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from evolver import lease
from evolver.lease import LeaseHeld
from shared.errors import LeaseLost
from shared.redis_keys import DomainKeys
from tests.integration.evolver_support import DOMAIN, until

TTL_S = 6.0  # renewed every 2 s


async def expire(redis: Redis) -> None:
    """As if the holder had slept through its lease."""
    await redis.pexpire(DomainKeys(DOMAIN).lease, 0)


async def test_second_holder_is_refused_and_does_not_fence_out_the_first(redis: Redis) -> None:
    async with lease.hold(redis, DOMAIN, "first", TTL_S) as first:
        with pytest.raises(LeaseHeld):
            await lease.acquire(redis, DOMAIN, "second", TTL_S)
        await first.renew()
    async with lease.hold(redis, DOMAIN, "second", TTL_S) as second:
        assert second.token == first.token + 1


async def test_only_one_of_many_gets_it(redis: Redis) -> None:
    attempts = (lease.acquire(redis, DOMAIN, f"run-{n}", TTL_S) for n in range(20))

    answers = await asyncio.gather(*attempts, return_exceptions=True)

    assert sum(isinstance(answer, lease.Lease) for answer in answers) == 1
    assert sum(isinstance(answer, LeaseHeld) for answer in answers) == 19


async def test_lease_is_renewed_while_held_and_gone_after(redis: Redis) -> None:
    async def renewed() -> bool:
        return 0 < await redis.pttl(DomainKeys(DOMAIN).lease) <= 1000 * TTL_S

    async with lease.hold(redis, DOMAIN, "run", TTL_S) as held:
        for _ in range(2):
            await redis.persist(DomainKeys(DOMAIN).lease)
            await until(renewed, "a renewal")
        held.check()
    assert not await lease.is_held(redis, DOMAIN)


async def test_a_holder_that_slept_finds_its_lease_lost_and_leaves_the_new_one_alone(redis: Redis) -> None:
    asleep = await lease.acquire(redis, DOMAIN, "first", TTL_S)
    await expire(redis)
    awake = await lease.acquire(redis, DOMAIN, "second", 10)

    with pytest.raises(LeaseLost):
        await asleep.renew()
    assert asleep.lost
    with pytest.raises(LeaseLost):
        asleep.check()
    await asleep.release()
    await awake.renew()


async def test_an_expired_lease_that_nobody_took_is_taken_up_again(redis: Redis) -> None:
    held = await lease.acquire(redis, DOMAIN, "run", TTL_S)
    await expire(redis)
    assert not await lease.is_held(redis, DOMAIN)

    await held.renew()

    assert await lease.is_held(redis, DOMAIN)


async def test_a_lease_of_a_redis_that_forgot_everything_is_lost(redis: Redis) -> None:
    held = await lease.acquire(redis, DOMAIN, "run", TTL_S)
    await redis.flushall()

    with pytest.raises(LeaseLost):
        await held.renew()
