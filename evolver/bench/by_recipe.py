"""A strategy that is a recipe: the evolver's own learner, with its costs and the files for the next round."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from evolver.bench.added_memory import AddedMemory
from evolver.bench.machine import clock
from evolver.bench.strategy import Cost, Learned, Task
from evolver.bench.version_files import load_blend, save_blend
from evolver.device import device_of_run
from evolver.inputs import EvolutionInputs
from evolver.learning import Learner, Lesson
from evolver.recipe import BOOTSTRAP, Recipe
from evolver.splits import Split
from evolver.stages import Stages
from shared.config import Settings

Merge = Callable[[Learner, Lesson], Lesson]


def by_recipe(recipe: Recipe) -> Callable[[Task], Learned]:
    """`Strategy.learn` of a strategy that differs from EvoRec by its recipe alone."""
    return partial(learn, recipe)


def learn(recipe: Recipe, task: Task, merge: Merge | None = None) -> Learned:
    """Go on from the task's parent by a recipe; `merge` may make another version of what was trained."""
    return _learn(recipe, task.inputs, task.split, task.parent, task.out, task.settings, task.report, merge)


def make_bootstrap(
    inputs: EvolutionInputs, split: Split, out: Path, settings: Settings, report: Callable[[str, float], None]
) -> Learned:
    """The version of the past alone, in the folder `out`: the evolver's own bootstrap."""
    return _learn(BOOTSTRAP, inputs, split, None, out, settings, report, None)


def _learn(
    recipe: Recipe,
    inputs: EvolutionInputs,
    split: Split,
    parent: Path | None,
    out: Path,
    settings: Settings,
    report: Callable[[str, float], None],
    merge: Merge | None,
) -> Learned:
    device = device_of_run(settings.train_device)
    stages = Stages(report, clock=clock(device))
    with AddedMemory(device) as memory:
        learner = Learner(inputs, split, parent, settings, recipe, stages)
        lesson = learner.learn()
        if merge is not None:
            with stages.stage("merge"):
                lesson = merge(learner, lesson)
        with stages.stage("blend"):
            blends = learner.blend(lesson.version, load_blend(parent) if parent else None)
    lesson.save(out)
    save_blend(blends, out)
    return Learned(
        version=lesson.version,
        blend=blends,
        location=lesson.location,
        forgotten_interactions=lesson.forgetting.count,
        forgotten_share=lesson.forgetting.share,
        consistency=lesson.updated.consistency,
        validation_loss=(lesson.updated.loss_before, lesson.updated.loss_after),
        cost=Cost(
            seconds=stages.seconds,
            examples=learner.work.examples,
            tokens_forward=learner.work.tokens_forward,
            tokens_backward=learner.work.tokens_backward,
            trainable_parameters=lesson.trainable_parameters,
            lora_parameters=lesson.lora_parameters,
            added_memory_mib=memory.mib,
        ),
    )
