"""Who is held out: nobody's answer is seen, and nobody who chooses is asked afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evolver.inputs import EvolutionInputs, event_key
from evolver.splits import Split, split, visible_popularity
from shared.popularity import log2_weight
from shared.types import DomainId, Interaction, Item, ItemId, UserId
from tests.factories import interaction

ITEMS = tuple(Item(ItemId(f"i{number}"), f"title {number}") for number in range(9))
N_USERS, N_PANEL, PAST = 60, 24, 4


def _inputs() -> EvolutionInputs:
    """Every second user has one more interaction, in the window; the first ones are the panel."""
    histories: dict[UserId, tuple[Interaction, ...]] = {}
    for number in range(N_USERS):
        user = f"user-{number:02d}"
        count = PAST + (number % 2 == 0)
        histories[UserId(user)] = tuple(
            interaction(user, f"i{n}", at=n, event_id=f"{number}-{n}") for n in range(count)
        )
    window = {event_key(event) for events in histories.values() for event in events[PAST:]}
    return EvolutionInputs(DomainId("shop"), ITEMS, histories, frozenset(window), frozenset([*histories][:N_PANEL]), 3)


def _users(parts: Split, name: str) -> set[UserId]:
    return {target.user_id for target in getattr(parts, name)}


def test_inactive_validation_users_are_of_the_panel_and_not_asked_afterwards() -> None:
    inputs = _inputs()
    parts = split(inputs, max_panel=N_PANEL, max_validation=100)
    quiet, asked = _users(parts, "quiet_validation"), _users(parts, "panel")
    assert 0 < len(quiet) == min(N_PANEL // 2 // 4, len(parts.validation))
    assert quiet <= inputs.panel - parts.active
    assert asked == inputs.panel - quiet
    assert not any(target.active for target in parts.quiet_validation)


def test_few_validation_users_are_few_of_both_groups() -> None:
    parts = split(_inputs(), max_panel=N_PANEL, max_validation=2)
    assert (len(parts.validation), len(parts.quiet_validation)) == (2, 2)


def test_inactive_users_never_outvote_the_active_ones() -> None:
    """A small window has few to validate on, a large panel many who were away (ADR 0018)."""
    inputs = _inputs()
    quiet = [user for user in inputs.histories if user not in inputs.panel][4:]
    few = {user: events for user, events in inputs.histories.items() if user not in quiet}
    parts = split(replace(inputs, histories=few), max_panel=N_PANEL, max_validation=100)
    assert (len(parts.validation), len(parts.quiet_validation)) == (1, 1)


def test_a_few_active_users_are_enough_to_validate_on() -> None:
    """Nobody to validate on means an update that is trained and thrown away."""
    inputs = _inputs()
    for n_others, expected in ((3, 1), (2, 1), (1, 0)):
        quiet = [user for user in inputs.histories if user not in inputs.panel][n_others * 2 :]
        few = {user: events for user, events in inputs.histories.items() if user not in quiet}
        parts = split(replace(inputs, histories=few), max_panel=N_PANEL, max_validation=10)
        assert len(parts.validation) == expected
        assert parts.trainable & parts.active


def test_every_held_out_interaction_is_invisible_and_its_user_not_trained_on() -> None:
    inputs = _inputs()
    parts = split(inputs, max_panel=6, max_validation=4)
    held = inputs.panel | _users(parts, "validation")
    for user, events in inputs.histories.items():
        assert parts.visible[user] == (events[:-1] if user in held else events)
        assert (user in parts.trainable) is (user not in held)
    for target in (*parts.panel, *parts.validation, *parts.quiet_validation):
        assert (*target.before, inputs.histories[target.user_id][-1]) == inputs.histories[target.user_id]
        assert target.item_id == inputs.histories[target.user_id][-1].item_id


@pytest.mark.parametrize("limit", [1, 5, 6])
def test_no_more_panel_users_are_asked_than_the_limit_says(limit: int) -> None:
    parts = split(_inputs(), max_panel=limit, max_validation=4)
    assert len(parts.panel) == limit
    assert sum(target.active for target in parts.panel) == limit - limit // 2


def test_everybody_active_as_at_the_bootstrap_leaves_all_of_the_panel_to_be_asked() -> None:
    inputs = _inputs()
    everything = frozenset(event_key(event) for events in inputs.histories.values() for event in events)
    parts = split(
        EvolutionInputs(inputs.domain, inputs.items, inputs.histories, everything, inputs.panel, inputs.seed),
        max_panel=N_PANEL,
        max_validation=100,
    )
    assert parts.quiet_validation == ()
    assert _users(parts, "panel") == inputs.panel


def _repeating() -> EvolutionInputs:
    """Of four users like each other's the first is the panel: what was new, then the same again, in the window too."""
    histories = {
        UserId(user): tuple(
            interaction(user, item, at=at, event_id=f"{user}-{at}") for at, item in enumerate(sequences)
        )
        for user, sequences in (
            ("panel", ("i0", "i1", "i2", "i1", "i2")),
            ("panel, one thing", ("i0", "i0", "i0", "i0")),
            ("again", ("i0", "i1", "i0", "i1")),
            ("anew", ("i0", "i1", "i2", "i0")),
            ("anew too", ("i0", "i1", "i2", "i0")),
        )
    }
    window = {event_key(event) for events in histories.values() for event in events[2:]}
    return EvolutionInputs(DomainId("shop"), ITEMS, histories, frozenset(window), frozenset([*histories][:2]), 3)


