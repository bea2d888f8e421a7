"""The benchmark's data: what a round knows, who is asked what, and input that cannot be used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.files import read_interactions, read_items
from evolver.bench.bad_input import FIRST_DATE
from evolver.bench.cases import DRAWN_SETS, KINDS, MEMORY, NEXT, Round, make_round, next_targets, split_of
from evolver.bench.rules import CATEGORY, DECAYED, POPULARITY, RULES, TITLE_WORDS, score_rules
from evolver.bench.timeline import FOLDS, MAX_ROUNDS, PANEL_SHARE, Timeline, Window, make_timeline
from evolver.inputs import EvolutionInputs, event_key
from evolver.splits import item_sequence
from shared.config import Settings
from shared.errors import InvalidInput
from shared.panel import in_panel
from shared.types import DomainId, Interaction, Item, ItemId, UserId
from tests.bench_support import DAY, SETTINGS, make_interactions, make_items
from tests.factories import T0, interaction

DATA = os.environ.get("EVOREC_DATA_DIR")


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    *events, last = make_interactions()
    new = replace(last, item_id=ItemId("i060"))  # bought at the very end and never before
    return make_timeline(make_items(61), [*events, new], SETTINGS, seed=3)


@pytest.fixture(scope="module")
def first(timeline: Timeline) -> Round:
    return make_round(timeline.window(1), SETTINGS, max_evaluated=1000)


def _events(inputs: EvolutionInputs) -> list[Interaction]:
    return [event for events in inputs.histories.values() for event in events]


def test_the_past_is_70_percent_and_windows_follow_it_without_gap_or_overlap(timeline: Timeline) -> None:
    assert timeline.cuts == (630, 697, 765, 832, 900)
    assert set(map(event_key, _events(timeline.past))) == timeline.past.window
    assert len(timeline.past.window) == 630
    seen = set(timeline.past.window)
    for number in range(1, MAX_ROUNDS + 1):
        window = timeline.window(number)
        assert not seen & window.inputs.window
        seen |= window.inputs.window
        assert set(map(event_key, _events(window.inputs))) == seen


def test_updates_of_a_round_share_its_window_and_each_knows_what_came_by_its_end(timeline: Timeline) -> None:
    whole = timeline.window(2).inputs
    (once,) = timeline.updates(2, 1)
    assert once == whole
    parts = timeline.updates(2, 3)
    assert parts[-1].histories == whole.histories
    assert [len(part.window) for part in parts] == [23, 22, 23]
    assert frozenset().union(*(part.window for part in parts)) == whole.window
    seen = {event_key(event) for event in _events(timeline.window(1).inputs)}
    for part in parts:
        seen |= part.window
        assert {event_key(event) for event in _events(part)} == seen


def test_positive_events_alone_are_in_the_timeline() -> None:
    clicks = [replace(event, event_type="click") for event in make_interactions()]
    bought = replace(clicks[0], event_type="purchase")
    settings = SETTINGS.model_copy(update={"positive_events": frozenset({"click"})})
    timeline = make_timeline(make_items(), [bought, *clicks], settings, seed=0)
    assert len(timeline.events) == len(clicks)
    assert {event.event_type for event in timeline.events} == {"click"}


def test_what_a_base_may_see_is_in_no_seeds_window() -> None:
    # Ten days' events have one timestamp, so that the cut falls among ties.
    events = [replace(event, timestamp=event.timestamp // (10 * DAY) * 10 * DAY) for event in make_interactions()]
    timelines = [make_timeline(make_items(61), _in_order(events, seed), SETTINGS, seed=seed) for seed in range(3)]
    known = [set(map(event_key, _events(timeline.before_windows))) for timeline in timelines]
    assert known[0] == known[1] == known[2]
    assert 0 < len(known[0]) < timelines[0].cuts[0]
    for timeline in timelines:
        assert not known[0] & timeline.window(1).inputs.window


def _in_order(events: list[Interaction], seed: int) -> list[Interaction]:
    """Oldest first, ties as the seed has them."""
    shuffled = [events[i] for i in np.random.default_rng(seed).permutation(len(events))]
    return sorted(shuffled, key=lambda event: event.timestamp)


@pytest.mark.parametrize("number", range(1, MAX_ROUNDS + 1))
def test_nothing_after_the_window_is_in_what_a_strategy_gets(timeline: Timeline, number: int) -> None:
    window = timeline.window(number)
    end = timeline.events[timeline.cuts[number]].timestamp
    assert max(event.timestamp for event in _events(window.inputs)) < end
    assert {item.item_id for item in window.inputs.items} == {event.item_id for event in _events(window.inputs)}
    scored = timeline.events[timeline.cuts[number] : timeline.cuts[number + 1]]
    assert {event.user_id for event in window.future} == {event.user_id for event in scored}
    assert min(event.timestamp for event in window.future) == end


def test_users_of_the_panel_supply_no_training_target(first: Round) -> None:
    assert first.inputs.panel == {user for user in first.inputs.histories if in_panel(user, PANEL_SHARE)}
    assert first.inputs.panel
    assert not first.split.trainable & first.inputs.panel
    for target in first.questions[MEMORY].targets:
        assert target.user_id in first.inputs.panel
        history = first.inputs.histories[target.user_id]
        assert target.before == history[:-1] == first.split.visible[target.user_id]
        assert target.item_id == history[-1].item_id


def test_folds_are_panels_of_all_users_without_one_in_common(timeline: Timeline) -> None:
    folds = [replace(timeline, fold=fold).window(1).inputs for fold in range(FOLDS)]
    assert folds[0] == timeline.window(1).inputs
    assert sorted(user for inputs in folds for user in inputs.panel) == sorted(folds[0].histories)
    assert {frozenset(inputs.histories) for inputs in folds} == {frozenset(folds[0].histories)}


def test_next_is_the_first_interaction_after_the_window_with_a_known_item_of_a_known_user() -> None:
    events = {
        UserId("old"): (interaction("old", "a", event_id="1"),),
        UserId("both"): (interaction("both", "a", event_id="2"), interaction("both", "b", at=9, event_id="3")),
    }
    inputs = EvolutionInputs(
        DomainId("d"),
        tuple(Item(ItemId(i), i) for i in "ab"),
        events,
        frozenset({(UserId("both"), "3")}),
        frozenset(),
        0,
    )
    later = [interaction("both", "a", at=20), interaction("old", "later", at=21), interaction("stranger", "a", at=22)]
    (target,) = next_targets(Window(1, inputs, tuple(later)), frozenset(inputs.active_users()))
    assert (target.user_id, target.item_id, target.active) == ("both", "a", True)
    assert target.before == events[UserId("both")]  # all of it, the window included


def test_next_is_an_item_that_the_user_has_not_had() -> None:
    """A shop whose users buy again what they had: the service never recommends that, so nobody is asked for it."""
    first: dict[UserId, ItemId] = {}
    events = []
    for number, event in enumerate(make_interactions()):
        had = first.setdefault(event.user_id, event.item_id)
        events.append(replace(event, item_id=had) if number > 600 and number % 2 else event)
    timeline = make_timeline(make_items(), events, SETTINGS, seed=0)
    window = timeline.window(1)
    came_next = {event.user_id: event for event in reversed(timeline.events[697:765])}
    assert any(e.item_id in item_sequence(window.inputs.histories.get(user, ())) for user, e in came_next.items())
    asked = make_round(window, SETTINGS, max_evaluated=1000).questions[NEXT].targets
    assert asked
    for target in asked:
        assert target.item_id not in item_sequence(target.before)


def test_candidates_are_as_many_as_a_version_is_trained_with(timeline: Timeline) -> None:
    few = SETTINGS.model_copy(update={"rank_candidates": 7})
    questions = make_round(timeline.window(1), few, max_evaluated=5).questions
    cases = [case for kind in KINDS for name in DRAWN_SETS for _, case in questions[kind].cases[name]]
    assert {len(case.candidates) for case in cases} == {7}


def test_items_that_are_gone_today_were_there_in_the_past() -> None:
    gone = [replace(item, available=False) for item in make_items()]
    assert all(item.available for item in make_timeline(gone, make_interactions(), SETTINGS, seed=0).past.items)


def test_candidates_are_known_items_and_never_the_users_own(first: Round) -> None:
    known = {item.item_id for item in first.inputs.items}
    for kind in KINDS:
        for name in DRAWN_SETS:
            for target, case in first.questions[kind].cases[name]:
                own = set(item_sequence(target.before))
                assert case.target in case.candidates
                assert len(set(case.candidates)) == len(case.candidates) == 20
                assert set(case.candidates) <= known
                assert not (set(case.candidates) - {case.target}) & own


def test_no_held_out_target_is_counted_in_the_popularity_that_memory_is_asked_with(first: Round) -> None:
    held = {target.before[-1].event_id for target in first.questions[MEMORY].targets if target.before}
    counted = {e.event_id for events in first.questions[MEMORY].events.values() for e in events}
    last = {first.inputs.histories[target.user_id][-1].event_id for target in first.questions[MEMORY].targets}
    assert held <= counted
    assert not last & counted
    assert first.questions[NEXT].events == first.inputs.histories


def test_the_limit_holds_for_each_group_and_the_same_seed_draws_the_same(timeline: Timeline) -> None:
    rounds = [make_round(timeline.window(1), SETTINGS, max_evaluated=4) for _ in range(2)]
    everybody = make_round(timeline.window(1), SETTINGS, max_evaluated=1000)
    assert rounds[0].questions[NEXT].cases == rounds[1].questions[NEXT].cases
    for kind in KINDS:
        groups = [target.active for target in rounds[0].questions[kind].targets]
        assert groups.count(True) <= 4 >= groups.count(False)
        could_be_asked = [target.active for target in everybody.questions[kind].targets]
        assert rounds[0].questions[kind].population == (could_be_asked.count(True), could_be_asked.count(False))
    assert len(rounds[0].questions[NEXT].targets) == 8


def test_events_that_occur_twice_or_are_not_positive_count_once_or_not_at_all() -> None:
    events = make_interactions()
    more = [events[0], *events, replace(events[5], event_type="view"), replace(events[6], item_id=ItemId("unknown"))]
    assert make_timeline(make_items(), more, SETTINGS, seed=0).events == (
        make_timeline(make_items(), events, SETTINGS, seed=0).events
    )


def test_interactions_of_one_day_come_in_an_order_that_the_seed_gives(tmp_path: Path) -> None:
    path = tmp_path / "interactions.csv"
    rows = [f"u{n},i{n:03d},{T0 + n // 30 * DAY:.0f}" for n in range(600)]
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    items = [Item(ItemId(f"i{n:03d}"), "x") for n in range(600)]
    orders = [
        [e.item_id for e in make_timeline(items, read_interactions(path, seed=seed).rows, SETTINGS, seed=seed).events]
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0][:30]) == sorted(orders[1][:30]) == [f"i{n:03d}" for n in range(30)]
    assert all(order[:30] != sorted(order[:30]) for order in orders)


def test_rules_say_what_they_are_called(first: Round) -> None:
    tables = score_rules(first)
    assert set(tables) == {f"{kind}/{name}" for kind in KINDS for name in DRAWN_SETS}
    question, table = first.questions[NEXT], tables["next/uniform"]
    assert set(table.experts) == set(RULES)
    titles = {item.item_id: item for item in first.inputs.items}
    for row, (target, case) in enumerate(question.cases["uniform"][:20]):
        shelves = {titles[item].category for item in item_sequence(target.before)[-10:]}
        for column, item in enumerate(case.candidates):
            bought = sum(event.item_id == item for event in _events(first.inputs))
            assert table.experts[POPULARITY][row, column] == bought
            assert table.experts[DECAYED][row, column] == pytest.approx(question.popularity.get(item, 0.0))
            assert table.experts[CATEGORY][row, column] == (titles[item].category in shelves)
            words = {"thing" + item[1:].lstrip("0"), titles[item].category}
            last = [titles[one] for one in item_sequence(target.before)[-10:]]
            shared_words = sum(any(word in one.title.split() for one in last) for word in words)
            assert table.experts[TITLE_WORDS][row, column] == shared_words


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ((), "too few"),
        (make_interactions(n=200), "too few to split by time"),
        (tuple(replace(e, item_id=ItemId("unknown")) for e in make_interactions()), "items that the catalog lacks"),
        (tuple(replace(e, timestamp=float(n)) for n, e in enumerate(make_interactions())), "positions"),
        (tuple(replace(e, timestamp=float(n % 7)) for n, e in enumerate(make_interactions())), "unix seconds"),
        (tuple(replace(e, timestamp=T0) for e in make_interactions()), "no past to learn from"),
    ],
    ids=["nothing", "few", "unknown items", "positions", "positions per user", "one moment"],
)
def test_input_that_no_split_can_be_made_of_is_refused(events: tuple[Interaction, ...], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        make_timeline(make_items(), events, SETTINGS, seed=0)


def test_dates_long_ago_are_dates() -> None:
    events = [replace(e, timestamp=FIRST_DATE + n * DAY) for n, e in enumerate(make_interactions())]
    assert make_timeline(make_items(), events, SETTINGS, seed=0).cuts[0] == 630


def test_a_dataset_whose_users_never_come_back_is_refused() -> None:
    events = [interaction(f"u{n}", f"i{n % 60:03d}", at=n * DAY) for n in range(900)]
    timeline = make_timeline(make_items(), events, SETTINGS, seed=0)
    with pytest.raises(InvalidInput, match="Round 1 has no panel user with two different items and no user whose next"):
        make_round(timeline.window(1), SETTINGS, max_evaluated=10)


@pytest.mark.skipif(DATA is None, reason="EVOREC_DATA_DIR names no folder with beauty2014/")
def test_beauty_has_the_sizes_that_its_description_states() -> None:
    """4,019 users there are those who had been seen in the past or more than once; here one window event is a history.

    Which of a day's interactions comes first depends on the seed, hence the tolerance.
    """
    folder = Path(str(DATA)) / "beauty2014"
    settings = Settings(_env_file=None)
    items, events = read_items(folder / "items.jsonl.gz").rows, read_interactions(folder / "interactions.csv.gz").rows
    timeline = make_timeline(items, events, settings, seed=0)
    assert (len(items), len(timeline.events)) == (12_101, 198_502)
    assert timeline.past_until == 1388102400.0  # 2013-12-27
    window = timeline.window(1)
    targets = next_targets(window, split_of(window.inputs, settings).active)
    past = timeline.past.histories
    assert sum(target.user_id in past for target in targets) == pytest.approx(4019, rel=0.01)
    assert len(targets) > 4019
