"""The one prompt builder, for training and for serving.

A prompt is put together from token ids, never from one long string: the template's pieces, and each title tokenised on
its own with every special token of the vocabulary taken out. So a title can neither open a new line nor act as a
special token, and the pieces can be cached.

The LLM answers with one label token (LlamaRec's verbalizer, arXiv 2311.02089, section 3.3): candidate i carries label
i, and one forward pass gives every label's log-probability at the answer position.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from tokenizers import Tokenizer

from shared.base_model import base_model_folder
from shared.config import MAX_CANDIDATES, Settings
from shared.errors import InvalidInput
from shared.types import Item, ItemId

LABEL_TOKENS = tuple(f"<|label-{index:02d}|>" for index in range(MAX_CANDIDATES))

HISTORY_HEADER = "Purchases, oldest first:\n"
CANDIDATES_HEADER = "Candidates:\n"
ANSWER_HEADER = "Next purchase:"
NO_HISTORY = "none\n"
CATEGORY_SEPARATOR = " |"
LINE_END = "\n"
CATEGORY_TOKENS = 4
# The oldest items leave a prompt so many at a time.
HISTORY_BLOCK = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a ranking prompt; the label of candidate i stands at `label_positions[i]`."""

    token_ids: tuple[int, ...]
    label_positions: tuple[int, ...]

    @property
    def n_candidates(self) -> int:
        return len(self.label_positions)


def shown(history: Sequence[T], window: int) -> Sequence[T]:
    """What a prompt shows of a history, oldest first: its newest `window` items, or a few less.

    Old items leave in blocks, not one with each new item: so the next prompt of a user who has done something begins
    like the last one, and the engine's prefix cache, which compares from the front, has most of the history.

    >>> [len(shown(range(n), window=10)) for n in (9, 10, 11, 13, 14, 15)]
    [9, 10, 7, 9, 10, 7]
    """
    block = max(1, min(HISTORY_BLOCK, window // 2))
    beyond = max(0, len(history) - window)
    return history[-(-beyond // block) * block :]


class PromptBuilder:
    """Builds ranking prompts for one tokenizer.

    Raises `InvalidInput` where the vocabulary has fewer than two single-token labels.
    """

    def __init__(self, tokenizer: Tokenizer, *, history_window: int = 10, title_tokens: int = 12) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = frozenset(tokenizer.get_added_tokens_decoder())
        self.history_window = history_window
        self.title_tokens = title_tokens
        self.label_ids = _label_ids(tokenizer)
        self._history_header = self._template(HISTORY_HEADER)
        self._no_history = self._template(NO_HISTORY)
        self._candidates_header = self._template(CANDIDATES_HEADER)
        self._answer_header = self._template(ANSWER_HEADER)
        self._separator = self._template(CATEGORY_SEPARATOR)
        self._line_end = self._template(LINE_END)
        self._item_ids = lru_cache(maxsize=200_000)(self._tokenise_item)

    @classmethod
    def load(cls, settings: Settings) -> PromptBuilder:
        """The builder of `settings.base_model`'s tokenizer."""
        folder = base_model_folder(settings.base_model)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(tokenizer, history_window=settings.prompt_history, title_tokens=settings.title_tokens)

    def build(self, history: Sequence[Item], candidates: Sequence[Item]) -> Prompt:
        """The prompt for a history (oldest first; see `shown`) and candidates in label order.

        Raises `InvalidInput` for no candidate, or more than there are labels.
        """
        if not 1 <= len(candidates) <= len(self.label_ids):
            raise InvalidInput(f"A prompt takes 1 to {len(self.label_ids)} candidates, got {len(candidates)}.")
        ids = list(self._history_header)
        for item in shown(history, self.history_window):
            ids += self._item_line(item)
            ids += self._line_end
        if not history:
            ids += self._no_history
        ids += self._candidates_header
        positions = []
        for label, item in zip(self.label_ids, candidates, strict=False):
            ids += self._item_line(item)
            positions.append(len(ids))
            ids.append(label)
            ids += self._line_end
        ids += self._answer_header
        return Prompt(tuple(ids), tuple(positions))

    def _item_line(self, item: Item) -> tuple[int, ...]:
        return self._item_ids(item.title, item.category)

    def _tokenise_item(self, title: str, category: str) -> tuple[int, ...]:
        leaf = category.rsplit(">", 1)[-1]
        title_ids = self._plain(title)[: self.title_tokens]
        leaf_ids = self._plain(leaf)[:CATEGORY_TOKENS]
        return (*title_ids, *self._separator, *leaf_ids) if leaf_ids else tuple(title_ids)

    def _plain(self, text: str) -> list[int]:
        """Ids of a text without any added token (labels, end of text, tool calls, ...): splitting at any Unicode white
        space takes line ends out, `encode_special_tokens` reads special tokens as text, and what still matches one is
        dropped."""
        # Halves of surrogate pairs, which the catalog keeps out, would be an error of the tokenizer.
        words = " ".join(text[:512].encode(errors="replace").decode().split())
        if not words:
            return []
        return [
            token
            for token in self._tokenizer.encode(" " + words, add_special_tokens=False).ids
            if token not in self._added
        ]

    def _template(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)


def candidate_order(item_ids: Sequence[ItemId], salt: str) -> list[ItemId]:
    """Candidates in an order that tells nothing about them: by a hash of id and salt (serving: the user's id)."""
    return sorted(item_ids, key=lambda item_id: hashlib.blake2b(f"{salt}\0{item_id}".encode(), digest_size=8).digest())


def _label_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """One token id per candidate position: the vocabulary's own label tokens, else its single-token letters and
    pairs.
    """
    own = [tokenizer.token_to_id(token) for token in LABEL_TOKENS]
    found = [token for token in own if token is not None]
    if not found:
        for text in _letters():
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == 1 and ids[0] not in found:
                found.append(ids[0])
            if len(found) == MAX_CANDIDATES:
                break
    if len(found) < 2:
        raise InvalidInput(
            "The base model's vocabulary has no single-token labels (letters after a space): choose another base."
        )
    return tuple(found)


def _letters() -> Iterator[str]:
    yield from (f" {letter}" for letter in string.ascii_uppercase)
    yield from (f" {letter}" for letter in string.ascii_lowercase)
    yield from (f" {first}{second}" for first in string.ascii_uppercase for second in string.ascii_uppercase)
