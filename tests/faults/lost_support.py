"""A Redis to kill and to lose, and a domain whose every interaction is known beforehand."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from evolver.backend import Backend, open_backend
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.manifest import Manifest
from shared.redis_keys import DomainKeys, partition_of
from shared.redis_urls import redis_folder, socket_url
from shared.types import STREAM_START, AdapterName, DomainId, Interaction, Item, ItemId, UserId, order_of
from tests import factories
from tests.conftest import make_settings

SHOP = DomainId("shop")
ITEMS = tuple(Item(ItemId(f"i{n}"), f"Thing {n}") for n in range(30))
N_USERS = 40
ROOT = Path(__file__).parents[2]


class DoomedRedis:
    """An embedded Redis that can be killed, and lost with all its files."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.settings = make_settings(state_dir=folder, **changes)
        self._server = EmbeddedRedis(self.settings)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def lose(self) -> None:
        """SIGKILL, and everything that it had on disk goes; an empty one takes its place."""
        assert self._server.pid is not None
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.stop()
        shutil.rmtree(redis_folder(self.settings))
        self._server.start()

    @property
    def env(self) -> dict[str, str]:
        """What makes a process of ours use this Redis and its state directory."""
        changed = self.settings.model_dump(mode="json", include=set(_PASSED))
        own = {f"EVOREC_{name.upper()}": str(value) for name, value in changed.items()}
        return {**os.environ, **own, "EVOREC_REDIS_URL": socket_url(self.settings), "COLUMNS": "150"}

    @asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        async with open_backend(self.settings) as backend:
            yield backend

    async def command(self, *arguments: str) -> Any:
        """An `evorec` command with --json: its answer."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deploy.cli.main", *arguments, "--json",
            env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        answer, notes = await process.communicate()
        assert process.returncode == 0, notes.decode()
        return json.loads(answer)

    async def killed(self, what: str, after_s: float, *, at_file: int | None = None) -> bool:
        """The work of `tests.faults.archive_process`, killed so long after its begin; False where it had ended.

        `at_file`: killed as soon as that many files, staged or not, have come into being in the archive.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.archive_process", what, SHOP,
            env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begin\n", (await process.communicate())[1].decode()
        if at_file is not None:
            await asyncio.to_thread(self._kill_at_file, process.pid, at_file)
        try:
            await asyncio.wait_for(process.wait(), after_s)
        except TimeoutError:
            # Not process.kill(): that may reap a child which has just ended, and asyncio would not learn how.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        _, notes = await process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), notes.decode()
        return process.returncode != 0

    def _kill_at_file(self, pid: int, number: int) -> None:
        """Within a file's write, with luck: it takes a few milliseconds, a look at the folders a fraction of one."""
        folder = self.settings.state_dir / "artifacts" / SHOP / "archive"
        process = psutil.Process(pid)
        before, seen = set(folder.glob("[0-9]*/*")), set[Path]()
        while len(seen) < number and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            seen |= {path for path in [*folder.glob("[0-9]*/*"), *folder.glob("[0-9]*/.*")] if path not in before}
        if len(seen) >= number:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


_PASSED = ("state_dir", "partitions", "kept_versions", "max_history", "event_id_ttl_s", "base_model")


