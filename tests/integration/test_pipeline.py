"""Two real evolutions of a small store on the shipped base: what may change does, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from evolver.forget import RECENT, outdated
from evolver.inputs import Cancelled, EvolutionInputs, ParentVersion, PipelineResult
from evolver.lora import ADAPTER_CONFIG_FILE, load_with_lora, lora_state
from evolver.pipeline import run_pipeline
from evolver.stores import Store, make_store
from evolver.update import Labelled, UpdateConfig, update
from shared.config import Settings
from shared.errors import EvorecError
from shared.forgotten import ForgottenSet
from shared.prompt import PromptBuilder
from shared.ranking import Blends, BlendWeights
from shared.retriever import Retriever
from shared.types import Interaction, UserId
from tests.factories import manifest
from tests.store_inputs import store_inputs

SETTINGS = Settings(
    max_train_examples=32,
    max_located_users=12,
    max_evaluated_users=16,
    max_validation_users=8,
    retriever_members=3,
    retriever_dropout=0.3,
    retriever_epochs=3,
    retriever_window_epochs=2,
    update_epochs=1,
    panel_share=0.2,
    train_threads=1,  # several threads add in any order, and equal runs differ in the last bits
)


@dataclass(frozen=True)
class Line:
    """A bootstrap and the evolution after it."""

    store: Store
    first: Path
    second: Path
    bootstrap: PipelineResult
    evolution: PipelineResult


def _inputs(store: Store, events: Sequence[Interaction], window: Sequence[Interaction]) -> EvolutionInputs:
    return store_inputs(store, events, window, panel_share=SETTINGS.panel_share)


def _run(inputs: EvolutionInputs, parent: ParentVersion | None, out: Path, **changes: Any) -> PipelineResult:
    out.mkdir()
    settings = SETTINGS.model_copy(update=changes)
    return run_pipeline(inputs, parent, out, settings, lambda stage, share: None, lambda: False)


def _evolution_inputs(store: Store) -> EvolutionInputs:
    """Of each user, the window's second interaction came late: it is older than all that was there before, and of some
    item that says little of what the user does now.
    """
    seen: Counter[UserId] = Counter()
    window = []
    for number, event in enumerate(store.second_period):
        seen[event.user_id] += 1
        if seen[event.user_id] == 2:
            item = store.items[37 * number % len(store.items)]
            event = replace(event, item_id=item.item_id, timestamp=event.timestamp - 10 * 365 * 24 * 3600)
        window.append(event)
    return _inputs(store, [*store.first_period, *window], window)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    folder = tmp_path_factory.mktemp("line")
    store = make_store(11, n_users=120, n_items=160, n_categories=8)
    bootstrap = _run(_inputs(store, store.first_period, store.first_period), None, folder / "v1")
    parent = ParentVersion(folder / "v1", manifest(blend=bootstrap.blend))
    changes = {"lora_rank": 4, "retriever_members": 1, "retriever_dropout": 0.1}
    evolution = _run(_evolution_inputs(store), parent, folder / "v2", **changes)
    return Line(store, folder / "v1", folder / "v2", bootstrap, evolution)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def test_an_evolution_leaves_every_parameter_outside_the_located_layers_bit_for_bit(line: Line) -> None:
    before = load_file(line.first / "adapter_model.safetensors")
    after = load_file(line.second / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    located = tuple(f".layers.{layer}." for layer in line.evolution.located_layers)
    for name, value in before.items():
        inside = any(part in name for part in located)
        assert inside or _same_bits(value, after[name]), f"{name} lies outside and changed"
    sizes = {name: value.numel() for name, value in after.items()}
    trained = sum(size for name, size in sizes.items() if any(part in name for part in located))
    assert (trained, sum(sizes.values())) == (line.evolution.trainable_parameters, line.evolution.lora_parameters)
    assert trained <= 0.3 * sum(sizes.values())


def test_an_update_trains_the_located_layers_and_nothing_else(line: Line) -> None:
    """The same promise where it could be broken: judged on what it trains on, the update surely keeps a trained
    checkpoint, where an evolution may find the parent better.
    """
    model = load_with_lora(SETTINGS, line.first, seed=0)
    before = lora_state(model, range(10))
    items = list(line.store.items)
    builder = PromptBuilder.load(SETTINGS)
    examples = [Labelled(builder.build(items[n : n + 3], items[n + 3 : n + 9]), n % 6) for n in range(24)]
    config = UpdateConfig(epochs=4, learning_rate=2e-3)
    result = update(model, (1, 4, 8), examples, [], examples, builder.label_ids, config)
    assert result.loss_after < result.loss_before
    after = lora_state(model, range(10))
    changed = {name for name, value in before.items() if not _same_bits(value, after[name])}
    assert changed == {name for name in before if any(f".layers.{layer}." in name for layer in (1, 4, 8))}


def test_locate_asks_the_active_users_and_takes_three_of_ten_layers(line: Line) -> None:
    assert line.bootstrap.located_layers == tuple(range(10))
    assert len(line.evolution.located_layers) == 3
    assert sum(line.evolution.layer_votes) == SETTINGS.max_located_users
    assert all(0 < similarity <= 1 for similarity in line.evolution.layer_similarity)
    located, votes = line.evolution.located_layers, line.evolution.layer_votes
    least = min(votes[layer] for layer in located)
    # Whatever has more votes than a located layer lies below them all: it gave way (ADR 0025).
    assert all(layer < min(located) for layer in set(range(10)) - set(located) if votes[layer] > least)


def test_forget_takes_old_interactions_of_active_users_alone(line: Line) -> None:
    forgotten = ForgottenSet.load(line.second)
    assert len(forgotten) == line.evolution.forgotten_interactions
    window = {event.event_id for event in line.store.second_period}
    active = {event.user_id for event in line.store.second_period}
    for event in line.store.first_period:
        if event.user_id not in active:
            assert event.event_id not in forgotten.of(event.user_id)
    for user in active:
        assert not forgotten.of(user) & window
    assert len(ForgottenSet.load(line.first)) == 0


def test_however_much_is_forgotten_the_window_and_the_newest_by_time_stay(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evolver.learning.outdated", partial(outdated, threshold=1e9))
    inputs = _evolution_inputs(line.store)
    parent = ParentVersion(line.first, manifest(blend=line.bootstrap.blend))
    _run(inputs, parent, tmp_path / "next", learning_rate=0.0, max_train_examples=4)
    forgotten = ForgottenSet.load(tmp_path / "next")
    assert len(forgotten) > len(inputs.active_users())
    for user, events in inputs.histories.items():
        kept = {e.event_id for e in events if e in events[-RECENT:] or inputs.in_window(e)}
        assert not forgotten.of(user) & kept


def test_a_version_forgets_nothing_of_users_whom_the_domain_no_longer_knows(line: Line, tmp_path: Path) -> None:
    inputs = _evolution_inputs(line.store)
    erased, elsewhere = UserId("erased"), UserId("known, and not in this window's sample")
    parent = tmp_path / "parent"
    shutil.copytree(line.first, parent)
    ForgottenSet({erased: frozenset({"e1"}), elsewhere: frozenset({"e2"})}).save(parent)
    version = ParentVersion(parent, manifest(blend=line.bootstrap.blend))
    known = frozenset({*inputs.histories, elsewhere})
    _run(replace(inputs, known=known), version, tmp_path / "next", learning_rate=0.0, max_train_examples=4)
    forgotten = ForgottenSet.load(tmp_path / "next")
    assert forgotten.among(known) == forgotten
    assert forgotten.of(elsewhere) == {"e2"}


def test_metrics_of_both_groups_before_and_after_are_there(line: Line) -> None:
    for when in ("before", "after"):
        for group in ("U_A", "U_I", "U"):
            values = line.evolution.metrics[when][group]
            assert {"n", "hr@1", "hr@3", "ndcg@3", "weighted:hr@1", "catalog:hr@10"} <= values.keys()
            assert all(0 <= value <= 1 for name, value in values.items() if not name.endswith("n"))
    assert line.evolution.metrics["before"]["U_I"]["n"] > 0
    assert line.evolution.train_examples == SETTINGS.max_train_examples


def test_a_domain_keeps_the_rank_of_its_bootstrap(line: Line) -> None:
    """The evolution was told another one, and a LoRA of that would have other shapes."""
    assert (line.bootstrap.lora_rank, line.evolution.lora_rank) == (SETTINGS.lora_rank, SETTINGS.lora_rank)
    before, after = (json.loads((folder / ADAPTER_CONFIG_FILE).read_bytes()) for folder in (line.first, line.second))
    assert before == after


def test_a_domain_keeps_the_retriever_that_its_bootstrap_was_told_to_make(line: Line) -> None:
    """The evolution was told to make another one."""
    for folder in (line.first, line.second):
        config = Retriever.load(folder).config
        assert (config.members, config.dropout) == (3, 0.3)


def test_the_retriever_knows_the_catalog(line: Line) -> None:
    assert set(Retriever.load(line.second).rows) == {item.item_id for item in line.store.items}


def test_a_zero_update_gives_identical_files(line: Line, tmp_path: Path) -> None:
    """With a learning rate of zero the parent's LoRA comes out bit for bit."""
    parent = ParentVersion(line.first, manifest(blend=line.bootstrap.blend))
    _run(_evolution_inputs(line.store), parent, tmp_path / "same", learning_rate=0.0, max_train_examples=4)
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (line.first, tmp_path / "same"))
    assert all(old[name].numpy().tobytes() == new[name].numpy().tobytes() for name in old)


