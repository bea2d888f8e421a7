"""What is counted as passing through the LLM, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

from evolver.update import Labelled, UpdateConfig
from evolver.work import Work, work_of_update
from shared.prompt import Prompt


def _prompts(lengths: Sequence[int]) -> list[Prompt]:
    return [Prompt((7,) * length, (0,)) for length in lengths]


def _labelled(lengths: Sequence[int]) -> list[Labelled]:
    return [Labelled(prompt, 0) for prompt in _prompts(lengths)]


def test_two_epochs_of_three_prompts() -> None:
    """60 tokens, twice, in two steps of an epoch: 120 forward and backward; three validations of 5."""
    config = UpdateConfig(epochs=2, batch_size=2)
    work = work_of_update(_labelled([10, 20, 30]), [], _labelled([5]), config)
    assert work == Work(examples=6, tokens_forward=120 + 3 * 5, tokens_backward=120)


def test_the_teacher_and_the_consistency_term_are_counted() -> None:
    """Five inactive prompts of 10: the teacher reads 50, four are trained on. Each of two steps draws an eighth of a
    batch, two of them, hence 40 tokens; the fifth is judged on three times.
    """
    config = UpdateConfig(epochs=1, batch_size=16)
    work = work_of_update(_labelled([10] * 20), _prompts([10] * 5), [], config)
    assert work == Work(examples=20, tokens_forward=50 + 200 + 40 + 3 * 10, tokens_backward=200 + 40)


def test_each_consistency_weight_is_a_training_run() -> None:
    """Two runs of one step, hence one validation each and one before; a weight of 0 draws no inactive prompts."""
    config = UpdateConfig(epochs=1, batch_size=16, consistency=(0.0, 1.0))
    work = work_of_update(_labelled([10] * 2), _prompts([10] * 5), [], config)
    assert work == Work(examples=4, tokens_forward=50 + 40 + 20 + 3 * 10, tokens_backward=40 + 20)


def test_nothing_to_train_on() -> None:
    assert work_of_update([], [], _labelled([5]), UpdateConfig()) == Work(tokens_forward=5)