@dataclass
class Shop:
    """A domain that is used at random (seeded), and what it must hold."""

    backend: Backend
    rng: random.Random
    appended: dict[str, Interaction] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)

    @property
    def settings(self) -> Settings:
        return self.backend.settings

    async def open(self) -> None:
        await self.backend.catalog.put(SHOP, ITEMS)

    async def append(self, n: int) -> None:
        """`n` interactions that nobody has sent before."""
        start = len(self.appended)
        events = [
            Interaction(
                event_id=f"e{start + k}",
                user_id=UserId(f"u{self.rng.randrange(N_USERS)}"),
                item_id=self.rng.choice(ITEMS).item_id,
                timestamp=factories.T0 + self.rng.randrange(1000),
                event_type=self.rng.choice(("purchase", "purchase", "click")),
            )
            for k in range(n)
        ]
        appended = await self.backend.log.append(SHOP, events)
        assert appended.accepted == n
        self.appended |= {event.event_id: event for event in events}

    async def publish(self) -> Manifest:
        """A version that has learned from the champion's range end on, up to now."""
        registry, log = self.backend.registry, self.backend.log
        name = await registry.reserve_name(SHOP)
        before, after = await registry.champion(SHOP), await registry.watermark(SHOP)
        ranges = {p: (after.get(p, STREAM_START), end) for p, end in (await log.tail(SHOP)).items()}
        ranges = {p: (a, max(a, end, key=order_of)) for p, (a, end) in ranges.items()}
        number = int(name.rpartition("-v")[2])
        version = factories.manifest(number, domain=SHOP, parent=before, stream_ranges=ranges)
        version = await asyncio.to_thread(factories.commit, self.backend.artifacts, version)
        token = int(await self.backend.redis.get(DomainKeys(SHOP).fence) or 0)
        await registry.publish(version, expected=before, fencing_token=token)
        return version

    async def promote(self) -> None:
        """Any version becomes the champion, as an operator may have it."""
        versions = [version.name for version in await self.backend.registry.versions(SHOP)]
        champion = await self.backend.registry.champion(SHOP)
        await self.backend.registry.promote(SHOP, self.rng.choice(versions), expected=champion)

    async def erase(self) -> None:
        user = UserId(f"u{self.rng.randrange(N_USERS)}")
        await self.backend.eraser.erase(SHOP, user)
        self.erased |= {id_ for id_, event in self.appended.items() if event.user_id == user}

    @property
    def expected(self) -> set[str]:
        """Event ids that must be somewhere, once."""
        return self.appended.keys() - self.erased

    def archived(self) -> dict[int, list[Interaction]]:
        """Every visible file, read to its end."""
        files = self.backend.archive_files
        return {
            p: [event for span in files.spans(SHOP, p) for batch in files.read(SHOP, p, span) for event in batch]
            for p in range(self.settings.partitions)
        }

    async def streamed(self) -> dict[int, list[Interaction]]:
        return {
            p: [event async for event in self.backend.log.entries(SHOP, p, STREAM_START, "+")]
            for p in range(self.settings.partitions)
        }

    async def check(self) -> int:
        """Nothing is lost, nothing is twice, and every kept version's window is there; how many things were checked."""
        archived, streamed = await asyncio.to_thread(self.archived), await self.streamed()
        everything: set[str] = set()
        for partition in range(self.settings.partitions):
            _check_order(archived[partition], partition, self.settings)
            _check_order(streamed[partition], partition, self.settings)
            known = {event.stream_id: event.event_id for event in archived[partition]}
            for event in streamed[partition]:
                assert known.setdefault(event.stream_id, event.event_id) == event.event_id
            assert len(set(known.values())) == len(known), "an interaction stands at two stream ids"
            everything |= set(known.values())
        assert everything == self.expected
        versions = await self.backend.registry.versions(SHOP)
        for version in versions:
            _check_window(version, archived, streamed)
        return len(everything) + len(versions)

    async def aliases(self) -> Mapping[str, AdapterName]:
        return await self.backend.registry.aliases(SHOP)


def _check_order(events: list[Interaction], partition: int, settings: Settings) -> None:
    order = [order_of(event.stream_id) for event in events]
    assert order == sorted(set(order)), "not in the stream's order, or an entry twice"
    assert all(partition_of(event.user_id, settings.partitions) == partition for event in events)


def _check_window(
    version: Manifest, archived: Mapping[int, list[Interaction]], streamed: Mapping[int, list[Interaction]]
) -> None:
    """All that the version has learned from, and all that came later, is still in the stream."""
    for partition, (after, _) in version.stream_ranges.items():
        in_stream = {event.stream_id for event in streamed[partition]}
        missing = [e for e in archived[partition] if order_of(e.stream_id) > order_of(after)]
        assert in_stream.issuperset(event.stream_id for event in missing), f"{version.name} lacks its window"
