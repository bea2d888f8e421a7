"""The record of evolutions: what runs, what ran, and how it went. One may be active per domain."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from shared.domains import DOMAIN_PATTERN
from shared.errors import EvolutionEnded, EvolutionRunning, LeaseLost, NotFound
from shared.manifest import Gate, Metrics
from shared.redis_client import maybe_text, texts
from shared.redis_keys import DOMAINS, DomainKeys
from shared.types import AdapterName, DomainId, EvolutionId

EVOLVE_TASK: Final = "evolver.evolve"
"""Arguments: evolution_id, domain. Whoever creates an evolution sends this; the tick does it for those who did not."""
KEPT = 1000
SENDING_S: Final = 60
"""More than the broker is waited for. Where the sender has died, another message may be sent after that."""
WAITING_S: Final = 3600
"""How long a message counts as waiting. One that the broker has lost is replaced after that, and one that waits behind
long runs has another beside it for each such time."""

# KEYS: active, evolutions, order, cancel requests.  ARGV: id, record, kept.  -> id of the active evolution
# Creating the same id twice (a retry of the client) does nothing the second time.
CREATE = """
local active = redis.call('GET', KEYS[1])
if active then return active end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('LPUSH', KEYS[3], ARGV[1])
while redis.call('LLEN', KEYS[3]) > tonumber(ARGV[3]) do
  redis.call('HDEL', KEYS[2], redis.call('RPOP', KEYS[3]))
end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""

# KEYS: active, evolutions, order, cancel requests, fence.
# ARGV: id, record, '1' if the record is final, fencing token ('' = not checked).
# An evolution is active exactly as long as its record is not final, so the active key tells both.
UPDATE = """
if ARGV[4] ~= '' and ARGV[4] ~= (redis.call('GET', KEYS[5]) or '0') then return 'lease' end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 'unknown' end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  if redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2] then return 'ok' end
  return 'finished'
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
if ARGV[3] == '1' then
  redis.call('DEL', KEYS[1])
  redis.call('SREM', KEYS[4], ARGV[1])
end
return 'ok'
"""

