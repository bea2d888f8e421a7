"""What an evolution's training and scoring cost per prompt, on the shipped base: `python -m tests.load.training`.

Training is `update` as the evolver runs it, with its number of epochs, on prompts of a generated store; only which
layers train differs. Scoring is compared with its definition: every block whole, LoRA beside the weights.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from rich.progress import Progress

from evolver.batches import batches_by_length, collate, score_prompts
from evolver.lora import load_with_lora, lora_parameters, lora_state, restore_lora
from evolver.lower_blocks import batches_for
from evolver.stores import make_store
from evolver.trunk import decoder_layers, run_trunk
from evolver.update import Labelled, UpdateConfig, update
from shared.config import Settings
from shared.prompt import Prompt, PromptBuilder
from shared.types import ItemId, UserId
from tests.load.results import Entry, compared, save

if TYPE_CHECKING:
    from peft import PeftModel

COMMAND = "python -m tests.load.training"
STORE_SEED = 7001
HISTORY, CANDIDATES = 16, 30  # some 400 tokens
LORA_STD = 0.02
SCORED = 32  # prompts in a batch of what it is compared with
LOCATED = ((7, 8, 9), (4, 8, 9), (0, 8, 9))
# Of fine-tuning all layers, where the lowest located layer is in the upper two thirds.
TARGET = 0.60
FINETUNE, WHOLE = "training, all layers", "scores, the whole pass with LoRA apart"


def examples(builder: PromptBuilder, n: int) -> list[Labelled]:
    """Users' next purchases, among draws from what they do not own."""
    store = make_store(STORE_SEED, n_users=n)
    items = {item.item_id: item for item in store.items}
    owned: dict[UserId, list[ItemId]] = {}
    for event in (*store.first_period, *store.second_period):
        owned.setdefault(event.user_id, []).append(event.item_id)
    made = []
    for user, history in sorted(owned.items()):
        rng = random.Random(user)
        target = store.future[user]
        others = rng.sample(sorted(items.keys() - {*history, target}), CANDIDATES - 1)
        candidates = rng.sample([target, *others], CANDIDATES)
        prompt = builder.build([items[item] for item in history], [items[item] for item in candidates])
        made.append(Labelled(prompt, candidates.index(target)))
    return made


def adapted_model(settings: Settings) -> PeftModel:
    """The shipped base with a LoRA that is not zero."""
    model = load_with_lora(settings, None, seed=0)
    with torch.no_grad():
        for _, name, parameter in lora_parameters(model):
            if "lora_B" in name:
                parameter.normal_(0.0, LORA_STD)
    return model


@torch.inference_mode()
def whole_scores(model: PeftModel, prompts: Sequence[Prompt], label_ids: Sequence[int]) -> None:
    """Every prompt's labels as they are defined."""
    labels = model.get_base_model().lm_head.weight[list(label_ids[:CANDIDATES])]
    for chunk in batches_by_length(prompts, SCORED):
        batch = collate([prompts[i] for i in chunk])
        hidden = run_trunk(model, batch.ids.to(model.device))
        torch.log_softmax(hidden[torch.arange(len(chunk)), batch.mask.sum(1) - 1] @ labels.T, dim=-1)


def works(
    model: PeftModel, shown: Sequence[Labelled], label_ids: Sequence[int], epochs: int
) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, and how many prompts each does."""
    everything = range(len(decoder_layers(model)))
    start = lora_state(model, everything)
    prompts = [example.prompt for example in shown]

    def train(layers: Sequence[int]) -> None:
        restore_lora(model, start)
        update(model, layers, shown, [], [], label_ids, UpdateConfig(epochs=epochs))
        restore_lora(model, start)

    def score() -> None:
        score_prompts(model, prompts, label_ids)

    batch_of = batches_for(model, LOCATED[0], mib=UpdateConfig().kept_mib)

    def score_kept() -> None:
        score_prompts(model, prompts, label_ids, batch_of=batch_of)

    steps = epochs * len(shown)
    trained = {_located(layers): ((lambda layers=layers: train(layers)), steps) for layers in LOCATED}
    return {
        FINETUNE: ((lambda: train(everything)), steps),
        **trained,
        WHOLE: ((lambda: whole_scores(model, prompts, label_ids)), len(shown)),
        "scores": (score, len(shown)),
        f"scores, the blocks below {LOCATED[0][0]} known": (score_kept, len(shown)),
    }


def _located(layers: Sequence[int]) -> str:
    return f"training, layers {', '.join(map(str, layers))}"


def padding(prompts: Sequence[Prompt], size: int) -> float:
    """The share of padding among the tokens of training batches."""
    lengths = [len(prompt.token_ids) for prompt in prompts]
    chunks = batches_by_length(prompts, size, rng=np.random.default_rng(0))
    return 1 - sum(lengths) / sum(len(chunk) * max(lengths[i] for i in chunk) for chunk in chunks)


def measure(n_prompts: int, rounds: int) -> list[Entry]:
    """Every round does everything, in turn from either end."""
    settings = Settings(prompt_history=HISTORY)
    torch.set_num_threads(settings.train_threads or torch.get_num_threads())
    builder, model = PromptBuilder.load(settings), adapted_model(settings)
    shown = examples(builder, n_prompts)
    todo = works(model, shown, builder.label_ids, settings.update_epochs)
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for work, _ in works(model, shown[:2], builder.label_ids, 1).values():
        work()  # first calls allocate and choose kernels
    todo[f"scores, the blocks below {LOCATED[0][0]} known"][0]()
    with Progress() as progress:
        for number in progress.track(range(rounds), description="Training and scoring: rounds"):
            for name in [*todo][:: -1 if number % 2 else 1]:
                work, n = todo[name]
                began = time.perf_counter()
                work()
                seconds[name].append((time.perf_counter() - began) / n)
    prompts = [example.prompt for example in shown]
    return [
        compared("tokens in a prompt", "tokens", [float(np.mean([len(p.token_ids) for p in prompts]))], COMMAND),
        compared("padding in training batches", "share", [padding(prompts, UpdateConfig().batch_size)], COMMAND),
        *_entries(seconds, n_layers=len(decoder_layers(model))),
    ]


def _entries(seconds: dict[str, list[float]], n_layers: int) -> list[Entry]:
    upper = {_located(layers) for layers in LOCATED if min(layers) >= n_layers / 3}
    made = []
    for name, taken in seconds.items():
        baseline = FINETUNE if name.startswith("training") else WHOLE
        if name == baseline:
            made.append(compared(name, "s/prompt", taken, COMMAND))
            continue
        target = TARGET if name in upper else None
        made.append(
            compared(name, "s/prompt", taken, COMMAND, baseline=baseline, against=seconds[baseline], target=target)
        )
    return made


def main(prompts: Annotated[int, typer.Option(min=2)] = 200, rounds: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Measure and write docs/results/performance.json."""
    save("training", measure(prompts, rounds))


if __name__ == "__main__":
    typer.run(main)
