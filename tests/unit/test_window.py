"""The window's bounds and the sample of inactive users: arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable

from evolver.window import Bounds, inactive_draws
from shared.config import Settings
from shared.panel import in_panel
from shared.types import AdapterName, Interaction, ItemId, UserId

SETTINGS = Settings(panel_share=0.1, max_evaluated_users=20, _env_file=None)
FIRST, SECOND = AdapterName("shop-v000001"), AdapterName("shop-v000002")
USERS = [UserId(f"user-{n}") for n in range(1000)]


def sample_inactive(
    known: Iterable[UserId], active: frozenset[UserId], seed: int, champion: AdapterName
) -> tuple[UserId, ...]:
    """Who is drawn where everybody has something to learn."""
    draws = inactive_draws(known, active, SETTINGS, seed, champion)
    return tuple(user for draw in draws for user in draw.users[: draw.wanted])


def event(stream_id: str) -> Interaction:
    return Interaction("e", UserId("u"), ItemId("i"), 0.0, stream_id=stream_id)


def test_window_is_open_at_its_start_and_closed_at_its_end() -> None:
    bounds = Bounds(after={0: "9-5"}, until={0: "10-2"}, partitions=1)

    assert [bounds.holds(event(at)) for at in ("9-5", "9-6", "10-2", "10-3")] == [False, True, True, False]
    assert [bounds.started(event(at)) for at in ("1-0", "10-2", "10-3")] == [True, True, False]
    assert bounds.ranges() == {0: ("9-5", "10-2")}


def test_window_without_a_champion_begins_with_the_stream() -> None:
    bounds = Bounds(after={}, until={0: "10-2"}, partitions=1)

    assert bounds.holds(event("1-0"))
    assert bounds.ranges() == {0: ("0-0", "10-2")}


def test_sample_has_as_many_of_the_panel_as_of_the_others() -> None:
    sample = sample_inactive(USERS, frozenset(), 1, FIRST)

    assert sum(in_panel(user, 0.1) for user in sample) == 20
    assert len(sample) == len(set(sample)) == 40


def test_sample_is_seeded_and_does_not_depend_on_the_order_of_users() -> None:
    first = sample_inactive(USERS, frozenset(), 1, FIRST)

    assert sample_inactive(reversed(USERS), frozenset(), 1, FIRST) == first
    assert sample_inactive(USERS, frozenset(), 2, FIRST) != first


def test_sample_holds_no_active_user() -> None:
    active = frozenset(USERS[::2])

    assert active.isdisjoint(sample_inactive(USERS, active, 1, FIRST))
    assert sample_inactive(USERS, frozenset(USERS), 1, FIRST) == ()


def test_others_are_other_ones_after_each_champion_and_the_panel_stays() -> None:
    first, second = (set(sample_inactive(USERS, frozenset(), 1, champion)) for champion in (FIRST, SECOND))
    panel = {user for user in USERS if in_panel(user, 0.1)}

    assert first & panel == second & panel
    assert len(first & second - panel) < 5


def test_there_are_three_times_as_many_others_as_active_users() -> None:
    active = frozenset(USERS[:100])
    sample = sample_inactive(USERS, active, 1, FIRST)

    assert sum(not in_panel(user, 0.1) for user in sample) == 300
    assert sum(in_panel(user, 0.1) for user in sample) == 20
