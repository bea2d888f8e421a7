"""Items that try to be more than items: no text of theirs changes what a prompt is made of."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from shared.catalog import clean_text
from shared.config import SHIPPED_BASE_MODEL
from shared.prompt import (
    ANSWER_HEADER,
    CANDIDATES_HEADER,
    CATEGORY_SEPARATOR,
    HISTORY_HEADER,
    NO_HISTORY,
    PromptBuilder,
    shown,
)
from shared.types import Item, ItemId
from tests.faults.conftest import SEED, Tell

TOKENIZER = str(SHIPPED_BASE_MODEL / "tokenizer.json")
SPECIAL = tuple(token.content for token in Tokenizer.from_file(TOKENIZER).get_added_tokens_decoder().values())
BUILDER = PromptBuilder(Tokenizer.from_file(TOKENIZER))
FOREIGN = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<s>", "</s>", "[INST]")
TEMPLATE = (HISTORY_HEADER, CANDIDATES_HEADER, ANSWER_HEADER, NO_HISTORY, CATEGORY_SEPARATOR, "\n", "\r\n", "\v", "\f")
BIDI = tuple("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
INVISIBLE = tuple("\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u115f\u3164\u180e\u0000\u0085\u2028\u2029\ud800\udfff")
# NFKC makes `<|label-00|>` of full-width signs.
WIDE = tuple("".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token) for token in SPECIAL[:6])
SPLIT = tuple("\u200b".join(token) for token in SPECIAL[:6]) + tuple("\u00ad".join(token) for token in SPECIAL[:6])


def any_of(*groups: Sequence[str]) -> st.SearchStrategy[str]:
    return st.one_of(*(st.sampled_from(group) for group in groups))


pieces = st.one_of(
    any_of(SPECIAL, FOREIGN, TEMPLATE, BIDI, INVISIBLE, WIDE, SPLIT),
    st.text(max_size=20),
    st.text(st.characters(codec=None), max_size=8),
)
texts = st.lists(pieces, max_size=12).map("".join)
items = st.builds(Item, st.text(max_size=5).map(ItemId), title=texts, category=texts, brand=texts)
prompts = st.tuples(st.lists(items, max_size=12), st.lists(items, min_size=1, max_size=6))


def cleaned(item: Item) -> Item:
    """As the catalog stores it."""
    return Item(item.item_id, clean_text(item.title), clean_text(item.category), clean_text(item.brand))


def qwen_like() -> Tokenizer:
    """Byte-level, as Qwen's: no labels of its own, special tokens, and added ones that are not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [f"Ġ{letter}" for letter in "ABCDEFGHIJ"]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *letters])}
    merges = [("Ġ", letter) for letter in "ABCDEFGHIJ"]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([*FOREIGN[:3], AddedToken("<pad>", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([*FOREIGN[3:], AddedToken("candidates", normalized=True, single_word=True)])
    return tokenizer


def broken(builder: PromptBuilder, history: Sequence[Item], candidates: Sequence[Item]) -> list[str]:
    """How the prompt differs from what its numbers of items ask for; the order of its parts is written out anew."""
    prompt = builder.build(history, candidates)
    ids, labels = list(prompt.token_ids), list(builder.label_ids[: len(candidates)])
    template = {text: encode(builder, text) for text in (HISTORY_HEADER, CANDIDATES_HEADER, ANSWER_HEADER, NO_HISTORY)}
    (line_end,) = encode(builder, "\n")
    *lines, answer = split(ids, line_end)
    n_history = len(shown(history, builder.history_window))
    found = []
    if len(lines) != 1 + max(1, n_history) + 1 + len(candidates):
        return [f"{len(lines)} lines for {n_history} + {len(candidates)} items"]
    candidate_lines = lines[-len(candidates) :]
    if answer != template[ANSWER_HEADER]:
        found.append("the answer's place")
    if [*lines[0], line_end] != template[HISTORY_HEADER]:
        found.append("the history's header")
    if [*lines[-len(candidates) - 1], line_end] != template[CANDIDATES_HEADER]:
        found.append("the candidates' header")
    if not history and [*lines[1], line_end] != template[NO_HISTORY]:
        found.append("the empty history")
    if [line[-1:] for line in candidate_lines] != [[label] for label in labels]:
        found.append("labels at the ends of the candidates' lines")
    if [ids[position] for position in prompt.label_positions] != labels:
        found.append("label positions")
    added = set(builder._tokenizer.get_added_tokens_decoder())
    own = set(builder.label_ids) & added
    if [token for token in ids if token in added] != (labels if own else []):
        found.append("special tokens")
    return found


def encode(builder: PromptBuilder, text: str) -> list[int]:
    ids: list[int] = builder._tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def split(ids: list[int], separator: int) -> list[list[int]]:
    """
    >>> split([1, 0, 2, 3, 0], 0)
    [[1], [2, 3], []]
    """
    lines: list[list[int]] = [[]]
    for token in ids:
        if token == separator:
            lines.append([])
        else:
            lines[-1].append(token)
    return lines


BUILDERS = {"shipped": BUILDER, "qwen-like": PromptBuilder(qwen_like())}


@pytest.mark.parametrize("name", BUILDERS)
def test_no_text_of_an_item_changes_a_prompt(name: str, full: bool, outcome: Tell) -> None:
    builder, tried = BUILDERS[name], [0, 0]

    @seed(SEED)
    @settings(max_examples=20_000 if full else 300, deadline=None, database=None)
    @given(prompts)
    def hostile(prompt: tuple[list[Item], list[Item]]) -> None:
        history, candidates = prompt
        assert broken(builder, history, candidates) == []
        assert broken(builder, [*map(cleaned, history)], [*map(cleaned, candidates)]) == []
        tried[0] += 1
        tried[1] += len(history) + len(candidates)

    hostile()
    what = f"Titles and categories change neither labels, special tokens nor structure of a prompt ({name} tokenizer)"
    outcome(6, what, faults={"hostile item": tried[1]}, cases=2 * tried[0])


def test_no_special_token_comes_out_of_any_text(full: bool, outcome: Tell, rng: random.Random) -> None:
    """Every added token of the vocabulary, in disguises that Unicode normalisation, case or trimming might take off."""
    added = set(BUILDER._tokenizer.get_added_tokens_decoder())
    disguises = list(disguised(SPECIAL if full else rng.sample(SPECIAL, 20)))
    leaking = [
        text
        for text in disguises
        for candidate in (text, clean_text(text))
        if added & set(BUILDER._tokenise_item(candidate, candidate))
    ]
    outcome(
        6,
        "No disguise of a special token becomes one",
        faults={"disguised special token": len(disguises)},
        cases=2 * len(disguises),
        lost=len(leaking),
    )


def disguised(tokens: Sequence[str]) -> Iterator[str]:
    for token in tokens:
        wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in token)
        forms = (token, token.upper(), token.title(), wide, *(unicodedata.normalize(f, wide) for f in ("NFKC", "NFKD")))
        for form in forms:
            for joined in (form, *(char.join(form) for char in (*BIDI, *INVISIBLE))):
                yield from (
                    joined,
                    f" {joined} ",
                    f"x{joined}x",
                    joined * 3,
                    f"\n{joined}\n",
                    f"{joined}{HISTORY_HEADER}",
                )
        yield from (token[:at] + token + token[at:] for at in range(len(token)))  # one left when one is taken out
