"""Training prompts of catalogs that users know nearly all of."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from evolver.pretrain.config import Stage
from evolver.pretrain.corpus import Corpus, corpus_of
from evolver.pretrain.sampler import Sampler
from shared.config import SHIPPED_BASE_MODEL
from shared.errors import InvalidInput
from shared.prompt import PromptBuilder
from shared.types import Interaction
from tests.bench_support import make_items
from tests.factories import interaction

STAGE = Stage(steps=1, batch=16, candidates=10, history=3, hard=0.5)


def bought(user: str, n: int) -> list[Interaction]:
    return [interaction(user, f"i{number:03d}", at=number) for number in range(n)]


def sampler(corpus: Corpus) -> Sampler:
    tokenizer = Tokenizer.from_file(str(Path(SHIPPED_BASE_MODEL) / "tokenizer.json"))
    return Sampler([corpus], PromptBuilder(tokenizer, history_window=3, title_tokens=12), [STAGE], 0)


def test_a_user_who_had_nearly_everything_is_asked_nothing() -> None:
    """Of 12 items nine others are left by who had 3, and only eight by who had 4."""
    items = make_items(12)
    alone = sampler(corpus_of(items, bought("three", 3)))
    beside = sampler(corpus_of(items, [*bought("three", 3), *bought("four", 4), *bought("all", 12)]))
    length = alone.length(STAGE)
    assert beside.length(STAGE) == length
    batches = [each.batch(STAGE, 0, length) for each in (alone, beside)]
    assert batches[0].labels.shape == (STAGE.batch, STAGE.candidates)
    assert (batches[0].ids == batches[1].ids).all()


def test_a_catalog_that_leaves_nobody_to_ask_is_refused() -> None:
    with pytest.raises(InvalidInput, match="choose among 10 items, 9 of which the user never had, and of 12 items"):
        sampler(corpus_of(make_items(12), [*bought("four", 4), *bought("once", 1)]))
