"""The retriever: cold items through their titles, exact growth, safe files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evolver.retriever_training import RATE, WINDOW_RATE, finetune_retriever, renew_retriever, train_retriever
from shared.errors import InvalidArtifact
from shared.retriever import RETRIEVER_FILE, Retriever, RetrieverIndex
from shared.sasrec import RetrieverConfig
from shared.types import Item, ItemId, UserId

TEAS = [Item(ItemId(f"tea-{n}"), f"green tea leaf {n}", "Grocery > Tea") for n in range(8)]
TENTS = [Item(ItemId(f"tent-{n}"), f"dome tent shelter {n}", "Outdoor > Tents") for n in range(8)]
ITEMS = [*TEAS, *TENTS]
CONFIG = RetrieverConfig(members=2, width=32, layers=1, word_buckets=512, dropout=0.0)


@pytest.fixture(scope="module")
def trained() -> Retriever:
    generator = torch.Generator().manual_seed(0)
    sequences = {}
    for number in range(60):
        shelf = TEAS if number % 2 else TENTS
        sequences[UserId(f"u{number}")] = tuple(
            shelf[i].item_id for i in torch.randperm(8, generator=generator)[:5].tolist()
        )
    return train_retriever(ITEMS, sequences, epochs=12, seed=0, on_step=lambda _: None, config=CONFIG)


def test_it_prefers_what_fits_the_history(trained: Retriever) -> None:
    index = RetrieverIndex(trained, ITEMS)
    best = index.candidates([TEAS[0].item_id, TEAS[1].item_id], 4, exclude={TEAS[0].item_id, TEAS[1].item_id})
    assert all(item.startswith("tea-") for item, _ in best)
    assert [score for _, score in best] == sorted((score for _, score in best), reverse=True)


def test_an_item_without_interactions_is_retrieved_through_its_title(trained: Retriever) -> None:
    cold = Item(ItemId("new"), "green tea leaf, organic", "Grocery > Tea")
    odd = Item(ItemId("odd"), "hydraulic excavator bucket", "Industrial > Diggers")
    index = RetrieverIndex(trained, [*ITEMS, cold, odd])
    order = [item for item, _ in index.candidates([TEAS[0].item_id, TEAS[3].item_id], len(ITEMS) + 2)]
    assert order.index(ItemId("new")) < min(order.index(item.item_id) for item in TENTS)


def test_unavailable_excluded_and_other_categories_never_come(trained: Retriever) -> None:
    items = [Item(i.item_id, i.title, i.category, available=i is not TEAS[5]) for i in ITEMS]
    index = RetrieverIndex(trained, items)
    found = {item for item, _ in index.candidates([], 100, exclude={TEAS[6].item_id}, categories={"Tea"})}
    assert found == {i.item_id for i in TEAS} - {TEAS[5].item_id, TEAS[6].item_id}
    assert {item for item, _ in index.candidates([], 100, categories={"Outdoor"})} == {i.item_id for i in TENTS}
    assert index.candidates([], 5, categories={"nothing"}) == []


def test_a_retriever_says_the_mean_of_what_its_members_say(trained: Retriever) -> None:
    history = torch.tensor([[1, 3, 12]])

    def products(retriever: Retriever) -> torch.Tensor:
        vectors = retriever.item_vectors(ITEMS)
        return retriever.encode(vectors[history])[0, -1] @ vectors.T

    members = torch.stack([products(trained.part(number, number + 1)) for number in range(2)])
    torch.testing.assert_close(products(trained), members.mean(0))
    assert (members[0] - members[1]).abs().max() > 0.1  # they came from other random numbers
    vectors = trained.item_vectors(ITEMS)
    torch.testing.assert_close(trained.logits(trained.encode(vectors[history])[0, -1:], vectors)[:, 0], members)


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("rehearsing", [0.0, 0.5, 1.0])
def test_the_last_members_rehearse(members: int, rehearsing: float) -> None:
    torch.manual_seed(0)
    parent = Retriever([item.item_id for item in ITEMS[:-1]], replace(CONFIG, members=members))
    sequences = {
        UserId("active"): tuple(item.item_id for item in (*TENTS[:3], TENTS[-1])),
        UserId("inactive"): tuple(item.item_id for item in TEAS[:4]),
    }
    away = [UserId("inactive"), UserId("another"), UserId("third")]
    sequences |= {away[1]: sequences[away[0]][1:], away[2]: sequences[away[0]][:2]}
    window = {UserId("active"): frozenset({2, 3})}
    everything = [
        {**window, away[0]: frozenset(range(4)), away[2]: frozenset(range(2))},
        {**window, away[1]: frozenset(range(3))},
    ]
    shares: list[float] = []
    renewed = renew_retriever(
        parent,
        ITEMS,
        sequences,
        window,
        away,
        rehearsing=rehearsing,
        epochs=2,
        seed=0,
        on_step=shares.append,
    )
    assert [*renewed.rows] == [item.item_id for item in ITEMS]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    alone = members - {0.0: 0, 0.5: (members + 1) // 2, 1.0: members}[rehearsing]
    for start, end, targets, rate in ((0, alone, [window] * 2, WINDOW_RATE), (alone, members, everything, RATE)):
        if start < end:
            part = finetune_retriever(
                parent.part(start, end), ITEMS, sequences, targets, learning_rate=rate, seed=0, on_step=lambda _: None
            )
            torch.testing.assert_close(renewed.part(start, end).state_dict(), part.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("n_rehearsed", "rate"), [(0, WINDOW_RATE), (1, WINDOW_RATE), (2, RATE)])
def test_who_meets_fewer_inactive_users_than_active_ones_learns_slowly(
    trained: Retriever, n_rehearsed: int, rate: float
) -> None:
    sequences = {UserId(user): tuple(item.item_id for item in TENTS[:4]) for user in ("active", "as active")}
    window = {user: frozenset({2, 3}) for user in sequences}
    away = [UserId(f"inactive {number}") for number in range(n_rehearsed)]
    sequences |= {user: tuple(item.item_id for item in TEAS[:4]) for user in away}
    renewed = renew_retriever(
        trained, ITEMS, sequences, window, away, rehearsing=0.5, epochs=1, seed=0, on_step=lambda _: None
    )
    targets = [{**window, **{user: frozenset(range(4)) for user in away}}]
    at_rate = {
        each: finetune_retriever(
            trained.part(1, 2), ITEMS, sequences, targets, learning_rate=each, seed=0, on_step=lambda _: None
        ).state_dict()
        for each in (WINDOW_RATE, RATE)
    }
    torch.testing.assert_close(renewed.part(1, 2).state_dict(), at_rate[rate], rtol=0, atol=0)
    words = "members.0.words.weight"
    assert not torch.equal(at_rate[WINDOW_RATE][words], at_rate[RATE][words])


def test_a_renewed_retriever_with_nothing_to_learn_is_its_parent(trained: Retriever) -> None:
    renewed = renew_retriever(trained, ITEMS, {}, {}, [], rehearsing=0.5, epochs=2, seed=0, on_step=lambda _: None)
    torch.testing.assert_close(renewed.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_members_learn_apart(trained: Retriever) -> None:
    """What one of them knows changes nothing of what another learns."""
    sequences = {UserId("u"): tuple(item.item_id for item in TENTS[:4])}
    other = Retriever([*trained.rows], CONFIG)
    other.load_state_dict(trained.state_dict())
    with torch.no_grad():
        for parameter in other.members[1].parameters():
            parameter.mul_(3.0)
    fitted, of_other = (
        finetune_retriever(
            one,
            ITEMS,
            sequences,
            [{UserId("u"): frozenset({2, 3})}] * 2,
            learning_rate=WINDOW_RATE,
            seed=0,
            on_step=lambda _: None,
        )
        for one in (trained, other)
    )
    before, after = trained.members[0].state_dict(), fitted.members[0].state_dict()
    assert not torch.equal(after["words.weight"], before["words.weight"])
    torch.testing.assert_close(of_other.members[0].state_dict(), after, rtol=0, atol=0)


def test_scores_are_log_probabilities_over_the_catalog(trained: Retriever) -> None:
    index = RetrieverIndex(trained, ITEMS)
    scores = index.scores([TENTS[2].item_id], [item.item_id for item in ITEMS])
    assert sum(torch.tensor(scores).exp().tolist()) == pytest.approx(1.0, abs=1e-4)


def test_what_it_remembers_of_histories_is_bounded_and_changes_no_score(
    trained: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.retriever.REMEMBERED_STATES", 3)
    index, ids = RetrieverIndex(trained, ITEMS), [item.item_id for item in ITEMS]
    histories = [[item.item_id, TEAS[0].item_id] for item in ITEMS[1:]]
    first = [index.scores(history, ids) for history in histories]
    assert first == [RetrieverIndex(trained, ITEMS).scores(history, ids) for history in histories]
    assert 0 < len(index._states) <= 3
    read: list[torch.Tensor] = []
    encode = trained.encode

    def watched(vectors: torch.Tensor) -> torch.Tensor:
        read.append(vectors)
        return encode(vectors)

    monkeypatch.setattr(trained, "encode", watched)
    again = [index.scores(history, ids) for history in histories for _ in range(2)]
    assert again[::2] == again[1::2] == first
    assert len(read) <= len(histories)


def test_saved_and_loaded_it_scores_the_same(trained: Retriever, tmp_path: Path) -> None:
    trained.save(tmp_path)
    history, ids = [TEAS[1].item_id], [item.item_id for item in ITEMS]
    assert RetrieverIndex(Retriever.load(tmp_path), ITEMS).scores(history, ids) == RetrieverIndex(
        trained, ITEMS
    ).scores(history, ids)
    (tmp_path / RETRIEVER_FILE).write_bytes(b"\0" * 100)
    with pytest.raises(InvalidArtifact, match="no retriever"):
        Retriever.load(tmp_path)


def test_a_files_header_which_may_not_be_large_does_not_grow_with_the_catalog(tmp_path: Path) -> None:
    ids = [ItemId(f"thing number {number}, of a shop whose ids are long: \U0001f375") for number in range(5000)]
    Retriever(ids, CONFIG).save(tmp_path)
    header = int.from_bytes((tmp_path / RETRIEVER_FILE).read_bytes()[:8], "little")
    assert header < 10_000
    assert [*Retriever.load(tmp_path).rows] == ids
    Retriever([], CONFIG).save(tmp_path)
    assert not Retriever.load(tmp_path).rows


def test_a_file_from_before_item_ids_were_a_tensor_is_read(trained: Retriever, tmp_path: Path) -> None:
    tensors = {name: value.contiguous() for name, value in trained.state_dict().items()}
    about = json.dumps({"config": asdict(trained.config), "item_ids": [*trained.rows]})
    save_file(tensors, tmp_path / RETRIEVER_FILE, {"retriever": about})
    loaded = Retriever.load(tmp_path)
    assert loaded.rows == trained.rows
    history, ids = [TEAS[1].item_id], [item.item_id for item in ITEMS]
    assert RetrieverIndex(loaded, ITEMS).scores(history, ids) == RetrieverIndex(trained, ITEMS).scores(history, ids)


def test_weights_that_are_no_numbers_are_refused(trained: Retriever, tmp_path: Path) -> None:
    diverged = trained.with_items([*trained.rows])
    next(diverged.parameters()).data[0] = float("nan")
    diverged.save(tmp_path)
    with pytest.raises(InvalidArtifact, match="its weights are not numbers"):
        Retriever.load(tmp_path)


def test_a_file_from_before_there_were_members_is_one_of_one_member(trained: Retriever, tmp_path: Path) -> None:
    one = trained.part(1, 2)
    tensors = {name.removeprefix("members.0."): value.contiguous() for name, value in one.state_dict().items()}
    config = {name: value for name, value in asdict(one.config).items() if name != "members"}
    about = json.dumps({"config": config, "item_ids": [*one.rows]})
    save_file(tensors, tmp_path / RETRIEVER_FILE, {"retriever": about})
    history, ids = [TEAS[1].item_id], [item.item_id for item in ITEMS]
    assert RetrieverIndex(Retriever.load(tmp_path), ITEMS).scores(history, ids) == RetrieverIndex(one, ITEMS).scores(
        history, ids
    )


@pytest.mark.parametrize("members", [0, -1, 3, 10**9])
def test_a_file_whose_weights_are_of_other_members_is_refused(trained: Retriever, tmp_path: Path, members: int) -> None:
    tensors = {name: value.contiguous() for name, value in trained.state_dict().items()}
    about = json.dumps({"config": asdict(replace(CONFIG, members=members)), "item_ids": [*trained.rows]})
    save_file(tensors, tmp_path / RETRIEVER_FILE, {"retriever": about})
    with pytest.raises(InvalidArtifact, match=f"not those of {members} members"):
        Retriever.load(tmp_path)


def test_growing_by_new_items_changes_no_score(trained: Retriever) -> None:
    grown = trained.with_items([*(item.item_id for item in ITEMS), ItemId("new")])
    assert all(not member.state_dict()["ids.weight"][len(ITEMS) :].any() for member in grown.members)
    history, ids = [TEAS[1].item_id, TEAS[2].item_id], [item.item_id for item in ITEMS]
    assert RetrieverIndex(grown, ITEMS).scores(history, ids) == RetrieverIndex(trained, ITEMS).scores(history, ids)


def test_items_that_left_the_catalog_leave_the_retriever(trained: Retriever) -> None:
    """Others keep what was learned of them, whatever their row was."""
    left = [item for item in ITEMS if item is not ITEMS[0]]
    smaller = trained.with_items([ItemId("new"), *(item.item_id for item in left)])
    assert set(smaller.rows) == {ItemId("new"), *(item.item_id for item in left)}
    history, ids = [TEAS[1].item_id, TEAS[2].item_id], [item.item_id for item in left]
    assert RetrieverIndex(smaller, left).scores(history, ids) == RetrieverIndex(trained, left).scores(history, ids)


def test_fine_tuning_learns_the_windows_positions_alone(trained: Retriever) -> None:
    """The window says: after a tea comes tent-7. Without a target nothing changes."""
    sequences = {UserId(f"w{n}"): (TEAS[n % 8].item_id, TENTS[7].item_id) for n in range(24)}
    window = {user: frozenset({1}) for user in sequences}
    tuned = finetune_retriever(
        trained, ITEMS, sequences, [window] * 15, learning_rate=WINDOW_RATE, seed=0, on_step=lambda _: None
    )
    before = RetrieverIndex(trained, ITEMS).scores([TEAS[0].item_id], [TENTS[7].item_id])[0]
    after = RetrieverIndex(tuned, ITEMS).scores([TEAS[0].item_id], [TENTS[7].item_id])[0]
    assert after > before + 1
    nothing = {user: frozenset[int]() for user in sequences}
    same = finetune_retriever(
        trained, ITEMS, sequences, [nothing] * 2, learning_rate=WINDOW_RATE, seed=0, on_step=lambda _: None
    )
    assert RetrieverIndex(same, ITEMS).scores([TEAS[0].item_id], [TENTS[7].item_id])[0] == before


def test_explanations_point_at_the_history_that_weighed(trained: Retriever) -> None:
    index = RetrieverIndex(trained, ITEMS)
    history = [TENTS[0].item_id, TEAS[0].item_id, ItemId("gone from the catalog")]
    added, other = index.contributions(history, [TEAS[4].item_id, TENTS[4].item_id])
    assert len(added) == 3
    assert added[2] == 0.0
    assert added[1] > added[0]
    assert other[0] > other[1]


def many_items(n: int) -> list[Item]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 500, (n, 4), generator=generator).tolist()
    return [
        Item(ItemId(f"i{number}"), " ".join(f"word{word}" for word in each), f"Shop > Shelf {number % 7}")
        for number, each in enumerate(words)
    ]


def test_a_large_catalog_gives_the_same_candidates_in_the_same_order() -> None:
    """FAISS's half precision, re-ranked, against the matrix product, with every filter."""
    items = many_items(5000)
    torch.manual_seed(0)  # some weights make two scores that differ in their last bit alone, and either order is right
    retriever = Retriever([item.item_id for item in items])
    exact, large = RetrieverIndex(retriever, items), RetrieverIndex(retriever, items, exact_up_to=1000)
    for start in range(0, 200, 10):
        history = [item.item_id for item in items[start : start + 10]]
        for categories in (None, {"Shelf 3"}):
            expected = exact.candidates(history, 30, exclude=set(history), categories=categories)
            found = large.candidates(history, 30, exclude=set(history), categories=categories)
            assert [item for item, _ in found] == [item for item, _ in expected]
            gaps = [mine - theirs for (_, mine), (_, theirs) in zip(found, expected, strict=True)]
            assert max(gaps) - min(gaps) < 1e-4, "scores differ by more than a constant"
    assert large.candidates([items[0].item_id], 30, categories={"nothing"}) == []
    assert len(large.candidates([], 30)) == 30
