"""Promise 7: at most one champion, whole and the end of one line of moves, under any interleaving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from redis.exceptions import RedisError

from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.errors import AliasMoved, Conflict, EvorecError, LeaseLost, NotFound
from shared.manifest import Manifest
from shared.redis_keys import DomainKeys
from shared.registry import CHALLENGER, CHAMPION, Registry
from shared.registry_records import AliasMove, RegistryRecords
from shared.retention import Retention
from shared.types import AdapterName
from tests.factories import BEAUTY, commit, manifest
from tests.faults.conftest import Tell
from tests.faults.cutting_proxy import cut_after
from tests.faults.machines import RedisMachine, explore

KEYS = DomainKeys(BEAUTY)
WORKERS = st.sampled_from([0, 1])


@dataclass
class Worker:
    """What a worker has found and made so far; it may have been overtaken since."""

    token: int = 0
    parent: AdapterName | None = None
    version: Manifest | None = None


class RegistryMachine(RedisMachine):
    """Two workers that look, commit and publish in steps; an operator who promotes, rolls back, routes and prunes.

    `known`: every version that was ever published or registered; `names`: every name that was ever given out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder.mkdir(parents=True, exist_ok=True)
        state_dir = self.folder / f"example-{sum(1 for _ in self.folder.iterdir())}"
        self.artifacts = ArtifactStore(self.settings.model_copy(update={"state_dir": state_dir}))
        self.registry = Registry(self.client, self.artifacts)
        self.retention = Retention(self.client, self.artifacts)
        self.workers = [Worker(), Worker()]
        self.names: list[AdapterName] = []

    # -- workers ----------------------------------------------------------------------------------

    @initialize()
    def bootstrap(self) -> None:
        for _ in range(3):
            self.take_lease(0)
            self.look(0)
            self.commit(0)
            self.publish(0)

    @rule(number=WORKERS)
    def take_lease(self, number: int) -> None:
        self.workers[number] = Worker(token=self.run(self.client.incr(KEYS.fence)))

    @rule(number=WORKERS)
    def look(self, number: int) -> None:
        worker = self.workers[number]
        worker.parent, worker.version = self.champion(), None

    @rule(number=WORKERS)
    def commit(self, number: int) -> None:
        """The artifact is there, the registry does not know it."""
        worker = self.workers[number]
        name = self.run(self.registry.reserve_name(BEAUTY))
        assert name not in self.names, "a name was given out twice"
        self.names.append(name)
        worker.version = commit(self.artifacts, manifest(int(name[-6:]), parent=worker.parent))

    @rule(number=WORKERS)
    def crash(self, number: int) -> None:
        """It forgets all; what it committed stays, unpublished."""
        self.workers[number] = Worker()
        self.done["workers crashed"] += 1

    @precondition(lambda self: any(worker.version for worker in self.workers))
    @rule(number=WORKERS)
    def publish(self, number: int) -> None:
        worker = self.workers[number]
        if worker.version is None:
            return
        stale = worker.token != int(self.run(self.client.get(KEYS.fence)) or 0)
        current = self.champion()
        error = self.outcome_of(self._publish(worker, self.registry))
        if stale:
            assert isinstance(error, LeaseLost), "an old token has published"
        elif current not in (worker.parent, worker.version.name):
            assert isinstance(error, AliasMoved)
        elif error is None:
            assert self.champion() == worker.version.name
        # A version that was pruned since its publication cannot come back under its name.
        assert error is None or isinstance(error, (LeaseLost, AliasMoved, Conflict, NotFound))

    async def _publish(self, worker: Worker, registry: Registry) -> None:
        assert worker.version is not None
        await registry.publish(worker.version, expected=worker.parent, fencing_token=worker.token)

    @precondition(lambda self: any(worker.version for worker in self.workers))
    @rule(number=WORKERS, sent=st.integers(200, 6000), answered=st.integers(1, 600))
    def publish_over_a_line_that_breaks(self, number: int, sent: int, answered: int) -> None:
        """Whether it has happened, the worker does not know; nothing may be half done."""
        if self.workers[number].version is not None:
            self.run(self._publish_broken(self.workers[number], sent, answered))

    async def _publish_broken(self, worker: Worker, sent: int, answered: int) -> None:
        async with cut_after(self.settings, self.folder, sent, answered) as client:
            try:
                await self._publish(worker, Registry(client, self.artifacts))
            except (RedisError, OSError):
                self.done["lines cut"] += 1
            except EvorecError:
                self.done["refused"] += 1

    # -- the operator -----------------------------------------------------------------------------

    @rule(data=st.data(), believed=st.booleans())
    def promote(self, data: st.DataObject, believed: bool) -> None:
        to = data.draw(st.sampled_from(self.names))
        current = self.champion()
        expected = current if believed else data.draw(st.sampled_from(self.names))
        registered = to in self.versions()
        error = self.outcome_of(self.registry.promote(BEAUTY, to, expected=expected))
        if registered and current in (expected, to):
            assert error is None
            assert self.champion() == to
        else:
            assert isinstance(error, (AliasMoved, NotFound))
            assert self.champion() == current

    @rule()
    def roll_back(self) -> None:
        current, versions = self.champion(), self.versions()
        error = self.outcome_of(self.registry.rollback(BEAUTY))
        after = self.champion()
        if error is None:
            assert after != current
            assert after in versions
        else:
            assert isinstance(error, Conflict)
            assert after == current
        self.done["rollbacks"] += error is None

    @rule(data=st.data(), share=st.floats(0, 1), paused=st.booleans())
    def route(self, data: st.DataObject, share: float, paused: bool) -> None:
        challenger = data.draw(st.sampled_from([None, *self.names]))
        aliases, before = self.aliases(), self.run(self.registry.route(BEAUTY))
        error = self.outcome_of(self.registry.set_trial(BEAUTY, challenger, share))
        self.run(self.registry.set_paused(BEAUTY, paused))
        route = self.run(self.registry.route(BEAUTY))
        if challenger is None or challenger in self.versions():
            assert error is None
            on_trial = None if challenger == self.champion() else challenger
            assert route.challenger == on_trial
            assert route.share == (pytest.approx(share) if on_trial else 0.0)  # Lua writes 14 digits
        else:
            assert isinstance(error, NotFound)
            assert (self.aliases(), route.challenger, route.share) == (aliases, before.challenger, before.share)
        assert route.paused == paused

    @rule(keep=st.integers(1, 4))
    def prune(self, keep: int) -> None:
        before, aliased = self.versions(), set(self.aliases().values())
        dropped = set(self.run(self.retention.prune(BEAUTY, keep)))
        assert dropped.isdisjoint(aliased)
        assert dropped.isdisjoint(before[-keep:])
        assert self.versions() == [name for name in before if name not in dropped]
        self.done["versions pruned"] += len(dropped)

    @rule(data=st.data())
    def all_at_once(self, data: st.DataObject) -> None:
        """Whoever loses is told so, by an error made for it."""
        names = data.draw(st.lists(st.sampled_from(self.names), min_size=2, max_size=3))
        current = self.champion()
        work = [self.registry.promote(BEAUTY, name, expected=current) for name in names]
        work += [self._publish(worker, self.registry) for worker in self.workers if worker.version]

        async def together() -> list[object]:
            return await asyncio.gather(*work, self.registry.rollback(BEAUTY), return_exceptions=True)

        ended = self.run(together())
        assert all(result is None or isinstance(result, (str, EvorecError)) for result in ended)
        self.done["moves at once"] += len(ended)

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def the_champion_is_whole_and_its_range_is_the_watermark(self) -> None:
        champion = self.champion()
        if champion is not None:
            assert champion in self.versions()
            self.artifacts.fetch(BEAUTY, champion)
            assert self.run(self.registry.watermark(BEAUTY)) == self.artifacts.manifest(BEAUTY, champion).range_end
        self.done["steps"] += 1

    @invariant()
    def the_log_of_moves_leads_to_the_aliases(self) -> None:
        """What the artifact store has not got yet waits in the outbox."""
        waiting = [
            AliasMove.model_validate_json(each) for each in self.run(self.client.lrange(KEYS.move_outbox, 0, -1))
        ]
        moves = {move.sequence: move for move in [*RegistryRecords(self.artifacts).alias_moves(BEAUTY), *waiting]}
        assert sorted(moves) == list(range(1, len(moves) + 1))
        replayed: dict[str, AdapterName | None] = {}
        for _, move in sorted(moves.items()):
            assert move.before == replayed.get(move.alias), "a move was overwritten unseen"
            replayed[move.alias] = move.to
        assert {alias: name for alias, name in replayed.items() if name is not None} == self.aliases()
        assert self.aliases().keys() <= {CHAMPION, CHALLENGER}

    @invariant()
    def versions_are_committed_ones(self) -> None:
        assert set(self.versions()) <= set(self.names)
        assert set(self.versions()) <= set(self.artifacts.names(BEAUTY))

    def champion(self) -> AdapterName | None:
        return self.run(self.registry.champion(BEAUTY))

    def aliases(self) -> dict[str, AdapterName]:
        return self.run(self.registry.aliases(BEAUTY))

    def versions(self) -> list[AdapterName]:
        return [version.name for version in self.run(self.registry.versions(BEAUTY))]

    def outcome_of(self, work: Awaitable[object]) -> EvorecError | None:
        try:
            self.run(work)
        except EvorecError as error:
            self.done["refused"] += 1
            return error
        return None


@pytest.mark.timeout(1800)
def test_the_registry_has_one_champion_whatever_happens(
    redis_settings: Settings, tmp_path: Path, full: bool, outcome: Tell
) -> None:
    done = explore(RegistryMachine, redis_settings, tmp_path, full=full)
    steps, examples = done.pop("steps"), done.pop("examples")
    assert done["lines cut"] > 0
    assert done["rollbacks"] > 0
    outcome(
        7,
        f"At most one champion, whole, at the end of one unbroken line of moves ({examples:,} sequences)",
        faults=done,
        cases=steps,
    )
