"""The registry: which adapter versions a domain has, which of them serves, and how requests are routed.

Aliases move by compare-and-set in one script; each move goes through an outbox into the artifact store, from which
`shared.rebuild` can make the registry anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.asyncio import Redis

from shared.artifacts import ArtifactStore
from shared.errors import AliasMoved, Conflict, LeaseLost, NotFound, Unavailable
from shared.manifest import Manifest, adapter_name, split_adapter_name
from shared.redis_client import text
from shared.redis_keys import CHANGES_CHANNEL, DomainKeys
from shared.registry_records import AliasMove, RegistryRecords, Route
from shared.registry_scripts import CONSIDER, MOVE, RESERVE, SET_ROUTE
from shared.telemetry import described
from shared.types import AdapterName, DomainId, StreamPositions

log = structlog.get_logger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"


class Registry:
    def __init__(self, redis: Redis, artifacts: ArtifactStore, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._artifacts = artifacts
        self._records = RegistryRecords(artifacts)
        self._clock = clock
        self._move = redis.register_script(MOVE)
        self._set_route = redis.register_script(SET_ROUTE)
        self._reserve = redis.register_script(RESERVE)
        self._consider = redis.register_script(CONSIDER)

    # -- versions ---------------------------------------------------------------------------------

    async def reserve_name(self, domain: DomainId) -> AdapterName:
        """A name that no version has had or will have, even where Redis has lost its counter or has an older one.

        Unavailable where the artifact store does not answer.
        """
        keys = DomainKeys(domain)
        counter, counted = await self._redis.mget(keys.version_counter, keys.moves_counted)
        since = 0 if counter is None else int(counted or 0)
        found = await asyncio.to_thread(_highest_number, self._artifacts, self._records, domain, since)
        number = await self._reserve(keys=[keys.version_counter, keys.moves_counted], args=[*found])
        return adapter_name(domain, int(number))

    async def manifest(self, domain: DomainId, name: AdapterName) -> Manifest:
        """NotFound for an unknown version."""
        record = await self._redis.hget(DomainKeys(domain).versions, name)
        if record is None:
            raise NotFound(f"domain {domain!r} has no adapter {name[:100]!r}")
        return Manifest.from_json(record)

    async def versions(self, domain: DomainId) -> list[Manifest]:
        """Every registered version, oldest first."""
        records = await self._redis.hvals(DomainKeys(domain).versions)
        return sorted(map(Manifest.from_json, records), key=lambda manifest: manifest.number)

    async def lost(self, domain: DomainId) -> bool:
        """Whether Redis lacks versions that the artifact store knows to have been published (`shared.rebuild`).

        Unavailable where the artifact store does not answer, or has none of the versions that Redis knows.
        """
        if await self._redis.exists(DomainKeys(domain).versions):
            if not await asyncio.to_thread(self._artifacts.folders, domain):
                raise Unavailable(
                    f"the artifact store has none of the versions of domain {domain!r}: "
                    "is its volume mounted, and EVOREC_ARTIFACTS_URL what it was?"
                )
            return False
        return bool(await asyncio.to_thread(self._records.move_files, domain))

    async def refuse_where_lost(self, domain: DomainId) -> None:
        """Unavailable where Redis has lost versions, or where the artifact store cannot tell."""
        if await self.lost(domain):
            raise Unavailable(
                f"Redis has lost the versions of domain {domain!r}, the artifact store has them: "
                f"run `evorec registry rebuild`, then `evorec ingest --archive --domain {domain}`"
            )

    # -- aliases ----------------------------------------------------------------------------------

    async def publish(self, manifest: Manifest, *, expected: AdapterName | None, fencing_token: int) -> None:
        """Registers a committed version and makes it the champion, both or neither.

        NotFound where the artifact store does not hold it, LeaseLost where the token is not the newest, AliasMoved
        where the champion is not `expected`, Conflict where the name has another manifest, Unavailable where the
        artifact store does not answer. With any of them nothing has moved, here as in what else moves an alias.
        """
        await asyncio.to_thread(self._artifacts.manifest, manifest.domain, manifest.name)
        considered = [str(part) for position in manifest.range_end.items() for part in position]
        await self._move_to(
            manifest.domain,
            CHAMPION,
            manifest.name,
            expected,
            reason="publish",
            fencing_token=str(fencing_token),
            manifest=manifest.model_dump_json(),
            considered=considered,
        )

    async def promote(self, domain: DomainId, name: AdapterName, *, expected: AdapterName | None) -> None:
        """Makes a registered version the champion.

        AliasMoved where the champion is not `expected`, NotFound for an unknown version, Unavailable where the artifact
        store does not answer.
        """
        await self._move_to(domain, CHAMPION, name, expected, reason="promote")

    async def rollback(self, domain: DomainId, leaving: AdapterName | None = None) -> AdapterName:
        """Points the champion at its parent, or, where that is gone, at the nearest champion before it; returns that.

        With the champion that it is to leave, a rollback that has happened already succeeds and does nothing.
        Conflict where there is nothing to go back to, AliasMoved where the champion is a third one by now, NotFound
        where the one to leave is unknown, Unavailable where the artifact store does not answer.
        """
        current = await self.champion(domain)
        if current is None:
            raise Conflict(f"domain {domain!r} has no champion to roll back")
        left = await self.manifest(domain, leaving or current)
        known = {manifest.name for manifest in await self.versions(domain)}
        target = left.parent
        if target not in known:  # only then are the moves read: there are thousands, and a rollback is urgent
            target = next((name for name in await self._champions_before(domain, left.name) if name in known), None)
        if target is None:
            raise Conflict(f"adapter {left.name} of domain {domain!r} has no earlier version to go back to")
        await self._move_to(domain, CHAMPION, target, left.name, reason="rollback")
        return target

    async def aliases(self, domain: DomainId) -> dict[str, AdapterName]:
        found = await self._redis.hgetall(DomainKeys(domain).aliases)
        return {text(alias): AdapterName(text(name)) for alias, name in found.items()}

    async def champion(self, domain: DomainId) -> AdapterName | None:
        return (await self.aliases(domain)).get(CHAMPION)

    async def watermark(self, domain: DomainId) -> StreamPositions:
        """The end of the champion's stream range; nowhere else is it stored, so it moves with the alias."""
        champion = await self.champion(domain)
        return {} if champion is None else (await self.manifest(domain, champion)).range_end

    async def considered(self, domain: DomainId) -> StreamPositions:
        """How far any finished run has looked; the triggers count from there."""
        found = await self._redis.hgetall(DomainKeys(domain).considered)
        return {int(text(partition)): text(stream_id) for partition, stream_id in found.items()}

    async def set_considered(
        self, domain: DomainId, positions: StreamPositions, fencing_token: int | None = None
    ) -> None:
        """LeaseLost where a token is given and is not the newest."""
        keys = DomainKeys(domain)
        args = [str(part) for position in positions.items() for part in position]
        token = "" if fencing_token is None else fencing_token
        if not await self._consider(keys=[keys.considered, keys.fence], args=[token, *args]):
            raise LeaseLost(f"what domain {domain!r} has considered stays: another run has a newer fencing token")

    # -- routes -----------------------------------------------------------------------------------

    async def route(self, domain: DomainId) -> Route:
        record = await self._redis.get(DomainKeys(domain).route)
        route = Route.of_record(record)
        aliases = await self.aliases(domain)
        challenger = aliases.get(CHALLENGER)
        # One whose alias a release before this one has left behind is on trial no longer.
        on_trial = None if challenger == aliases.get(CHAMPION) else challenger
        return route.model_copy(update={"challenger": on_trial, "share": route.share if on_trial else 0.0})

    async def set_trial(self, domain: DomainId, challenger: AdapterName | None, share: float) -> None:
        """Puts the challenger, or none any more, on trial for a share of the users.

        NotFound for an unknown challenger, AliasMoved where somebody else begins or ends a trial in that moment,
        Unavailable where the artifact store does not answer.
        """
        current = (await self.aliases(domain)).get(CHALLENGER)
        given = share if challenger else 0.0
        if challenger == current:
            await self._change_route(domain, share=str(given))
        else:
            await self._move_to(domain, CHALLENGER, challenger, current, reason="route", share=str(given))
            await self._record_route(domain)

    async def set_paused(self, domain: DomainId, paused: bool) -> None:
        """Whether triggers start evolutions no longer."""
        await self._change_route(domain, paused="1" if paused else "0")

    async def _change_route(self, domain: DomainId, *, share: str = "", paused: str = "") -> None:
        await self._set_route(keys=[DomainKeys(domain).route], args=[share, paused, CHANGES_CHANNEL, domain])
        await self._record_route(domain)

    async def _record_route(self, domain: DomainId) -> None:
        record = (await self.route(domain)).record
        try:
            await asyncio.to_thread(self._records.record_route, domain, record)
        except (OSError, Unavailable) as error:
            # The route is set; its copy is for a rebuild alone.
            log.warning("route_not_recorded", domain=domain, error=described(error))

    async def _move_to(
        self,
        domain: DomainId,
        alias: str,
        to: AdapterName | None,
        expected: AdapterName | None,
        *,
        reason: str,
        fencing_token: str = "",
        manifest: str = "",
        share: str = "",
        considered: list[str] | None = None,
    ) -> None:
        keys = DomainKeys(domain)
        lowest = await asyncio.to_thread(self._records.last_move, domain)
        plain = [alias, expected or "", to or "", self._clock(), reason, lowest, CHANGES_CHANNEL, domain]
        status, current = await self._move(
            keys=[
                keys.aliases,
                keys.versions,
                keys.move_counter,
                keys.move_outbox,
                keys.fence,
                keys.considered,
                keys.route,
            ],
            args=[*plain, fencing_token, manifest, share, *(considered or [])],
        )
        _raise_unless_moved(status, f"alias {alias!r} of domain {domain!r}", to, expected, current)
        try:
            await self.record_moves(domain)
        except Exception as error:
            # The alias has moved: whoever is told otherwise moves it once more. The worker's tick records it.
            log.warning("alias_move_not_recorded", domain=domain, error=described(error))

    async def record_moves(self, domain: DomainId) -> None:
        """Writes what the outbox holds to the artifact store; what cannot be written waits for the next call."""
        outbox = DomainKeys(domain).move_outbox
        for record in map(text, await self._redis.lrange(outbox, 0, -1)):
            try:
                move = AliasMove.model_validate_json(record)
                await asyncio.to_thread(self._records.record_alias_move, domain, move)
            except (OSError, Unavailable) as error:
                log.warning("alias_move_not_recorded", domain=domain, error=described(error))
                return
            await self._redis.lrem(outbox, 1, record)

    async def _champions_before(self, domain: DomainId, name: AdapterName) -> list[AdapterName]:
        """What was champion before `name`, and before that, and so on; what a rollback has left is before nothing."""
        moves = await asyncio.to_thread(self._records.alias_moves, domain)
        before = {move.to: move.before for move in moves if move.alias == CHAMPION and move.reason != "rollback"}
        found: list[AdapterName] = []
        earlier = before.get(name)
        while earlier is not None and earlier not in (name, *found):
            found.append(earlier)
            earlier = before.get(earlier)
        return found


def _raise_unless_moved(
    status: str, what: str, to: AdapterName | None, expected: AdapterName | None, current: str
) -> None:
    if status == "lease":
        raise LeaseLost(f"{what} stays: another run has a newer fencing token")
    if status == "moved":
        raise AliasMoved(f"{what} points at {current or 'nothing'}, not at {expected or 'nothing'}")
    if status == "exists":
        raise Conflict(f"{what} stays: {to} is registered with another manifest")
    if status == "unknown":
        raise NotFound(f"{what} stays: there is no adapter {to!r}")


def _highest_number(
    artifacts: ArtifactStore, records: RegistryRecords, domain: DomainId, since: int
) -> tuple[int, int]:
    """The highest number of what the store holds and of what an alias pointed at since that move (a version may have
    been deleted since), and the last move that this has seen.
    """
    last = records.last_move(domain)
    moved = [name for move in records.alias_moves(domain, since) for name in (move.before, move.to) if name]
    held = artifacts.folders(domain)  # with half a version too: another one's files would join it there
    return max((split_adapter_name(name)[1] for name in [*held, *moved]), default=0), last
