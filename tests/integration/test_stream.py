from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.history import HistoryStore
from shared.popularity import PopularityStore
from shared.redis_keys import FIXED_SETTINGS, PartitionKeys, partition_of
from shared.stream import APPEND_CHUNK, Appended, InteractionLog
from shared.types import Interaction, StreamPositions, UserId, order_of
from tests.factories import BEAUTY, T0, interaction
from tests.log_reader import read_all

PROPERTY = hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EVENTS = st.lists(
    st.builds(
        interaction,
        user=st.sampled_from(["u1", "u2", "u3", "u4"]),
        item=st.sampled_from(["i1", "i2", "i3"]),
        at=st.integers(-50, 50).map(float),
        event_type=st.sampled_from(["purchase", "click"]),
    ),
    max_size=30,
)


@pytest.fixture(params=[1, 4], ids=["one partition", "four partitions"])
def settings_p(redis_settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return redis_settings.model_copy(update={"partitions": request.param})


async def everything_visible(redis: Redis, settings: Settings) -> object:
    """All that readers can tell of the domain."""
    history = HistoryStore(redis, settings)
    users = await history.users(BEAUTY)
    log = InteractionLog(redis, settings)
    return (
        await history.get_many(BEAUTY, users),
        users,
        list((await PopularityStore(redis, settings).counted(BEAUTY)).items()),
        await read_all(log, BEAUTY),
        await log.tail(BEAUTY),
        await log.count(BEAUTY, {}),
    )


@PROPERTY
@given(events=EVENTS, data=st.data())
async def test_replayed_events_change_nothing(
    redis: Redis, settings_p: Settings, events: list[Interaction], data: st.DataObject
) -> None:
    await redis.flushdb()
    log = InteractionLog(redis, settings_p)
    appended = await log.append(BEAUTY, events)
    distinct = {(e.user_id, e.item_id, e.event_type, e.timestamp) for e in events}
    assert appended == Appended(accepted=len(distinct), duplicates=len(events) - len(distinct))
    before = await everything_visible(redis, settings_p)

    replay = data.draw(st.lists(st.sampled_from(events), max_size=40) if events else st.just([]))
    assert await log.append(BEAUTY, replay) == Appended(accepted=0, duplicates=len(replay))
    assert await everything_visible(redis, settings_p) == before


@PROPERTY
@given(events=EVENTS)
async def test_out_of_order_events_land_in_time_order(
    redis: Redis, settings_p: Settings, events: list[Interaction]
) -> None:
    await redis.flushdb()
    log, history = InteractionLog(redis, settings_p), HistoryStore(redis, settings_p)
    for event in events:
        await log.append(BEAUTY, [event])
    for user, found in (await history.get_many(BEAUTY, [UserId(f"u{n}") for n in range(1, 5)])).items():
        order = [(event.timestamp, order_of(event.stream_id)) for event in found]
        assert order == sorted(order)
        assert {(e.item_id, e.event_type, e.timestamp) for e in found} == {
            (e.item_id, e.event_type, e.timestamp) for e in events if e.user_id == user
        }


async def test_an_id_makes_events_the_same_whatever_they_say(redis: Redis, redis_settings: Settings) -> None:
    log = InteractionLog(redis, redis_settings)
    twins = [interaction(event_id="e", item="i1"), interaction(event_id="e", item="i2")]
    assert await log.append(BEAUTY, twins) == Appended(1, 1)
    (kept,) = await read_all(log, BEAUTY)
    assert kept.item_id == "i1"


async def test_an_event_keeps_all_it_came_with(redis: Redis, redis_settings: Settings) -> None:
    log = InteractionLog(redis, redis_settings)
    sent = interaction("käthe", "i|{1}", 0.125, value=2.5, event_type="purchase", recommendation_id="r1", event_id="e")
    await log.append(BEAUTY, [sent])
    (read,) = await read_all(log, BEAUTY)
    (remembered,) = await HistoryStore(redis, redis_settings).get(BEAUTY, UserId("käthe"))
    assert read == remembered
    assert read.stream_id
    assert (read.user_id, read.item_id, read.timestamp) == ("käthe", "i|{1}", T0 + 0.125)
    assert (read.value, read.recommendation_id, read.event_id) == (2.5, "r1", "e")


async def test_batches_larger_than_a_chunk_and_a_page(redis: Redis, settings_p: Settings) -> None:
    log = InteractionLog(redis, settings_p)
    events = [interaction(f"u{n % 7}", f"i{n}", float(n)) for n in range(2 * APPEND_CHUNK + 1500)]
    assert await log.append(BEAUTY, events) == Appended(len(events), 0)
    assert len(await read_all(log, BEAUTY)) == len(events)
    assert await log.count(BEAUTY, {}) == len(events)
    assert 10 <= await log.count(BEAUTY, {}, at_most=10) < len(events)


async def test_ranges_exclude_their_start_and_include_their_end(redis: Redis, redis_settings: Settings) -> None:
    log = InteractionLog(redis, redis_settings)
    tails: list[StreamPositions] = [await log.tail(BEAUTY)]
    for n in range(4):
        await log.append(BEAUTY, [interaction(item=f"i{n}")])
        tails.append(await log.tail(BEAUTY))

    async def items(after: StreamPositions, until: StreamPositions) -> Sequence[str]:
        return [event.item_id async for event in log.entries(BEAUTY, 0, after[0], until[0])]

    assert tails[0] == {0: "0-0"}
    assert await items(tails[1], tails[3]) == ["i1", "i2"]
    assert await items(tails[0], tails[1]) == ["i0"]
    assert await items(tails[4], tails[4]) == []
    assert await items(tails[0], tails[0]) == []
    assert await log.count(BEAUTY, tails[1]) == 3
    assert await log.count(BEAUTY, tails[4]) == 0


async def test_first_timestamp_is_when_the_oldest_new_event_arrived(redis: Redis, settings_p: Settings) -> None:
    log = InteractionLog(redis, settings_p)
    assert await log.first_timestamp(BEAUTY, {}) is None
    started = int(time.time() * 1000) / 1000
    await log.append(BEAUTY, [interaction(f"u{n}", at=-1e6) for n in range(8)])
    first = await log.first_timestamp(BEAUTY, {})
    assert first is not None
    assert started <= first <= time.time()
    assert await log.first_timestamp(BEAUTY, await log.tail(BEAUTY)) is None


async def test_a_retry_repairs_what_a_crash_left_half_done(redis: Redis, redis_settings: Settings) -> None:
    """The event id is written last: without it the event is appended again, and readers drop the twin."""
    log, history = InteractionLog(redis, redis_settings), HistoryStore(redis, redis_settings)
    keys = PartitionKeys(BEAUTY, 0)
    await log.append(BEAUTY, [interaction(event_id="e"), interaction(event_id="f", at=1)])
    await redis.delete(keys.event("e"), keys.popularity)
    assert await log.append(BEAUTY, [interaction(event_id="e")]) == Appended(1, 0)
    assert [event.event_id for event in await read_all(log, BEAUTY)] == ["e", "f"]
    assert [event.event_id for event in await history.get(BEAUTY, UserId("u1"))] == ["e", "f"]


@pytest.mark.parametrize("timestamp", [float("nan"), float("inf"), float("-inf")])
async def test_a_bad_event_stops_the_script_before_its_first_write(
    redis: Redis, redis_settings: Settings, timestamp: float
) -> None:
    log = InteractionLog(redis, redis_settings)
    with pytest.raises(ResponseError, match="bad event 1"):
        await log.append(BEAUTY, [interaction(event_id="good"), interaction(at=timestamp)])
    assert await redis.keys() == [FIXED_SETTINGS]


@pytest.mark.parametrize(("positive", "popular"), [("purchase", "bought"), ("click", "looked at")])
async def test_only_positive_events_count_as_popular(
    redis: Redis, redis_settings: Settings, positive: str, popular: str
) -> None:
    settings = redis_settings.model_copy(update={"positive_events": frozenset({positive})})
    await InteractionLog(redis, settings).append(
        BEAUTY, [interaction("u1", "bought"), interaction("u2", "looked at", event_type="click")]
    )
    assert await PopularityStore(redis, settings).counted(BEAUTY) == {popular: 1.0}


GARBAGE: list[dict[str, str | bytes]] = [
    {"e": "{broken"},
    {"other": "field"},
    {"e": b"\xff\xfe no text"},
    {"e": "[" * 50_000},
    {"e": "[1, 2]"},
    {"e": '{"id":"e","user":"u1","item":"i1","at":NaN,"type":"purchase"}'},
    {"e": '{"id":"e","user":"u1","item":"i1","at":1e300,"type":"purchase"}'},
    {"e": '{"id":"e","user":["u1"],"item":"i1","at":1,"type":"purchase"}'},
    {"e": '{"id":"e","user":"\\ud800","item":"i1","at":1,"type":"purchase"}'},
    {"e": f'{{"id":"e","user":"u1","item":"i1","at":1{"0" * 400},"type":"purchase"}}'},
]


async def test_an_unreadable_entry_is_set_aside(redis: Redis, redis_settings: Settings) -> None:
    log = InteractionLog(redis, redis_settings)
    keys = PartitionKeys(BEAUTY, 0)
    await log.append(BEAUTY, [interaction(item="before")])
    for fields in GARBAGE:
        await redis.xadd(keys.stream, fields)  # type: ignore[arg-type]
    await log.append(BEAUTY, [interaction(item="after")])
    for _ in range(2):
        assert [event.item_id for event in await read_all(log, BEAUTY)] == ["before", "after"]
    letters = await DeadLetters(redis).newest(BEAUTY, 100)
    assert len(letters) == len(GARBAGE)
    assert all(letter.stream_id and letter.raw and letter.reason.startswith("stream entry: ") for letter in letters)
    assert [letter.user_id for letter in letters if "its time nan is none" in letter.reason] == ["u1"]
    assert len(await HistoryStore(redis, redis_settings).erase(BEAUTY, UserId("u1"))) == 2
    assert "u1" not in {letter.user_id for letter in await DeadLetters(redis).newest(BEAUTY, 100)}


async def test_an_event_id_is_forgotten_after_seven_days(redis: Redis, redis_settings: Settings) -> None:
    await InteractionLog(redis, redis_settings).append(BEAUTY, [interaction(event_id="e")])
    week = 7 * 24 * 3600
    assert week - 600 < await redis.ttl(PartitionKeys(BEAUTY, 0).event("e")) <= week


async def test_users_spread_over_partitions(redis: Redis, redis_settings: Settings) -> None:
    settings = redis_settings.model_copy(update={"partitions": 4})
    log = InteractionLog(redis, settings)
    await log.append(BEAUTY, [interaction(f"u{n}") for n in range(40)])
    for partition in range(4):
        expected = {f"u{n}" for n in range(40) if partition_of(UserId(f"u{n}"), 4) == partition}
        assert set(await redis.zrange(PartitionKeys(BEAUTY, partition).users, 0, -1)) == expected
        assert expected
