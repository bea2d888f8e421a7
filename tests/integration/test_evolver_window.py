"""The window over real stores: what an evolution gets to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from evolver import window as window_module
from evolver.backend import Backend
from evolver.inputs import event_key
from evolver.splits import decayed_popularity
from evolver.window import load_window
from shared.panel import in_panel
from shared.popularity import shares_of
from shared.redis_keys import PartitionKeys
from shared.restore import Restorer
from shared.stream import InteractionLog
from shared.types import DomainId, Interaction, StreamPositions, UserId
from tests.integration.evolver_support import DOMAIN, ITEMS, USERS, fill, run

pytest_plugins = ("tests.integration.evolver_fixtures",)


def changed(backend: Backend, **settings: object) -> Backend:
    """The same stores under other settings."""
    return Backend.over(backend.redis, backend.settings.model_copy(update=settings))


async def bootstrap(backend: Backend) -> None:
    evolution = await run(backend)
    assert evolution.adapter, evolution


async def test_bootstrap_reads_everything(backend: Backend) -> None:
    accepted = await fill(backend)

    window = await load_window(backend, DOMAIN, seed=7)

    assert set(window.inputs.histories) == set(USERS)
    assert window.n_interactions == len(window.inputs.window) == accepted
    assert window.n_active_users == len(USERS)
    assert window.ranges == {0: ("0-0", (await backend.log.tail(DOMAIN))[0])}
    assert window.inputs.items == tuple(sorted(ITEMS, key=lambda item: item.item_id))
    assert window.inputs.panel == {user for user in USERS if in_panel(user, backend.settings.panel_share)}
    assert window.inputs.seed == 7
    shares = shares_of([*(window.inputs.popularity or {}).items()])
    events = window.inputs.histories
    assert shares == pytest.approx(decayed_popularity(events, backend.settings.popularity_half_life_days))


async def test_popularity_is_of_the_whole_domain(backend: Backend) -> None:
    """Of users, too, whose histories a window does not read."""
    small = changed(backend, max_evaluated_users=1)
    await fill(small)
    everything = (await load_window(small, DOMAIN, seed=0)).inputs
    await bootstrap(small)
    later = (await load_window(small, DOMAIN, seed=0)).inputs
    assert len(later.histories) < len(everything.histories)
    assert later.popularity == everything.popularity


@pytest.mark.parametrize("positive", ["purchase", "click"])
async def test_later_windows_hold_full_histories_of_active_users_and_some_of_the_others(
    backend: Backend, positive: str
) -> None:
    # Of the others so few that no active user is read by chance alone.
    backend = changed(backend, positive_events=frozenset({positive}), max_evaluated_users=1)
    await fill(backend, event_type=positive)
    await bootstrap(backend)
    champion_end = await backend.registry.watermark(DOMAIN)
    active = USERS[:5]
    accepted = await fill(backend, active, start=2_000.0, event_type=positive)

    window = await load_window(backend, DOMAIN, seed=0)

    assert window.n_interactions == accepted
    assert set(window.inputs.active_users()) == set(active)
    assert {len(window.inputs.histories[user]) for user in active} == {4}
    assert set(window.inputs.histories) > set(active)
    assert window.ranges[0][0] == champion_end[0]
    assert window.until == await backend.log.tail(DOMAIN)
    for events in window.inputs.histories.values():
        assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)


async def test_who_has_nothing_to_learn_takes_no_place_among_the_inactive(backend: Backend) -> None:
    """Most visitors of a shop only look, and some buy one item."""
    backend = changed(backend, max_evaluated_users=4, panel_share=0.5)
    buyers, active = USERS[:12], USERS[12:14]
    await fill(backend, (*buyers, *active))
    lookers = tuple(UserId(f"looker-{n}") for n in range(150))
    await fill(backend, lookers, event_type="view")
    once = [Interaction("", UserId(f"once-{n}"), ITEMS[0].item_id, 1_500.0, "purchase") for n in range(150)]
    await backend.log.append(DOMAIN, once)
    await bootstrap(backend)
    await fill(backend, active, start=2_000.0)

    inputs = (await load_window(backend, DOMAIN, seed=0)).inputs

    inactive = set(inputs.histories) - set(active)
    assert inactive <= set(buyers)
    panel = {user for user in buyers if in_panel(user, 0.5)}
    assert len(inactive & panel) == min(4, len(panel))
    assert len(inactive - panel) == min(6, len(buyers) - len(panel))


async def test_a_draw_looks_at_so_many_users_and_no_more(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "LOOKED_AT", 2)
    backend = changed(backend, max_evaluated_users=1, panel_share=0.0)
    await fill(backend, USERS[:1])
    lookers = tuple(UserId(f"looker-{n}") for n in range(50))
    await fill(backend, lookers, event_type="view")
    await bootstrap(backend)
    asked: list[UserId] = []
    read = backend.history.get_many

    async def get_many(domain: DomainId, users: Sequence[UserId]) -> dict[UserId, tuple[Interaction, ...]]:
        asked.extend(users)
        return await read(domain, users)

    monkeypatch.setattr(backend.history, "get_many", get_many)
    await load_window(backend, DOMAIN, seed=0)

    assert len(asked) == 2


async def test_a_window_knows_everybody_who_was_not_erased(backend: Backend) -> None:
    """Those too of whom it reads no history; nobody can be told to be gone while the archive alone has some."""
    small = changed(backend, max_evaluated_users=1)
    await fill(small)
    await bootstrap(small)
    await small.archive.extend(DOMAIN, await small.registry.versions(DOMAIN))
    await small.eraser.erase(DOMAIN, USERS[3])

    inputs = (await load_window(small, DOMAIN, seed=0)).inputs
    assert inputs.known == frozenset(USERS) - {USERS[3]}
    assert len(inputs.histories) < len(inputs.known)

    await Restorer(small.redis, small.settings, small.artifacts).remember_loss(DOMAIN, await small.log.tail(DOMAIN))
    assert (await load_window(small, DOMAIN, seed=0)).inputs.known is None


@pytest.mark.parametrize(("positive", "other"), [("purchase", "view"), ("click", "purchase")])
async def test_events_that_teach_nothing_are_left_out(backend: Backend, positive: str, other: str) -> None:
    """Only positive events are learned from; an item that left the catalog has no title to learn with."""
    backend = changed(backend, positive_events=frozenset({positive}))
    await fill(backend, USERS[:3], event_type=positive)
    await fill(backend, USERS[3:6], event_type=other)
    await backend.catalog.delete(DOMAIN, ITEMS[0].item_id)

    window = await load_window(backend, DOMAIN, seed=0)

    assert set(window.inputs.histories) == set(USERS[:3])
    events = [event for history in window.inputs.histories.values() for event in history]
    assert {event.event_type for event in events} == {positive}
    assert ITEMS[0].item_id not in {event.item_id for event in events}


LATE = Interaction("late", USERS[0], ITEMS[5].item_id, 500.0)


class LateLog(InteractionLog):
    """One more event arrives just after the end of the stream was read."""

    async def tail(self, domain: DomainId) -> StreamPositions:
        end = await super().tail(domain)
        await self.append(domain, [LATE])
        return end


async def test_what_arrives_after_the_start_belongs_to_the_next_window(backend: Backend) -> None:
    await fill(backend, USERS[:3])
    end = await backend.log.tail(DOMAIN)
    late = dataclasses.replace(backend, log=LateLog(backend.redis, backend.settings))

    window = await load_window(late, DOMAIN, seed=0)

    assert window.until == end
    assert not window.inputs.in_window(LATE)
    assert LATE.event_id not in {event.event_id for event in window.inputs.histories[USERS[0]]}
    assert await backend.log.count(DOMAIN, after=window.until) == 1


async def test_views_push_no_purchase_out_of_what_is_learned(backend: Backend) -> None:
    backend = changed(backend, max_history=5)
    await fill(backend)
    await bootstrap(backend)
    bought = [Interaction(f"buy {n}", USERS[0], ITEMS[n].item_id, 9_000.0 + n) for n in range(3)]
    views = [Interaction(f"view {n}", USERS[0], ITEMS[n].item_id, 9_100.0 + n, "view") for n in range(9)]
    await backend.log.append(DOMAIN, [*bought, *views])

    window = await load_window(backend, DOMAIN, seed=0)

    assert window.inputs.window == set(map(event_key, bought))
    assert [event.event_id for event in window.inputs.histories[USERS[0]]][-3:] == [event.event_id for event in bought]


async def test_users_whose_events_have_the_same_id_are_all_active(backend: Backend) -> None:
    """A window may be longer than event ids are kept."""
    backend = changed(backend, max_evaluated_users=1)
    await fill(backend)
    await bootstrap(backend)
    for user in USERS[:9]:
        await backend.redis.delete(PartitionKeys(DOMAIN, 0).event("order 1"))
        await backend.log.append(DOMAIN, [Interaction("order 1", user, ITEMS[5].item_id, 2_000.0)])

    window = await load_window(backend, DOMAIN, seed=0)

    assert (window.n_interactions, {*window.inputs.active_users()}) == (9, {*USERS[:9]})
    assert {*window.without(USERS[0]).inputs.active_users()} == {*USERS[1:9]}


async def test_an_old_event_whose_id_another_user_sends_anew_stays_old(backend: Backend) -> None:
    """Clients choose event ids, which are kept for a week."""
    old = Interaction("order 1", USERS[0], ITEMS[5].item_id, 1_500.0)
    await fill(backend)
    await backend.log.append(DOMAIN, [old])
    await bootstrap(backend)
    await backend.redis.delete(PartitionKeys(DOMAIN, 0).event("order 1"))
    await backend.log.append(DOMAIN, [dataclasses.replace(old, user_id=USERS[1], timestamp=2_000.0)])

    window = await load_window(backend, DOMAIN, seed=0)

    assert (window.n_interactions, window.inputs.active_users()) == (1, (USERS[1],))
    assert [event.event_id for event in window.inputs.histories[USERS[0]]][-1] == "order 1"
    assert not any(map(window.inputs.in_window, window.inputs.histories[USERS[0]]))
