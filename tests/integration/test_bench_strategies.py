"""Every strategy of the benchmark, one round on a small store: what distinguishes them, and what they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evolver.bench.strategies import STRATEGIES
from evolver.bench.strategies.lsat import LONG_TERM_WEIGHTS
from evolver.bench.version_files import load_blend, load_version
from evolver.inputs import ParentVersion, event_key
from evolver.learning import Learner
from evolver.lora import lora_state
from evolver.pipeline import run_pipeline
from evolver.recipe import EVOREC
from evolver.retriever_training import RATE, WINDOW_RATE
from evolver.stages import Stages
from evolver.update import EXAMPLES_PER_INACTIVE
from shared.forgotten import FORGOTTEN_FILE, ForgottenSet
from shared.retriever import RETRIEVER_FILE, Retriever, RetrieverIndex
from tests.bench_round import (
    ADAPTER_FILE,
    N_LAYERS,
    RANK,
    Round,
    Seen,
    evolver_split,
    layer_of,
    play,
    same_bits,
    task_of,
    watched,
)
from tests.factories import manifest

# Those that train three of ten layers, and those that train all of the bootstrap's.
LOCATING = [
    "evorec",
    *(f"evorec-{name}" for name in ("random-layers", "mean-similarity", "most-similar", "any-layers", "top-layers")),
    "evorec-without-forget",
    "evorec-without-consistency",
    "evorec-without-rehearsal",
    "evorec-all-rehearse",
    "evorec-near-negatives",
    "evorec-parent-negatives",
]
FROM_PARENT_ALL_LAYERS = ["finetune", "finetune-rehearsal", "replay", "kl", "evorec-all-layers"]
FRESH = ["retrain", "lsat"]
CONSISTENT = {"kl", *(name for name in STRATEGIES if name.startswith("evorec"))} - {"evorec-without-consistency"}
# Of which all members of the retriever rehearse, and of which half do.
ALL_REHEARSE = {"replay", "evorec-all-rehearse"}
HALF_REHEARSE = {"finetune-rehearsal", *(name for name in STRATEGIES if name.startswith("evorec"))} - {
    "evorec-without-rehearsal",
    "evorec-all-rehearse",
}
FORGETTING = {name for name in STRATEGIES if name.startswith("evorec")} - {"evorec-without-forget"}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return play(tmp_path_factory.mktemp("round"))


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"frozen", "retrain"}))
def test_members_that_rehearse_see_inactive_users_that_may_be_learned_from(played: Round, name: str) -> None:
    parts = evolver_split(played.inputs, played.settings)
    inactive = [(fit.members, fit.users - parts.active) for fit in played.seen[name].fitted]
    assert all(users <= parts.trainable for _, users in inactive)
    expected = [(1, False), (1, True)] if name in HALF_REHEARSE else [(2, name in ALL_REHEARSE)]
    assert [(members, bool(users)) for members, users in inactive] == expected


@pytest.mark.parametrize(("n_active", "rate"), [(2, RATE), (None, WINDOW_RATE)])
def test_who_rehearses_learns_fast_beside_few_active_users(
    played: Round, monkeypatch: pytest.MonkeyPatch, n_active: int | None, rate: float
) -> None:
    """All of the store's window leaves fewer inactive users than active ones; two users' window many more."""
    inputs, settings, parent = played.inputs, played.settings, played.folder / "bootstrap"
    if n_active is not None:
        active = [user for user, events in sorted(inputs.histories.items()) if user not in inputs.panel][:n_active]
        newest = frozenset(event_key(event) for user in active for event in inputs.histories[user][-2:])
        inputs = replace(inputs, window=newest)
    seen = Seen()
    watched(monkeypatch, seen)
    parts = evolver_split(inputs, settings)
    Learner(inputs, parts, parent, settings, EVOREC, Stages(lambda stage, share: None)).learn()
    assert [fit.learning_rate for fit in seen.fitted] == [WINDOW_RATE, rate]


def test_frozen_changes_nothing(played: Round) -> None:
    names = {path.name for path in (played.folder / "bootstrap").iterdir()}
    assert {ADAPTER_FILE, RETRIEVER_FILE, FORGOTTEN_FILE, "blend.json"} <= names
    assert {path.name for path in (played.folder / "frozen").iterdir()} == names
    for name in names:
        assert played.content("frozen", name) == played.content("bootstrap", name)


@pytest.mark.parametrize("name", LOCATING)
def test_located_layers_change_and_nothing_else(played: Round, name: str) -> None:
    learned = played.learned[name]
    assert played.changed_layers(name) == set(learned.location.layers)
    sizes = {key: value.numel() for key, value in played.adapter(name).items()}
    trained = sum(size for key, size in sizes.items() if layer_of(key) in learned.location.layers)
    assert (trained, sum(sizes.values())) == (learned.cost.trainable_parameters, learned.cost.lora_parameters)
    assert 0 < trained <= 0.3 * sum(sizes.values())


@pytest.mark.parametrize("name", FROM_PARENT_ALL_LAYERS)
def test_the_others_change_all_layers(played: Round, name: str) -> None:
    assert played.changed_layers(name) == set(range(N_LAYERS))
    cost = played.learned[name].cost
    assert cost.trainable_parameters == cost.lora_parameters


def test_locating_rules_differ_in_what_they_make_of_the_same_similarities(played: Round) -> None:
    location = played.learned["evorec"].location
    by_mean = sorted(range(N_LAYERS), key=lambda layer: location.similarity[layer])
    layers = {name: played.learned[name].location.layers for name in LOCATING}
    assert layers["evorec-mean-similarity"] == tuple(sorted(by_mean[:3]))
    assert layers["evorec-most-similar"] == tuple(sorted(by_mean[-3:]))
    assert layers["evorec-top-layers"] == (7, 8, 9)
    assert min(location.layers) >= 4
    assert not any(location.votes[:4])
    of_all = played.learned["evorec-any-layers"].location
    assert any(of_all.votes[:4])
    assert of_all.similarity == location.similarity
    assert layers["evorec-without-forget"] == layers["evorec-without-consistency"] == location.layers
    assert sum(location.votes) == played.settings.max_located_users


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "frozen"])
def test_where_training_starts(played: Round, name: str) -> None:
    """A fresh LoRA's B is zero; the bootstrap's is not."""
    start = played.seen[name].start
    assert start
    parent = {key.replace(".weight", ".default.weight"): value for key, value in played.adapter("bootstrap").items()}
    assert any(value.any() for key, value in parent.items() if "lora_B" in key)
    if name in FRESH:
        assert not any(value.any() for key, value in start.items() if "lora_B" in key)
    else:
        assert all(same_bits(value, parent[key]) for key, value in start.items())


def test_where_training_examples_lie(played: Round) -> None:
    """The place of a target is the length of the history before it, where nothing is forgotten."""
    trainable = evolver_split(played.inputs, played.settings).trainable

    def in_window(name: str) -> list[bool]:
        asked = [(user, history, target) for user, history, target in played.seen[name].asked if user in trainable]
        events = [played.inputs.histories[user][len(history)] for user, history, _ in asked]
        assert [event.item_id for event in events] == [target for _, _, target in asked]
        return [played.inputs.in_window(event) for event in events]

    cap = played.settings.max_train_examples
    for name in ("finetune", "kl", "lsat", "evorec-without-forget"):
        assert in_window(name) == [True] * cap
    assert in_window("replay") == [True] * (cap // 2) + [False] * (cap // 2)
    everything = in_window("retrain")
    assert len(everything) == cap
    assert {True, False} == set(everything)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_panel_user_is_ever_trained_on(played: Round, name: str) -> None:
    asked = {user for user, _, _ in played.seen[name].asked}
    assert bool(asked) is (name != "frozen")
    assert not asked & played.inputs.panel
    assert not any(fit.users & played.inputs.panel for fit in played.seen[name].fitted)


def test_the_retriever_is_renewed_alike_by_all_that_learn_from_the_window(played: Round) -> None:
    """By those whose members all rehearse, by those of which half do, and by those that are fitted alone."""
    others = STRATEGIES.keys() - ALL_REHEARSE - HALF_REHEARSE - {"frozen", "retrain"}
    ways = [{played.content(name, RETRIEVER_FILE) for name in names} for names in (ALL_REHEARSE, HALF_REHEARSE, others)]
    bootstrap, retrained = (played.content(name, RETRIEVER_FILE) for name in ("bootstrap", "retrain"))
    assert [len(way) for way in ways] == [1, 1, 1]
    assert len({*ways[0], *ways[1], *ways[2], bootstrap, retrained}) == 5


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_forgotten(played: Round, name: str) -> None:
    forgotten, learned = ForgottenSet.load(played.folder / name), played.learned[name]
    assert len(forgotten) == learned.forgotten_interactions
    assert (len(forgotten) > 0) is (name in FORGETTING)
    assert (learned.forgotten_share > 0) is (name in FORGETTING)


@pytest.mark.parametrize("name", STRATEGIES)
def test_who_is_held_to_the_parent(played: Round, name: str) -> None:
    expected = played.settings.max_train_examples // EXAMPLES_PER_INACTIVE if name in CONSISTENT else 0
    assert played.seen[name].n_inactive == expected
    assert played.learned[name].consistency == (1.0 if name in CONSISTENT else 0.0)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "frozen"])
def test_negatives_are_drawn_evenly_but_where_an_ablation_asks_a_retriever(played: Round, name: str) -> None:
    assert played.seen[name].near_share == (0.5 if name.endswith("-negatives") else 0.0)


@pytest.mark.parametrize("name", ["evorec-near-negatives", "evorec-parent-negatives"])
def test_whose_retriever_finds_near_negatives(played: Round, name: str) -> None:
    near, asked = played.seen[name].near, [item.item_id for item in played.inputs.items]
    assert near is not None
    for folder in ("bootstrap", name):
        index = RetrieverIndex(Retriever.load(played.folder / folder), played.inputs.items)
        same = near.scores(asked[:2], asked) == pytest.approx(index.scores(asked[:2], asked), abs=1e-5)
        assert same is ((folder == "bootstrap") is (name == "evorec-parent-negatives"))


def test_lsat_keeps_the_long_term_lora_beside_the_short_term_one(played: Round) -> None:
    """A is kept bit for bit, B times the weight that validation chose, one for all layers."""
    long, merged = played.adapter("bootstrap"), played.adapter("lsat")
    options = []
    for key, value in long.items():
        if "lora_A" in key:
            assert merged[key].shape == (2 * RANK, value.shape[1])
            assert same_bits(merged[key][:RANK].contiguous(), value)
            assert not torch.equal(merged[key][RANK:], value)
        else:
            kept = merged[key][:, :RANK]
            options.append({weight for weight in LONG_TERM_WEIGHTS if torch.equal(kept, weight * value)})
    assert len(set.intersection(*options)) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_version_is_loaded_from_its_folder_alone(played: Round, name: str) -> None:
    learned, folder = played.learned[name], played.folder / name
    version = load_version(folder, played.inputs.items, played.settings)
    assert version.model is not None
    assert learned.version.model is not None
    loaded, kept = (lora_state(model, range(N_LAYERS)) for model in (version.model, learned.version.model))
    assert loaded.keys() == kept.keys()
    assert all(same_bits(value, kept[key]) for key, value in loaded.items())
    assert version.forgotten == learned.version.forgotten
    assert load_blend(folder) == learned.blend


def test_the_second_round_goes_on_from_the_first(played: Round) -> None:
    """LSAT's own version has twice the rank; it is the long-term LoRA that it goes on from."""
    learned = STRATEGIES["lsat"].learn(task_of(played, "lsat-again", parent="lsat"))
    assert learned.cost.lora_parameters == played.learned["lsat"].cost.lora_parameters
    assert played.content("lsat-again", RETRIEVER_FILE) != played.content("lsat", RETRIEVER_FILE)


