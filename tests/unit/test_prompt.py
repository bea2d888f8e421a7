"""The prompt builder: golden text, and titles that try to be more than titles."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.config import Settings
from shared.errors import InvalidInput
from shared.prompt import LABEL_TOKENS, Prompt, PromptBuilder, candidate_order, shown
from shared.types import Item, ItemId

GOLDEN = Path(__file__).parents[1] / "golden" / "prompt.txt"
BUILDER = PromptBuilder.load(Settings())
HISTORY = [
    Item(ItemId("a"), "Yarmimar graphite wading boots blue", "Outdoor > Fishing"),
    Item(ItemId("b"), "Ulul luxury pour over kettle pro", "Kitchen > Coffee"),
    Item(ItemId("c"), "A title without a category"),
]
CANDIDATES = [
    Item(ItemId("d"), "Kanox portable gel cleanser, 2-pack (blue)", "Beauty > Skin Care"),
    Item(ItemId("e"), "Crème brûlée torch — größer", "Kitchen > Bakeware"),
    Item(
        ItemId("f"),
        "An extremely long title that goes on and on about everything this product could ever be used for",
        "Home",
    ),
]
LONG = replace(CANDIDATES[2], category="An extremely long category that goes on and on about its department")
SPECIAL = [*LABEL_TOKENS[:3], "<|pad|>", "<|end|>", "<think>", "Candidates:", "Next purchase:"]


def text_of(prompt: Prompt) -> str:
    return BUILDER._tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)


def test_golden_text() -> None:
    """A change of this file changes every adapter's answers: say so in the changelog."""
    text = text_of(BUILDER.build(HISTORY, CANDIDATES))
    assert text + "\n" == GOLDEN.read_text()


def test_labels_stand_where_the_prompt_says() -> None:
    prompt = BUILDER.build(HISTORY, CANDIDATES)
    assert [prompt.token_ids[position] for position in prompt.label_positions] == list(BUILDER.label_ids[:3])
    assert prompt.n_candidates == 3


def test_settings_whose_longest_prompt_the_engine_could_not_read_are_refused() -> None:
    settings = Settings()
    history, candidates = ([LONG] * n for n in (settings.prompt_history, settings.rank_candidates))
    longest = len(BUILDER.build(history, candidates).token_ids)
    assert longest < settings.longest_prompt < longest + 20
    Settings(max_model_len=settings.longest_prompt)
    Settings(rank_candidates=100, max_model_len=4096)
    with pytest.raises(ValidationError, match=r"can have \d+ tokens .* or lower EVOREC_RANK_CANDIDATES \(100\)"):
        Settings(rank_candidates=100)


MANY = [Item(ItemId(str(n)), f"thing number {n}") for n in range(40)]


def test_only_the_newest_history_is_used() -> None:
    lines = [text_of(BUILDER.build(MANY[:n], CANDIDATES)).count("thing number") for n in (9, 10, 11, 14, 15)]
    assert lines == [9, 10, 7, 10, 7]
    assert BUILDER.build(MANY, CANDIDATES) == BUILDER.build(shown(MANY, BUILDER.history_window), CANDIDATES)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 10, 50])
def test_the_shown_history_ends_with_the_newest_and_begins_alike_most_of_the_time(window: int) -> None:
    histories = [shown(MANY[:n], window) for n in range(1, len(MANY) + 1)]
    assert all(1 <= len(each) <= window for each in histories)
    assert all(each[-1] is MANY[n] for n, each in enumerate(histories))
    moved = sum(before[0] is not after[0] for before, after in pairwise(histories))
    assert moved <= -(-max(0, len(MANY) - window) // max(1, min(4, window // 2)))


def test_the_number_of_candidates_is_checked() -> None:
    with pytest.raises(InvalidInput, match="1 to 100"):
        BUILDER.build(HISTORY, [])
    with pytest.raises(InvalidInput, match="1 to 100"):
        BUILDER.build(HISTORY, [HISTORY[0]] * 101)


hostile = st.lists(
    st.one_of(st.text(max_size=30), st.sampled_from(SPECIAL), st.just("\n"), st.just("\u2028")), max_size=12
).map("".join)


@given(title=hostile, category=hostile)
def test_no_title_changes_structure_or_labels(title: str, category: str) -> None:
    """Whatever a title holds: the prompt has as many lines and as many special tokens as with a harmless one."""
    harmless = BUILDER.build(HISTORY, CANDIDATES)
    bad = Item(ItemId("x"), title, category)
    prompt = BUILDER.build([*HISTORY, bad], [*CANDIDATES, bad])
    specials = set(BUILDER.label_ids) | {0, 1}
    assert sum(token in specials for token in prompt.token_ids) == 4
    assert [prompt.token_ids[position] for position in prompt.label_positions] == list(BUILDER.label_ids[:4])
    assert text_of(prompt).count("\n") == text_of(harmless).count("\n") + 2


def test_a_base_of_any_tokenizer_gets_labels() -> None:
    """A vocabulary without label tokens of its own offers its single-token letters, as Qwen's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {f"Ġ{letter}": index for index, letter in enumerate("ABCDEFGH")}
    tokenizer = Tokenizer(models.WordLevel({**letters, "?": 99}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert PromptBuilder(tokenizer).label_ids[:8] == tuple(range(8))


def test_candidate_order_is_a_hash_not_the_order_given() -> None:
    ids = [ItemId(f"i{n}") for n in range(20)]
    assert candidate_order(ids, "u1") == candidate_order(list(reversed(ids)), "u1")
    assert candidate_order(ids, "u1") != candidate_order(ids, "u2")
