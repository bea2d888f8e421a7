"""Training prompts, drawn from corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evolver.pretrain.config import Stage
from evolver.pretrain.corpus import Corpus, by_category
from shared.errors import InvalidInput
from shared.prompt import Prompt, PromptBuilder


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` [B, T] padded on the right, `last` [B] (answer positions), `labels` [B, C] (label positions), `target`
    [B].
    """

    ids: Tensor
    last: Tensor
    labels: Tensor
    target: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(tensor.to(device) for tensor in (self.ids, self.last, self.labels, self.target)))


class Sampler:
    """Draws training prompts from corpora; a step's batch depends on seed and step alone, so that a resumed run is the
    same run.

    Who had nearly all of the catalog is asked nothing: there are not enough other candidates. Raises `InvalidInput`
    where that leaves nobody.
    """

    def __init__(self, corpora: Sequence[Corpus], builder: PromptBuilder, stages: Sequence[Stage], seed: int) -> None:
        self._corpora = corpora
        self._builder = builder
        self._seed = seed
        self._by_category = [by_category(corpus.items) for corpus in corpora]
        candidates = max(stage.candidates for stage in stages)
        self._positions = np.array(
            [
                (number, user, position)
                for number, corpus in enumerate(corpora)
                for user, sequence in enumerate(corpus.sequences.values())
                if len(corpus.items) - len(set(sequence)) >= candidates - 1
                for position in range(1, len(sequence))
            ],
            dtype=np.int64,
        )
        if not len(self._positions):
            raise InvalidInput(
                f"A base learns to choose among {candidates} items, {candidates - 1} of which the user never had, and "
                f"of {sum(len(corpus.items) for corpus in corpora)} items no user with two interactions leaves that "
                "many. Give a larger catalog, or take a base that there is (the shipped one; `evorec bench --base`)."
            )
        self._sequences = [list(corpus.sequences.values()) for corpus in corpora]

    def batch(self, stage: Stage, step: int, length: int) -> Batch:
        """The prompts of a step, padded or cut (histories first) to `length` tokens."""
        rng = np.random.default_rng([self._seed, step])
        rows = self._positions[rng.integers(0, len(self._positions), size=stage.batch)]
        built = [self._example(rng, stage, length, *map(int, row)) for row in rows]
        ids = torch.zeros(stage.batch, length, dtype=torch.long)
        for row, (tokens, _, _) in enumerate(built):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return Batch(
            ids,
            torch.tensor([len(tokens) - 1 for tokens, _, _ in built]),
            torch.tensor([positions for _, positions, _ in built]),
            torch.tensor([target for _, _, target in built]),
        )

    def length(self, stage: Stage) -> int:
        """A prompt length (a multiple of 16) that nearly all prompts of the stage keep to."""
        rng = np.random.default_rng(self._seed)
        rows = self._positions[rng.integers(0, len(self._positions), size=400)]
        lengths = [len(self._example(rng, stage, 10_000, *map(int, row))[0]) for row in rows]
        return int(np.ceil(np.quantile(lengths, 0.98) / 16) * 16)

    def _example(
        self, rng: np.random.Generator, stage: Stage, length: int, number: int, user: int, position: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        corpus, sequence = self._corpora[number], self._sequences[number][user]
        target = sequence[position]
        start = max(0, position - int(rng.integers((stage.history + 1) // 2, stage.history + 1)))
        history = [corpus.items[index] for index in sequence[start:position]]
        if rng.random() < stage.matches:
            shelf = self._by_category[number][corpus.items[target].category]
            match = target if rng.random() < 0.5 else int(shelf[rng.integers(len(shelf))])
            history[int(rng.integers(len(history)))] = corpus.items[match]
        candidates = [target, *self._negatives(rng, stage, number, sequence, position)]
        order = rng.permutation(len(candidates))
        shown = [corpus.items[candidates[index]] for index in order]
        prompt = self._builder.build(history, shown)
        while len(prompt.token_ids) > length and history:
            history = history[1:]
            prompt = self._builder.build(history, shown)
        if len(prompt.token_ids) > length:  # very long titles: fewer labels would not fit the batch, so draw again
            return self._example(rng, stage, length, *map(int, self._positions[rng.integers(0, len(self._positions))]))
        ids = self._any_labels(rng, prompt) if rng.random() < stage.any_label else prompt.token_ids
        return ids, prompt.label_positions, int(np.flatnonzero(order == 0)[0])

    def _any_labels(self, rng: np.random.Generator, prompt: Prompt) -> tuple[int, ...]:
        """The prompt with other labels, in ascending order as always."""
        ids = list(prompt.token_ids)
        chosen = rng.choice(len(self._builder.label_ids), size=prompt.n_candidates, replace=False)
        for position, label in zip(prompt.label_positions, sorted(chosen.tolist()), strict=True):
            ids[position] = self._builder.label_ids[label]
        return tuple(ids)

    def _negatives(
        self, rng: np.random.Generator, stage: Stage, number: int, sequence: tuple[int, ...], position: int
    ) -> list[int]:
        items, shelves = self._corpora[number].items, self._by_category[number]
        near = [items[index].category for index in (sequence[position], *sequence[max(0, position - 3) : position])]
        taken = set(sequence)
        chosen: list[int] = []
        while len(chosen) < stage.candidates - 1:
            if rng.random() < stage.hard:
                shelf = shelves[near[int(rng.integers(len(near)))]]
                index = int(shelf[rng.integers(len(shelf))])
            else:
                index = int(rng.integers(len(items)))
            # A small shelf can be used up: after a few tries anything unseen will do.
            if index not in taken:
                chosen.append(index)
                taken.add(index)
            elif rng.random() < 0.2:
                stage = replace(stage, hard=stage.hard / 2)
        return chosen
