"""One round of every strategy of the benchmark on a small store, and what each of them was seen to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from evolver.batches import make_example
from evolver.bench.strategies import STRATEGIES, make_bootstrap
from evolver.bench.strategy import Learned, Task
from evolver.inputs import EvolutionInputs
from evolver.lora import lora_state
from evolver.pretrain.tiny_model import make_model, save_base_model, train_tokenizer
from evolver.retriever_training import finetune_retriever
from evolver.splits import Split, split
from evolver.stores import Store, make_store
from evolver.update import update
from shared.config import Settings
from shared.prompt import Prompt
from shared.retriever import RetrieverIndex
from shared.types import ItemId, UserId
from tests.store_inputs import store_inputs

ADAPTER_FILE = "adapter_model.safetensors"
N_LAYERS, RANK = 10, 4
PANEL_SHARE = 0.2

Asked = list[tuple[UserId, tuple[ItemId, ...], ItemId]]


class Fit(NamedTuple):
    """How many members of a retriever were fine-tuned, on whose interactions, and how fast."""

    members: int
    users: frozenset[UserId]
    learning_rate: float


@dataclass
class Seen:
    """What one strategy did: (user, history, target) of its labelled prompts, the LoRA that Update began with, how many
    inactive prompts it was given, how its retriever was fine-tuned, what was asked for near negatives, and what share
    of all they are.
    """

    fitted: list[Fit] = field(default_factory=list)
    asked: Asked = field(default_factory=list)
    start: dict[str, Tensor] = field(default_factory=dict)
    n_inactive: int = 0
    near: RetrieverIndex | None = None
    near_share: float | None = None


@dataclass
class Round:
    """One round of every strategy, all from the same bootstrap."""

    settings: Settings
    inputs: EvolutionInputs
    folder: Path
    learned: dict[str, Learned] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)

    def adapter(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / name / ADAPTER_FILE)

    def changed_layers(self, name: str) -> set[int]:
        """Layers with any bit that is not the bootstrap's."""
        before, after = self.adapter("bootstrap"), self.adapter(name)
        assert before.keys() == after.keys()
        return {layer_of(key) for key, value in before.items() if not same_bits(value, after[key])}

    def content(self, name: str, file: str) -> bytes:
        return (self.folder / name / file).read_bytes()


def layer_of(key: str) -> int:
    return int(key.split(".layers.")[1].split(".")[0])


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def evolver_split(inputs: EvolutionInputs, settings: Settings) -> Split:
    return split(inputs, max_panel=settings.max_evaluated_users, max_validation=settings.max_validation_users)


def task_of(played: Round, name: str, parent: str = "bootstrap") -> Task:
    out = played.folder / name
    out.mkdir()
    return Task(
        played.inputs,
        evolver_split(played.inputs, played.settings),
        bootstrap=played.folder / "bootstrap",
        parent=played.folder / parent,
        out=out,
        settings=played.settings,
        report=lambda stage, share: None,
    )


def watched(patch: pytest.MonkeyPatch, seen: Seen) -> None:
    """Note what is asked and trained. Checkpoints are judged on what was trained on, so that training is surely kept,
    where validation may find the parent better.
    """

    def asking(user: Any, history: Any, target: Any, near: RetrieverIndex, *rest: Any, **more: Any) -> Any:
        seen.asked.append((user, tuple(history), target))
        seen.near, seen.near_share = near, more["near_share"]
        return make_example(user, history, target, near, *rest, **more)

    def training(
        model: Any, layers: Any, active: Any, inactive: Sequence[Prompt], _: Any, *rest: Any, **more: Any
    ) -> Any:
        seen.start, seen.n_inactive = lora_state(model, range(N_LAYERS)), len(inactive)
        return update(model, layers, active, inactive, active, *rest, **more)

    def fitting(parent: Any, items: Any, sequences: Any, targets: Any, **more: Any) -> Any:
        users = frozenset(user for epoch in targets for user, places in epoch.items() if places)
        seen.fitted.append(Fit(parent.config.members, users, more["learning_rate"]))
        return finetune_retriever(parent, items, sequences, targets, **more)

    patch.setattr("evolver.retriever_training.finetune_retriever", fitting)
    patch.setattr("evolver.examples.make_example", asking)
    patch.setattr("evolver.learning.update", training)


def _base(store: Store, folder: Path) -> str:
    """Ten layers, as the shipped base has, and narrow."""
    tokenizer = train_tokenizer((item.title for item in store.items), vocab_size=600)
    save_base_model(folder, make_model(tokenizer.get_vocab_size(), hidden_size=48, n_layers=N_LAYERS), tokenizer)
    return str(folder)


def play(folder: Path) -> Round:
    """A round of all strategies, on a small store."""
    store = make_store(11, n_users=120, n_items=160, n_categories=8)
    settings = Settings(
        base_model=_base(store, folder / "base"),
        lora_rank=RANK,
        prompt_history=4,
        title_tokens=4,
        rank_candidates=6,
        max_train_examples=16,
        max_located_users=8,
        max_evaluated_users=4,
        max_validation_users=8,
        retriever_epochs=8,
        retriever_window_epochs=2,
        bootstrap_epochs=3,
        update_epochs=3,
        learning_rate=1e-2,
        train_threads=1,  # several threads add in any order, and equal runs differ in the last bits
    )
    past = store_inputs(store, store.first_period, store.first_period, panel_share=PANEL_SHARE)
    inputs = store_inputs(
        store, (*store.first_period, *store.second_period), store.second_period, panel_share=PANEL_SHARE
    )
    found = Round(settings, inputs, folder)
    (folder / "bootstrap").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        watched(patch, Seen())
        make_bootstrap(past, evolver_split(past, settings), folder / "bootstrap", settings, lambda stage, share: None)
    for name, strategy in STRATEGIES.items():
        with pytest.MonkeyPatch.context() as patch:
            watched(patch, found.seen.setdefault(name, Seen()))
            found.learned[name] = strategy.learn(task_of(found, name))
    return found
