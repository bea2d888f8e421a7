"""How much passed through the LLM while something was learned, worked out from the prompts' lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evolver.update import Labelled, UpdateConfig
from shared.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Work:
    """`examples`: passes of training prompts forward and backward. Tokens without padding; what goes backward went
    forward as well, and counts in both.
    """

    examples: int = 0
    tokens_forward: int = 0
    tokens_backward: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.examples + other.examples,
            self.tokens_forward + other.tokens_forward,
            self.tokens_backward + other.tokens_backward,
        )


def tokens(prompts: Iterable[Prompt]) -> int:
    """
    >>> tokens([Prompt((5, 6), ()), Prompt((7,), ())])
    3
    """
    return sum(len(prompt.token_ids) for prompt in prompts)


def work_of_update(
    active: Sequence[Labelled], inactive: Sequence[Prompt], validation: Sequence[Labelled], config: UpdateConfig
) -> Work:
    """What `evolver.update.update` does with these arguments: one training run per consistency weight, the teacher's
    pass and all validations.

    Inactive prompts are drawn with replacement, some in each step; they count at their mean length.
    """
    n_trained = len(inactive) - len(inactive) // 5
    aligned = config.epochs * tokens(example.prompt for example in active)
    steps = config.epochs * -(-len(active) // config.batch_size)
    drawn = steps * config.inactive_beside if n_trained else 0
    consistent = round(drawn * tokens(inactive[:n_trained]) / max(1, n_trained))
    weights = config.consistency if inactive else config.consistency[:1]
    backward = sum(aligned + (consistent if weight > 0 else 0) for weight in weights)
    # A validation before training, and `checks` in each run as far as there are steps.
    validations = 1 + len(weights) * min(config.checks, steps)
    judged = tokens(example.prompt for example in validation) + tokens(inactive[n_trained:])
    return Work(
        examples=len(weights) * config.epochs * len(active),
        tokens_forward=tokens(inactive) + backward + validations * judged,
        tokens_backward=backward,
    )
