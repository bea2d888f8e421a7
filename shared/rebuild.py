"""A domain from the artifact store alone, where Redis has lost it: catalog, versions, aliases, route, counters.

The registry comes back in one transaction: whoever looks sees it whole or not at all, and a rebuild that dies is
simply repeated. Interactions are not its matter: see `shared.restore`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import WatchError

from shared.archive import furthest
from shared.archive_files import ArchiveFiles
from shared.artifacts import ALIASES, ArtifactStore
from shared.catalog import CatalogStore
from shared.changes import announce
from shared.config import Settings
from shared.errors import Conflict, InvalidArtifact, NotFound
from shared.manifest import Manifest, split_adapter_name
from shared.redis_client import texts
from shared.redis_keys import DomainKeys
from shared.registry import CHAMPION, Registry
from shared.registry_records import AliasMove, RegistryRecords, Route
from shared.restore import Restorer
from shared.stream import InteractionLog
from shared.types import STREAM_START, AdapterName, DomainId, Item, StreamPositions, order_of

ITEMS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """What the artifact store has of a domain. `skipped`: (what, why) of all that is damaged."""

    versions: tuple[Manifest, ...]
    aliases: Mapping[str, AdapterName]
    route: Route
    items: tuple[Item, ...]
    archived: StreamPositions
    highest: int
    last_move: int
    skipped: tuple[tuple[str, str], ...]

    @property
    def ends(self) -> StreamPositions:
        """The last stream id that anything here knows, per partition."""
        learned = furthest(self.versions)
        partitions = {*learned, *self.archived}
        known = (learned, self.archived)
        return {p: max((at.get(p, STREAM_START) for at in known), key=order_of) for p in sorted(partitions)}


def look(artifacts: ArtifactStore, domain: DomainId) -> Found:
    """Reads and verifies everything; NotFound where there is nothing of the domain, Unavailable without an answer."""
    skipped: list[tuple[str, str]] = []
    names = artifacts.names(domain)
    skipped += [(name, "it has no manifest") for name in artifacts.files(domain) if _is_half(domain, name, names)]
    versions = tuple(version for name in names if (version := _version(artifacts, domain, name, skipped)))
    records = RegistryRecords(artifacts)
    moves = _moves(records, domain, skipped)
    files = ArchiveFiles(artifacts)
    spans = {partition: files.spans(domain, partition) for partition in files.partitions(domain)}
    items = _items(files, domain, skipped)
    if not (names or moves or items or any(spans.values())):
        raise NotFound(f"the artifact store has nothing of domain {domain!r}")
    mentioned = [*names, *(name for move in moves for name in (move.before, move.to) if name)]
    return Found(
        versions=versions,
        aliases=_aliases(moves, frozenset(version.name for version in versions), skipped),
        route=_route(records, domain, skipped),
        items=items,
        archived={p: max((span.until for span in found), key=order_of) for p, found in spans.items() if found},
        highest=max((split_adapter_name(name)[1] for name in mentioned), default=0),
        last_move=records.last_move(domain),
        skipped=tuple(skipped),
    )


class Rebuilder:
    def __init__(
        self, redis: Redis, settings: Settings, artifacts: ArtifactStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._artifacts = artifacts
        self._catalog = CatalogStore(redis)
        self._stream = InteractionLog(redis, settings)
        self._restorer = Restorer(redis, settings, artifacts)
        self._registry = Registry(redis, artifacts, clock)
        self._clock = clock

    async def knows(self, domain: DomainId) -> bool:
        """Whether Redis has the domain's registry."""
        return bool(await self._redis.exists(DomainKeys(domain).versions))

    async def lacking(self, domain: DomainId) -> Sequence[AdapterName]:
        """Published versions of the artifact store that a Redis with a registry does not know, oldest first: it has
        been restored from a state older than theirs.
        """
        published = await asyncio.to_thread(_published, self._artifacts, domain)
        keys = DomainKeys(domain)
        known = {*texts(await self._redis.hkeys(keys.versions)), *texts(await self._redis.smembers(keys.pruned))}
        unknown = [name for name in published if name not in known]
        # A rebuild has left damaged ones out.
        return [name for name in unknown if await asyncio.to_thread(_version, self._artifacts, domain, name, [])]

    async def rebuild(self, domain: DomainId) -> Found:
        """Brings the domain back; what came, and what was left out.

        Conflict where Redis knows the domain's versions, NotFound where the artifact store has nothing of it,
        Unavailable where that does not answer: versions that it does not give are not damaged.
        """
        if await self.knows(domain):
            raise _known(domain, await self.lacking(domain))
        found = await asyncio.to_thread(look, self._artifacts, domain)
        await self._put_missing(domain, found.items)
        for partition, end in found.ends.items():
            # Else a late clock would give new interactions ids that the champion counts as learned.
            await self._stream.continue_behind(domain, partition, end)
        await self._restorer.remember_loss(domain, found.archived)
        await self._register(domain, found)
        await self._registry.record_moves(domain)
        await announce(self._redis, domain)
        return found

    async def _put_missing(self, domain: DomainId, items: Sequence[Item]) -> None:
        """What has been put since the loss is newer than the copy."""
        for start in range(0, len(items), ITEMS_AT_ONCE):
            page = items[start : start + ITEMS_AT_ONCE]
            known = await self._catalog.get_many(domain, [item.item_id for item in page])
            await self._catalog.put(domain, [item for item in page if item.item_id not in known])
        await self._catalog.put(domain, ())  # the domain exists, even without an item

    async def _register(self, domain: DomainId, found: Found) -> None:
        keys, now = DomainKeys(domain), self._clock()
        counters = {
            keys.version_counter: found.highest,
            keys.evolution_counter: max((_evolution_number(version) for version in found.versions), default=0),
            keys.move_counter: found.last_move + len(found.aliases),
            # Values that no process remembers: of catalogs it has read, of leases it has held.
            keys.catalog_version: int(now),
            keys.fence: int(now),
        }
        async with self._redis.pipeline(transaction=True) as pipe:
            await pipe.watch(keys.versions, *counters)
            if await pipe.exists(keys.versions):
                raise _known(domain)
            known = [int(value or 0) for value in await pipe.mget(list(counters))]
            pipe.multi()  # type: ignore[no-untyped-call]
            for (key, least), value in zip(counters.items(), known, strict=True):
                pipe.set(key, max(least, value))
            for version in found.versions:
                pipe.hset(keys.versions, version.name, version.model_dump_json())
            for number, (alias, name) in enumerate(sorted(found.aliases.items()), found.last_move + 1):
                move = AliasMove(sequence=number, alias=alias, before=None, to=name, at=now, reason="rebuild")
                pipe.hset(keys.aliases, alias, name)
                pipe.rpush(keys.move_outbox, move.model_dump_json())
            for partition, end in furthest(found.versions).items():
                pipe.hset(keys.considered, str(partition), end)
            pipe.set(keys.route, found.route.record)
            try:
                await pipe.execute()
            except WatchError as error:
                raise _known(domain) from error