def test_costs(played: Round) -> None:
    costs = {name: learned.cost for name, learned in played.learned.items()}
    frozen = costs.pop("frozen")
    assert (frozen.examples, frozen.tokens_forward, frozen.trainable_parameters) == (0, 0, 0)
    for name, cost in costs.items():
        assert cost.examples == played.settings.update_epochs * played.settings.max_train_examples
        assert cost.tokens_forward > cost.tokens_backward > 0
        assert {"locate", "forget", "update", "blend"} <= cost.seconds.keys()
        assert ("merge" in cost.seconds) is (name == "lsat")
        # All load the same model; the LoRA's gradients and what they are made from come on top.
        assert cost.added_memory_mib > frozen.added_memory_mib
    # Locate's two prompts of each user come on top of what the same training takes without.
    assert costs["evorec"].tokens_forward > costs["evorec-random-layers"].tokens_forward
    assert costs["evorec"].tokens_backward == costs["evorec-random-layers"].tokens_backward
    assert costs["kl"].tokens_backward > costs["finetune"].tokens_backward


def test_the_evolver_makes_the_same_version(played: Round, tmp_path: Path) -> None:
    parent = ParentVersion(played.folder / "bootstrap", manifest(blend=load_blend(played.folder / "bootstrap")))
    with pytest.MonkeyPatch.context() as patch:
        watched(patch, Seen())
        result = run_pipeline(
            played.inputs, parent, tmp_path, played.settings, lambda stage, share: None, lambda: False
        )
    learned = played.learned["evorec"]
    assert played.changed_layers("evorec")
    for file in (ADAPTER_FILE, RETRIEVER_FILE, FORGOTTEN_FILE):
        assert (tmp_path / file).read_bytes() == played.content("evorec", file)
    assert result.located_layers == learned.location.layers
    assert result.blend == learned.blend
