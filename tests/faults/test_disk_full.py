"""Promise 3: a disk that is full while publishing fails the run, says so, and changes nothing that can be seen."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.config import Settings
from shared.errors import Unavailable
from shared.evolutions import Evolution, EvolutionStatus
from shared.redis_keys import DomainKeys
from shared.registry_records import RegistryRecords
from shared.types import STREAM_START, UserId
from tests.factories import BEAUTY, manifest
from tests.faults.conftest import Tell
from tests.faults.evolution_line import SHOP, TIMEOUT_S, Line, open_line
from tests.integration.evolver_support import finished, until
from tests.integration.test_archive import World

DISK_MIB = 32
PAGE = 4096  # what a file takes on such a disk at least
BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, which root alone may mount."""
    folder.mkdir(parents=True, exist_ok=True)
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    mount = [*root, "mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=777", "evorec-faults", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk needs root or sudo without a password: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*root, "umount", "-l", str(folder)], check=True)


def fill(disk: Path, but_pages: int = 0) -> None:
    """Leave so many pages free."""
    (disk / BALLAST).unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail
    with (disk / BALLAST).open("wb") as ballast:
        for _ in range(free - but_pages):
            ballast.write(bytes(PAGE))
    assert os.statvfs(disk).f_bavail == but_pages


def empty(disk: Path) -> None:
    (disk / BALLAST).unlink()


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disk")) as disk:
        yield disk


@pytest.fixture
async def line(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random, full: bool, disk: Path
) -> AsyncIterator[Line]:
    """Its artifacts are on the small disk. At full size the files are those of the real pipeline."""
    async with open_line(tmp_path_factory.mktemp("line"), rng, real=full, artifacts=disk) as line:
        line.worker.start()
        await line.check([], await line.published(await line.begun()))
        yield line


async def test_a_full_artifact_disk_fails_the_run_and_changes_nothing(line: Line, disk: Path, outcome: Tell) -> None:
    checked = filled = 0
    for pages in (0, 1, 3):
        fill(disk, pages)
        filled += 1
        failed = await asked(line)
        checked += await unchanged(line, failed, f"the disk of {disk} is full")
        empty(disk)
    known = await line.backend.registry.versions(SHOP)
    done = await asked(line)
    checked += await line.check(known, done)
    outcome(
        3,
        "a run whose artifact disk is full fails and says where; the champion stays, and with space the next publishes",
        faults={"disk full while publishing (tmpfs)": filled},
        cases=checked,
    )


async def test_a_full_disk_for_work_fails_the_run_and_changes_nothing(line: Line, outcome: Tell) -> None:
    """The files of a run are written before anything of it is published."""
    with small_disk(line.backend.settings.state_dir / "work") as work:
        fill(work)
        failed = await asked(line)
        checked = await unchanged(line, failed, f"the disk of {work}")
        empty(work)
        known = await line.backend.registry.versions(SHOP)
        checked += await line.check(known, await asked(line))
    outcome(
        3,
        "a run whose own files do not fit on the disk fails and says where, and with space the next publishes",
        faults={"disk full at the end of the training (tmpfs)": 1},
        cases=checked,
    )


async def test_an_alias_move_that_finds_the_disk_full_is_recorded_later(line: Line, disk: Path, outcome: Tell) -> None:
    """The artifact takes the last page, so the record of the alias's move finds none."""
    redis, outbox = line.backend.redis, DomainKeys(SHOP).move_outbox
    known = await line.backend.registry.versions(SHOP)
    moves = RegistryRecords(line.backend.artifacts).alias_moves(SHOP)
    pages = sum(-(-path.stat().st_size // PAGE) for path in (line.folder / known[-1].name).iterdir())
    tried = 0
    for spare in range(-3, 5):
        fill(disk, pages + spare)
        tried += 1
        done = await asked(line)
        if done.status is EvolutionStatus.published:
            break
        await unchanged(line, done, f"the disk of {disk} is full")
    assert await redis.llen(outbox) == 1
    assert RegistryRecords(line.backend.artifacts).alias_moves(SHOP) == moves
    assert await line.backend.registry.champion(SHOP) == done.adapter
    assert len(list((line.folder / "aliases").iterdir())) == len(moves)  # no half-written record

    empty(disk)

    async def recorded() -> bool:
        return not await redis.llen(outbox)

    await until(recorded, "the record of the move", TIMEOUT_S)
    assert [move.to for move in RegistryRecords(line.backend.artifacts).alias_moves(SHOP)] == [
        known[-1].name,
        done.adapter,
    ]
    outcome(
        3,
        "an alias that moves while the disk is full has moved; the tick writes its record once there is space",
        faults={"disk full while publishing (tmpfs)": tried},
        cases=5 + await line.check(known, done),
    )


async def test_an_erasure_that_finds_the_disk_full_can_be_repeated(
    redis: Redis, redis_settings: Settings, disk: Path, outcome: Tell
) -> None:
    """The mark fits, the archive's file does not."""
    world = World(redis, redis_settings.model_copy(update={"artifacts_url": f"file://{disk}"}))
    await world.append(*(f"u{n % 7}" for n in range(2000)))
    events = await world.streamed()
    version = manifest(1, stream_ranges={0: (STREAM_START, events[-1].stream_id)})
    await world.archive.extend(BEAUTY, [version])
    tried, user = 0, UserId("u3")
    for pages in (0, 1, 2):
        fill(disk, pages)
        tried += 1
        with pytest.raises(Unavailable, match="not all is erased"):
            await world.eraser.erase(BEAUTY, user)
        assert world.archived() == events
    assert await world.history.get(BEAUTY, user) == ()
    empty(disk)
    theirs = {event.stream_id for event in events if event.user_id == user}
    assert await world.eraser.erase(BEAUTY, user) == theirs
    assert world.archived() == [event for event in events if event.user_id != user]
    outcome(
        3,
        "an erasure that finds the disk full is answered with 503 and leaves every file whole; repeated, it erases all",
        faults={"disk full while an archive file is rewritten (tmpfs)": tried},
        cases=tried + len(events),
    )


async def asked(line: Line) -> Evolution:
    """The end of an evolution with new interactions that somebody asked for: triggers wait after a failure."""
    active = await line.backend.evolutions.active(SHOP)
    assert active is None
    evolution = await line.backend.evolutions.create(SHOP)
    await line.interact()
    return await finished(line.backend, evolution.id, TIMEOUT_S)


async def unchanged(line: Line, failed: Evolution, reason: str) -> int:
    """All that must hold after a run that the full disk has ended; how many things were looked at."""
    await line.quiet()
    registry, artifacts = line.backend.registry, line.backend.artifacts
    versions = await registry.versions(SHOP)
    champion = await registry.champion(SHOP)
    assert champion is not None
    holds = {
        "it has failed": failed.status is EvolutionStatus.failed,
        "it says where": reason in (failed.error or ""),
        "the champion is the newest version": champion == versions[-1].name,
        "no other version can be seen": artifacts.names(SHOP) == [manifest.name for manifest in versions],
        "the champion loads": artifacts.fetch(SHOP, champion).is_dir(),
        "the watermark is the champion's": await registry.watermark(SHOP) == versions[-1].range_end,
        "considered is the champion's": await registry.considered(SHOP) == versions[-1].range_end,
        "nothing staged is left": not line.staged(),
        "no evolution runs": await line.backend.evolutions.active(SHOP) is None,
    }
    wrong = [what for what, held in holds.items() if not held]
    assert not wrong, f"{wrong}: {failed}\n{line.worker.log}"
    return len(holds)
