"""`lsat`: a long-term and a short-term LoRA, side by side (LSAT, arXiv 2312.15599).

The long-term LoRA was trained on the past and is kept; each round trains a short-term one afresh, on the window alone.
They are merged with a weight w that validation chooses:

    Delta = w B_long A_long + (1 - w) B_short A_short = [w B_long | (1 - w) B_short] [A_long ; A_short]

which is a LoRA of twice the rank. Both parts carry the same factor alpha / r, and so does the merged one. The paper
averages either the two models' outputs or, by task arithmetic, their matrices; the sum of the products is what the
latter approximates, and one pass serves it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from evolver.batches import score_prompts
from evolver.bench.by_recipe import learn
from evolver.bench.strategies.finetune import WINDOW_ALONE
from evolver.bench.strategy import Learned, Strategy, Task
from evolver.learning import Learner, Lesson
from evolver.lora import load_with_lora, lora_parameters, lora_state
from evolver.recipe import Start
from evolver.scoring import Version
from evolver.trunk import decoder_layers
from evolver.update import ranking_loss
from evolver.work import Work, tokens

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FILE = "adapter_model.safetensors"
SHORT_TERM = replace(WINDOW_ALONE, start=Start.FRESH)
LONG_TERM_WEIGHTS = (0.5, 0.25, 0.75, 0.0, 1.0)  # the first of equals wins


def fuse(long: Tensor, short: Tensor, weight: float, *, is_a: bool) -> Tensor:
    """One matrix of the merged LoRA.  A: [r, in], [r, in] -> [2r, in]; B: [out, r], [out, r] -> [out, 2r]

    >>> fuse(torch.tensor([[4.0]]), torch.tensor([[8.0]]), 0.25, is_a=False)
    tensor([[1., 6.]])
    """
    return torch.cat([long, short]) if is_a else torch.cat([weight * long, (1 - weight) * short], dim=1)


def learn_both(task: Task) -> Learned:
    """Train the short-term LoRA and merge it with the bootstrap's."""
    settings = task.settings.model_copy(update={"lora_rank": 2 * task.settings.lora_rank})
    merged = load_with_lora(settings, None, seed=task.inputs.seed)  # here: loading a base is nobody's learning
    return learn(SHORT_TERM, task, merge=partial(_merge, task, merged))


def _merge(task: Task, merged: PeftModel, learner: Learner, lesson: Lesson) -> Lesson:
    # PEFT writes names without the adapter's own ("default").
    stored = load_file(task.bootstrap / ADAPTER_FILE)
    trained = lora_state(learner.model, range(len(decoder_layers(learner.model))))
    short = {name: matrix.cpu() for name, matrix in trained.items()}
    long = {name: stored[name.replace(".default.", ".")] for name in short}
    index, forgotten = lesson.version.index, lesson.version.forgotten
    validation = learner.validation(index, forgotten)
    prompts = [example.prompt for example in validation]

    def loss(weight: float) -> float:
        _fill(merged, long, short, weight)
        return ranking_loss(score_prompts(merged, prompts, learner.examples.builder.label_ids), validation)

    best = min(LONG_TERM_WEIGHTS, key=loss)
    _fill(merged, long, short, best)
    learner.work += Work(tokens_forward=len(LONG_TERM_WEIGHTS) * tokens(prompts))
    size = sum(parameter.numel() for _, _, parameter in lora_parameters(merged))
    return replace(lesson, version=Version(merged, index, forgotten), lora_parameters=size)


@torch.no_grad()
def _fill(model: PeftModel, long: dict[str, Tensor], short: dict[str, Tensor], weight: float) -> None:
    for _, name, parameter in lora_parameters(model):
        parameter.copy_(fuse(long[name], short[name], weight, is_a="lora_A" in name))


LSAT = Strategy(
    "lsat",
    "A long-term LoRA (the past's, kept) and a short-term one trained afresh on the window, merged with a weight that "
    "validation chooses (LSAT, arXiv 2312.15599).",
    learn_both,
)