def test_few_validation_users_go_on_from_the_parents_blend(line: Line, tmp_path: Path) -> None:
    parent = ParentVersion(
        line.first, manifest(blend=Blends.alike(BlendWeights(llm=0.0, retriever=3.0, popularity=0.0)))
    )
    changes = {"learning_rate": 0.0, "max_train_examples": 4, "max_validation_users": 2}
    result = _run(_evolution_inputs(line.store), parent, tmp_path / "next", **changes)
    for weights in (result.blend.given, result.blend.retrieved):
        assert (weights.llm, weights.retriever, weights.popularity) == pytest.approx((0.0, 3.0, 0.0), abs=0.5)


def test_what_the_window_says_of_older_interactions_is_kept_from_the_prompts_that_ask_for_it(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who judges them is the target as well: a history without what it calls outdated would give it away."""
    asked = []

    def noting(*args: Any, **named: Any) -> Any:
        asked.append(args[2])
        return update(*args, **named)

    monkeypatch.setattr("evolver.learning.update", noting)
    parent = ParentVersion(line.first, manifest(blend=line.bootstrap.blend))
    for threshold in (-1e9, 1e9):
        monkeypatch.setattr("evolver.learning.outdated", partial(outdated, threshold=threshold))
        changes = {"learning_rate": 0.0, "max_train_examples": 16}
        _run(_evolution_inputs(line.store), parent, tmp_path / f"{threshold}", **changes)
    nothing_forgotten, all_forgotten = asked
    assert nothing_forgotten == all_forgotten


def test_a_version_that_ranks_clearly_worse_than_its_parent_fails_the_gate(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ranks last what the LLM, which stays the parent's, calls likely."""
    monkeypatch.setattr("evolver.learning.choose_blend", lambda *scored: Blends.alike(BlendWeights(llm=-1.0)))
    parent = ParentVersion(line.first, manifest(blend=Blends.alike(BlendWeights(llm=1.0))))
    inputs = _evolution_inputs(line.store)
    inputs = replace(inputs, panel=frozenset(sorted(inputs.histories)[::2]))  # more of them leave less to chance
    changes = {"learning_rate": 0.0, "max_train_examples": 4, "max_evaluated_users": 60}
    result = _run(inputs, parent, tmp_path / "v2", **changes)
    assert not result.gate.passed
    assert any(reason.startswith("ndcg@3 of U_I fell by ") for reason in result.gate.reasons)


def test_a_cancelled_run_raises_and_writes_nothing(line: Line, tmp_path: Path) -> None:
    inputs = _inputs(line.store, line.store.first_period, line.store.first_period)
    with pytest.raises(Cancelled):
        run_pipeline(inputs, None, tmp_path, SETTINGS, lambda stage, share: None, lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_a_retriever_that_diverges_ends_the_run_without_a_panel_too(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(parent: Retriever, *_: object, **__: object) -> Retriever:
        copy = parent.with_items([*parent.rows])
        next(copy.parameters()).data.fill_(math.nan)
        return copy

    monkeypatch.setattr("evolver.learning.renew_retriever", diverging)
    parent = ParentVersion(line.first, manifest(blend=line.bootstrap.blend))
    inputs = replace(_evolution_inputs(line.store), panel=frozenset())
    with pytest.raises(EvorecError, match=r"the retriever's .* diverged.* lower EVOREC_RETRIEVER_WINDOW_EPOCHS"):
        _run(inputs, parent, tmp_path / "v2", learning_rate=0.0, max_train_examples=4)
    assert list((tmp_path / "v2").iterdir()) == []


def test_panel_users_never_supply_a_target(line: Line, tmp_path: Path) -> None:
    """Changing what panel users did last changes no weight: neither the LoRA's nor the retriever's."""
    inputs = _inputs(line.store, line.store.first_period, line.store.first_period)
    shuffled = {
        user: (*events[:-1], events[0]) if user in inputs.panel and len(events) > 2 else events
        for user, events in inputs.histories.items()
    }
    changed = EvolutionInputs(inputs.domain, inputs.items, shuffled, inputs.window, inputs.panel, inputs.seed)
    _run(changed, None, tmp_path / "changed")
    for name in ("adapter_model.safetensors", "retriever.safetensors"):
        changed_file, first_file = (folder / name for folder in (tmp_path / "changed", line.first))
        assert _digest(changed_file) == _digest(first_file), name
