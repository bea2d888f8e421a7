"""Promise 7: any sequence of appends, replays, crashes and erasures leaves what a list of the events would say."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from redis.exceptions import RedisError

from shared.config import Settings
from shared.history import HistoryStore
from shared.interaction_codec import event_id_of
from shared.popularity import log2_weight
from shared.stream import Appended, InteractionLog
from shared.types import Interaction, UserId
from tests.factories import BEAUTY, interaction
from tests.faults.conftest import Tell
from tests.faults.cutting_proxy import cut_after
from tests.faults.kept import Kept, read_back
from tests.faults.machines import RedisMachine, explore

CAP = 4
USERS = ("u1", "u2", "u3", "u4")
# An id belongs to one event of one user, and the same moment may come twice: users share partitions, not ids.
EVENT = st.builds(
    lambda user, item, at, number, kind: interaction(
        user, item, float(at), event_id=number and f"{user}-{number}", event_type=kind
    ),
    st.sampled_from(USERS),
    st.sampled_from(["i1", "i2"]),
    st.integers(-20, 20),
    st.sampled_from(["", "", *map(str, range(12))]),
    st.sampled_from(["purchase", "purchase", "click"]),
)
EVENTS = st.lists(EVENT, min_size=1, max_size=8)


class StreamMachine(RedisMachine):
    """The model: accepted events in order, and every id that was ever accepted (an erased event stays known)."""

    def __init__(self) -> None:
        super().__init__()
        self.log = InteractionLog(self.client, self.settings)
        self.accepted: list[Interaction] = []
        self.known: set[str] = set()
        self.masses: defaultdict[str, float] = defaultdict(float)
        self.sent: list[Interaction] = []
        self.erased: Counter[str] = Counter()

    def accept(self, events: Sequence[Interaction]) -> int:
        """How many of them are new to the model."""
        before = len(self.accepted)
        for event in events:
            if (event_id := _id(event)) not in self.known:
                self.known.add(event_id)
                self.accepted.append(event)
                if event.event_type == "purchase":
                    self.masses[event.item_id] += _weight(event, self.settings)
        return len(self.accepted) - before

    @rule(events=EVENTS)
    def append(self, events: list[Interaction]) -> None:
        appended = self.run(self.log.append(BEAUTY, events))
        new = self.accept(events)
        assert appended == Appended(new, len(events) - new)
        self.sent += events
        self.done["events sent"] += len(events)

    @precondition(lambda self: bool(self.sent))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        again = data.draw(st.lists(st.sampled_from(self.sent), min_size=1, max_size=8))
        new = self.accept(again)
        assert self.run(self.log.append(BEAUTY, again)) == Appended(new, len(again) - new)
        self.done["events replayed"] += len(again)

    @rule(events=EVENTS, sent=st.integers(0, 4000), answered=st.integers(1, 400))
    def append_over_a_line_that_breaks(self, events: list[Interaction], sent: int, answered: int) -> None:
        """The client's own retries break as well. What had arrived counts; nothing counts twice."""
        self.run(self._append_broken(events, sent, answered))
        there = {_id(event) for event in self.run(read_back(self.client, self.settings, BEAUTY)).stream}
        self.accept([event for event in events if _id(event) in there])
        self.sent += events

    async def _append_broken(self, events: list[Interaction], sent: int, answered: int) -> None:
        async with cut_after(self.settings, self.folder, sent, answered) as client:
            try:
                await InteractionLog(client, self.settings).append(BEAUTY, events)
            except (RedisError, OSError):
                self.done["lines cut"] += 1

    @rule(user=st.sampled_from(USERS))
    def erase(self, user: str) -> None:
        erased = self.run(HistoryStore(self.client, self.settings).erase(BEAUTY, UserId(user)))
        left = [event for event in self.accepted if event.user_id != user]
        self.erased[user] += len(self.accepted) - len(left)
        assert len(erased) == self.erased[user]
        self.accepted = left
        self.done["users erased"] += 1

    @invariant()
    def redis_says_what_the_model_says(self) -> None:
        kept = self.run(read_back(self.client, self.settings, BEAUTY))
        assert kept.entries == len(kept.stream)
        assert _by_user(kept.stream) == _by_user(self.accepted), "order of the stream"
        self.check_histories(kept)
        assert kept.masses.keys() == self.masses.keys()
        for item, mass in self.masses.items():
            assert math.isclose(kept.masses[item], mass, rel_tol=1e-7)
        self.done["steps"] += 1

    def check_histories(self, kept: Kept) -> None:
        expected: dict[str, list[str]] = {}
        newest: dict[str, float] = {}
        for user, events in _by_user(self.accepted).items():
            # Python's sort keeps the order of arrival where timestamps are equal, as stream ids do.
            moments = {_id(event): event.timestamp for event in self.accepted}
            bought = {_id(event) for event in self.accepted if event.event_type == "purchase"}
            ordered = sorted(events, key=moments.__getitem__)
            kinds = [event for event in ordered if event in bought], [event for event in ordered if event not in bought]
            held = {event for kind in kinds for event in kind[-CAP:]}
            expected[user] = [event for event in ordered if event in held]
            newest[user] = max(moments[event] for event in events)
        assert {user: [event.event_id for event in events] for user, events in kept.histories.items()} == expected
        assert kept.newest == newest


def _id(event: Interaction) -> str:
    return event.event_id or event_id_of(event.user_id, event.item_id, event.event_type, event.timestamp)


def _by_user(events: Sequence[Interaction]) -> dict[str, list[str]]:
    """Ids in order; the order between users of different partitions means nothing."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        found[event.user_id].append(_id(event))
    return dict(found)


def _weight(event: Interaction, settings: Settings) -> float:
    return float(2 ** log2_weight(event.timestamp - 1_600_000_000, settings.popularity_half_life_days))


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.timeout(1800)
def test_stream_and_histories_are_what_a_list_would_be(
    redis_settings: Settings, tmp_path: Path, full: bool, outcome: Tell, partitions: int
) -> None:
    settings = redis_settings.model_copy(update={"partitions": partitions, "max_history": CAP})
    done = explore(StreamMachine, settings, tmp_path, full=full)
    steps, examples = done.pop("steps"), done.pop("examples")
    assert done["lines cut"] > 0
    outcome(
        7,
        f"Stream, histories, users and popularity equal a model's after every step ({partitions} partitions, "
        f"{examples:,} sequences)",
        faults=done,
        cases=steps,
    )