# KEYS: active, evolutions, order, cancel requests.  ARGV: id
CANCEL = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 'unknown' end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'finished' end
redis.call('SADD', KEYS[4], ARGV[1])
return 'ok'
"""

_ID = re.compile(rf"({DOMAIN_PATTERN})-e\d{{6,}}", re.ASCII)


def refusal_by_route(challenger: str | None, paused: bool, *, force: bool) -> str | None:
    """Why a domain's route lets no evolution start that somebody asks for; None where it does.

    Nothing starts while a challenger is on trial: its window would be learned twice. A pause yields to `force`.
    """
    if challenger is not None:
        return f"challenger {challenger} is on trial; promote it or end its route first"
    if paused and not force:
        return "evolutions of this domain are paused; `force` overrides"
    return None


class EvolutionStatus(StrEnum):
    queued = "queued"
    running = "running"
    published = "published"
    rejected = "rejected"
    dry = "dry"
    cancelled = "cancelled"
    failed = "failed"

    @property
    def final(self) -> bool:
        return self not in (EvolutionStatus.queued, EvolutionStatus.running)


class Evolution(BaseModel):
    """One run. Times are unix seconds; `progress` is 0..1; change it with `model_copy(update=...)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: EvolutionId
    domain: DomainId
    status: EvolutionStatus = EvolutionStatus.queued
    stage: str | None = None
    progress: float = Field(0.0, ge=0.0, le=1.0)
    force: bool = False
    dry_run: bool = False
    requested_at: float
    started_at: float | None = None
    finished_at: float | None = None
    located_layers: tuple[int, ...] | None = None
    layer_votes: tuple[int, ...] | None = None
    forgotten_share: float | None = None
    metrics: Metrics | None = None
    gate: Gate | None = None
    adapter: AdapterName | None = None
    error: str | None = None
    message: str | None = None


class EvolutionStore:
    """Kept: the newest `KEPT` evolutions of every domain."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._create = redis.register_script(CREATE)
        self._update = redis.register_script(UPDATE)
        self._cancel = redis.register_script(CANCEL)

    async def create(self, domain: DomainId, force: bool = False, dry_run: bool = False) -> Evolution:
        """A queued evolution; EvolutionRunning where the domain has an active one."""
        number = int(await self._redis.incr(DomainKeys(domain).evolution_counter))
        evolution = Evolution(
            id=EvolutionId(f"{domain}-e{number:06d}"),
            domain=domain,
            force=force,
            dry_run=dry_run,
            requested_at=self._clock(),
        )
        active = await self._create(keys=_keys(domain), args=[evolution.id, evolution.model_dump_json(), KEPT])
        if active != evolution.id:
            raise EvolutionRunning(f"evolution {active} of domain {domain!r} is queued or running")
        return evolution

    async def get(self, evolution_id: str) -> Evolution:
        """NotFound for an unknown id."""
        record = await self._redis.hget(DomainKeys(_domain_of(evolution_id)).evolutions, evolution_id)
        if record is None:
            raise _unknown(evolution_id)
        return Evolution.model_validate_json(record)

    async def list(self, domain: DomainId | None = None, limit: int = 50) -> Sequence[Evolution]:
        """Newest first; of all domains where none is named."""
        if domain is not None:
            return await self._newest(domain, limit)
        domains = [DomainId(name) for name in texts(await self._redis.smembers(DOMAINS))]
        found = [evolution for name in domains for evolution in await self._newest(name, limit)]
        return sorted(found, key=lambda evolution: (-evolution.requested_at, evolution.id))[:limit]

    async def update(self, evolution: Evolution, fencing_token: int | None = None) -> None:
        """Replaces the record. EvolutionEnded where the stored one is final already.
        LeaseLost where a token is given and is not the domain's newest: somebody else's run is what the record tells.
        """
        final = "1" if evolution.status.final else "0"
        args = [evolution.id, evolution.model_dump_json(), final, "" if fencing_token is None else fencing_token]
        keys = [*_keys(evolution.domain), DomainKeys(evolution.domain).fence]
        _check(await self._update(keys=keys, args=args), evolution.id)

    @asynccontextmanager
    async def enqueueing(self, evolution: Evolution) -> AsyncIterator[bool]:
        """For the block that puts the evolution into the broker's queue: False where a message of it waits already, or
        is being sent. Whoever takes a message of the queue says so by `taken`.
        """
        claim = DomainKeys(evolution.domain).enqueued(evolution.id)
        if not await self._redis.set(claim, "1", nx=True, ex=SENDING_S):
            yield False
            return
        try:
            yield True
        except Exception:
            await self._redis.delete(claim)
            raise
        await self._redis.expire(claim, WAITING_S)  # sets nothing where the message has been taken meanwhile

    async def taken(self, evolution_id: EvolutionId, domain: DomainId) -> None:
        """A message of the evolution waits no longer: should the worker die now, another one is needed soon."""
        await self._redis.delete(DomainKeys(domain).enqueued(evolution_id))

    async def active(self, domain: DomainId) -> Evolution | None:
        """The domain's queued or running evolution."""
        evolution_id = maybe_text(await self._redis.get(DomainKeys(domain).active_evolution))
        return None if evolution_id is None else await self.get(evolution_id)

    async def request_cancel(self, evolution_id: str) -> None:
        """Asks the run to stop; NotFound for an unknown id, EvolutionEnded where it has ended."""
        domain = _domain_of(evolution_id)
        _check(await self._cancel(keys=_keys(domain), args=[evolution_id]), evolution_id)
        # Should the broker have lost the message: a worker ends one that is queued, with the next message.
        await self.taken(EvolutionId(evolution_id), domain)

    async def cancel_requested(self, evolution_id: str) -> bool:
        keys = DomainKeys(_domain_of(evolution_id))
        return bool(await self._redis.sismember(keys.cancel_requests, evolution_id))

    async def _newest(self, domain: DomainId, limit: int) -> Sequence[Evolution]:
        keys = DomainKeys(domain)
        ids = texts(await self._redis.lrange(keys.evolution_order, 0, limit - 1)) if limit > 0 else []
        records = await self._redis.hmget(keys.evolutions, list(ids)) if ids else []
        return [Evolution.model_validate_json(record) for record in records if record is not None]


def _keys(domain: DomainId) -> list[str]:
    keys = DomainKeys(domain)
    return [keys.active_evolution, keys.evolutions, keys.evolution_order, keys.cancel_requests]


def _domain_of(evolution_id: str) -> DomainId:
    match = _ID.fullmatch(evolution_id)
    if match is None:
        raise _unknown(evolution_id)
    return DomainId(match[1])


def _unknown(evolution_id: str) -> NotFound:
    return NotFound(f"there is no evolution {evolution_id[:100]!r}")


def _check(answer: str, evolution_id: str) -> None:
    if answer == "unknown":
        raise _unknown(evolution_id)
    if answer == "lease":
        raise LeaseLost(f"evolution {evolution_id} has been taken over: another run has a newer fencing token")
    if answer == "finished":
        raise EvolutionEnded(f"evolution {evolution_id} has ended already")