def test_a_target_is_the_last_item_that_was_new_and_nothing_after_it_is_seen() -> None:
    inputs = _repeating()
    parts = split(inputs, max_panel=6, max_validation=4)
    (asked,), (validating,) = parts.panel, parts.validation
    for target in (asked, validating):
        assert (target.item_id, target.before) == ("i2", inputs.histories[target.user_id][:2])
        assert parts.visible[target.user_id] == target.before
    assert asked.user_id == "panel"
    assert validating.user_id in {"anew", "anew too"}


def test_who_only_repeats_is_active_and_nobody_to_ask() -> None:
    inputs = _repeating()
    parts = split(inputs, max_panel=6, max_validation=4)
    assert parts.active == inputs.histories.keys()
    assert "again" in parts.trainable
    for user in ("again", "panel, one thing"):
        assert parts.visible[UserId(user)] == inputs.histories[UserId(user)]


def test_popularity_of_a_whole_domain_lacks_what_is_held_out_as_that_of_histories_does() -> None:
    inputs, half_life = _inputs(), 1 / 86_400
    parts = split(inputs, max_panel=6, max_validation=4)
    masses: dict[ItemId, float] = {}
    for events in inputs.histories.values():
        for event in events:
            weight = log2_weight(event.timestamp, half_life)
            masses[event.item_id] = float(np.logaddexp2(masses.get(event.item_id, -np.inf), weight))
    expected = visible_popularity(inputs, parts, half_life)
    assert visible_popularity(replace(inputs, popularity=masses), parts, half_life) == pytest.approx(expected)
    # What users have whom the evolution did not read counts, too; what only a held-out interaction has is unknown.
    target = parts.panel[0]
    held = next(e for e in inputs.histories[target.user_id] if e.item_id == target.item_id)
    alone = {target.item_id: log2_weight(held.timestamp, half_life), ItemId("elsewhere"): masses[target.item_id]}
    few = replace(parts, visible={target.user_id: target.before})
    one = replace(inputs, histories={target.user_id: (*target.before, held)}, popularity=alone)
    assert visible_popularity(one, few, half_life) == {"elsewhere": 1.0}


def test_masses_of_another_half_life_are_no_overflow() -> None:
    inputs = _inputs()
    masses = {item.item_id: log2_weight(1_700_000_000, 60) for item in ITEMS}
    parts = split(inputs, max_panel=6, max_validation=4)
    shares = visible_popularity(replace(inputs, popularity=masses), parts, half_life_days=1.0)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) > 0