def older(lacking: Sequence[AdapterName]) -> str:
    """What to tell people where Redis lacks these versions."""
    return (
        f"Redis is older than the artifact store, which has {', '.join(lacking)} as well; "
        'docs/operations.md, "When Redis is lost", says what to do'
    )


def _known(domain: DomainId, lacking: Sequence[AdapterName] = ()) -> Conflict:
    more = f". {older(lacking)}" if lacking else ""
    return Conflict(f"Redis knows versions of domain {domain!r}; a rebuild touches only what it has lost{more}")


def _published(artifacts: ArtifactStore, domain: DomainId) -> list[AdapterName]:
    moved = {move.to for move in RegistryRecords(artifacts).alias_moves(domain)}
    return [name for name in artifacts.names(domain) if name in moved]


def _version(
    artifacts: ArtifactStore, domain: DomainId, name: AdapterName, skipped: list[tuple[str, str]]
) -> Manifest | None:
    try:
        artifacts.fetch(domain, name)
        return artifacts.manifest(domain, name)
    except (InvalidArtifact, NotFound) as error:
        skipped.append((name, str(error)))
        return None


def _is_half(domain: DomainId, name: str, whole: Sequence[AdapterName]) -> bool:
    try:
        return split_adapter_name(name)[0] == domain and name not in whole
    except NotFound:
        return False


def _moves(records: RegistryRecords, domain: DomainId, skipped: list[tuple[str, str]]) -> list[AliasMove]:
    moves = []
    for file in records.move_files(domain):
        try:
            moves.append(records.alias_move(domain, file))
        except InvalidArtifact as error:
            skipped.append((f"{ALIASES}/{file}", str(error)))
    return moves


def _aliases(
    moves: Sequence[AliasMove], intact: frozenset[AdapterName], skipped: list[tuple[str, str]]
) -> dict[str, AdapterName]:
    """Where each alias was moved last. A champion that is damaged gives way to the one before it, if there is one."""
    targets: dict[str, list[AdapterName | None]] = {}
    for move in moves:
        targets.setdefault(move.alias, []).append(move.to)
    aliases: dict[str, AdapterName] = {}
    for alias, line in targets.items():
        last = line[-1]
        if last is None:
            continue
        earlier = reversed(line) if alias == CHAMPION else [last]
        stand_in = next((name for name in earlier if name in intact), None)
        if stand_in is not None:
            aliases[alias] = stand_in
        if stand_in != last:
            skipped.append((f"alias {alias}", f"{last} is damaged or gone; now {stand_in or 'unset'}"))
    return aliases


def _route(records: RegistryRecords, domain: DomainId, skipped: list[tuple[str, str]]) -> Route:
    record = records.route(domain)
    try:
        return Route.of_record(record)
    except ValidationError as error:
        skipped.append(("route", str(error)))
        return Route()


def _items(files: ArchiveFiles, domain: DomainId, skipped: list[tuple[str, str]]) -> tuple[Item, ...]:
    try:
        return tuple(files.items(domain))
    except InvalidArtifact as error:
        skipped.append(("catalog", str(error)))
        return ()


def _evolution_number(version: Manifest) -> int:
    """Or evolutions to come would have the ids of those that made these versions, and take them for their own."""
    digits = re.search(r"(\d+)$", version.evolution_id)
    return int(digits[1]) if digits else 0
