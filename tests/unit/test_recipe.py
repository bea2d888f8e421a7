"""Recipes: which layers they choose, and whose interactions they learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from evolver.bench.strategies import STRATEGIES
from evolver.examples import Examples
from evolver.inputs import EvolutionInputs, event_key
from evolver.locate import Location, least_similar, located, most_similar
from evolver.recipe import Targets, random_layers, top_layers
from evolver.splits import Split, split
from shared.config import Settings
from shared.errors import InvalidInput
from shared.forgotten import ForgottenSet
from shared.prompt import PromptBuilder
from shared.types import DomainId, Interaction, Item, ItemId, UserId
from tests.factories import interaction

PAST, WINDOW = 6, 3
ITEMS = tuple(Item(ItemId(f"i{number}"), f"title {number}") for number in range(40))
PANEL = frozenset(UserId(f"user-{number}") for number in range(0, 12, 4))
NOBODY = ForgottenSet()


def _similarity() -> torch.Tensor:
    """Ten layers and four users. Layer 0 has two votes but a high mean, 1 and 2 one each; 3 and 4 have none and the
    lowest means.
    """
    similarity = torch.full((4, 10), 0.9)
    similarity[:, 3], similarity[:, 4] = 0.2, 0.3
    similarity[0, 0] = similarity[1, 0] = similarity[2, 1] = similarity[3, 2] = 0.1
    similarity[:, 8:] = 0.95
    similarity[:, 5] = 0.99
    return similarity


@pytest.mark.parametrize(
    ("rule", "expected"), [(located, (0, 1, 2)), (least_similar, (0, 3, 4)), (most_similar, (5, 8, 9))]
)
def test_rules_that_ask_users(rule: Callable[[torch.Tensor], Location], expected: tuple[int, ...]) -> None:
    location = rule(_similarity())
    assert location.layers == expected
    assert location.votes == (2, 1, 1, *[0] * 7)


def test_random_layers_are_the_seeds() -> None:
    drawn = [random_layers(28, seed) for seed in range(20)]
    assert drawn == [random_layers(28, seed) for seed in range(20)]
    assert {layer for layers in drawn for layer in layers} == set(range(28))
    for layers in drawn:
        assert len(layers) == len(set(layers)) == 8
        assert list(layers) == sorted(layers)


def test_top_layers_are_floored() -> None:
    assert top_layers(28, seed=3) == tuple(range(20, 28))


def _inputs() -> EvolutionInputs:
    """Twelve users with six old interactions each; every second one has three more in the window."""
    histories: dict[UserId, tuple[Interaction, ...]] = {}
    for number in range(12):
        count = PAST + WINDOW * (number % 2 == 0)
        histories[UserId(f"user-{number}")] = tuple(
            interaction(f"user-{number}", f"i{number + 2 * n}", at=n, event_id=f"{number}-{n}") for n in range(count)
        )
    window = {event_key(event) for events in histories.values() for event in events[PAST:]}
    return EvolutionInputs(DomainId("shop"), ITEMS, histories, frozenset(window), PANEL, seed=5)


def _examples(cap: int) -> tuple[Examples, EvolutionInputs, Split]:
    inputs = _inputs()
    parts = split(inputs, max_panel=4, max_validation=1)
    return Examples(inputs, parts, Settings(max_train_examples=cap)), inputs, parts


def _in_window(inputs: EvolutionInputs, user: UserId, place: int) -> bool:
    return inputs.in_window(inputs.histories[user][place])


@pytest.mark.parametrize("targets", Targets)
def test_only_trainable_users_supply_targets(targets: Targets) -> None:
    examples, _, parts = _examples(cap=1000)
    users = {user for user, _ in examples.positions(targets, NOBODY)}
    assert users <= parts.trainable
    assert not users & PANEL
    assert not set(examples.users(targets)) & PANEL


def test_the_window_is_all_that_a_window_supplies() -> None:
    examples, inputs, parts = _examples(cap=1000)
    positions = examples.positions(Targets.WINDOW, NOBODY)
    assert len(positions) == WINDOW * len(parts.trainable & parts.active)
    assert all(_in_window(inputs, user, place) for user, place in positions)


def test_everything_is_all_but_first_interactions() -> None:
    examples, _, parts = _examples(cap=1000)
    expected = {(user, place) for user in parts.trainable for place in range(1, len(parts.visible[user]))}
    positions = examples.positions(Targets.EVERYTHING, NOBODY)
    assert len(positions) == len(expected)
    assert set(positions) == expected


@pytest.mark.parametrize(("cap", "half"), [(8, 4), (9, 4), (1000, 2 * WINDOW)])
def test_replay_is_half_window_and_half_past(cap: int, half: int) -> None:
    """Without a cap in the way, the past supplies as much as the windows of the two active users to learn from."""
    examples, inputs, parts = _examples(cap)
    assert len(parts.trainable & parts.active) == 2
    positions = examples.positions(Targets.WINDOW_AND_PAST, NOBODY)
    assert len(set(positions)) == len(positions) == 2 * half
    assert sum(_in_window(inputs, user, place) for user, place in positions) == half


@pytest.mark.parametrize("targets", Targets)
def test_the_cap_takes_a_seeded_sample(targets: Targets) -> None:
    examples, inputs, parts = _examples(cap=4)
    other = Examples(replace(inputs, seed=6), parts, Settings(max_train_examples=4))
    drawn = partial(examples.positions, targets, NOBODY)
    assert len(drawn()) == 4
    assert drawn() == drawn()
    assert drawn() != other.positions(targets, NOBODY)


def test_forgotten_interactions_are_no_targets() -> None:
    examples, inputs, parts = _examples(cap=1000)
    user = min(parts.trainable & parts.active)
    gone = ForgottenSet({user: frozenset(event.event_id for event in inputs.histories[user][:2])})
    places = [place for one, place in examples.positions(Targets.EVERYTHING, gone) if one == user]
    assert sorted(places) == [*range(1, PAST + WINDOW - 2)]


def test_what_a_user_had_before_is_no_target_even_where_it_is_forgotten() -> None:
    inputs = _inputs()
    user = UserId("user-2")
    events = tuple(
        replace(event, item_id=ItemId(item))
        for event, item in zip(inputs.histories[user], ("a", "b", "a", "c", "c", "d", "e", "a", "f"), strict=True)
    )
    items = (*ITEMS, *(Item(ItemId(item), item) for item in "abcdef"))
    inputs = replace(inputs, items=items, histories={**inputs.histories, user: events})
    examples = Examples(inputs, split(inputs, max_panel=4, max_validation=0), Settings(max_train_examples=1000))
    for forgotten, kept in ((frozenset[str](), events), (frozenset({events[0].event_id}), events[1:])):
        places = {p for u, p in examples.positions(Targets.EVERYTHING, ForgottenSet({user: forgotten})) if u == user}
        new = {"b", "c", "d", "e", "f"} - {kept[0].item_id}
        assert [kept[place].item_id for place in sorted(places)] == sorted(new)
    window = {p for u, p in examples.positions(Targets.WINDOW, NOBODY) if u == user}
    assert window == {PAST, PAST + 2}


def test_a_base_with_too_few_labels_is_no_users_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else user after user would be left out as poison."""
    load = PromptBuilder.load

    def with_few(settings: Settings) -> PromptBuilder:
        builder = load(settings)
        builder.label_ids = builder.label_ids[:19]
        return builder

    monkeypatch.setattr(PromptBuilder, "load", with_few)
    with pytest.raises(InvalidInput, match=r"19 single-token labels: lower EVOREC_RANK_CANDIDATES \(20\)"):
        _examples(cap=1000)


def test_every_strategy_has_its_name() -> None:
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    assert {"frozen", "retrain", "finetune", "replay", "kl", "lsat", "evorec"} <= STRATEGIES.keys()
