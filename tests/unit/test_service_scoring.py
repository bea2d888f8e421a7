from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.recommend import _wanted
from service.scoring import by_llm, by_popularity, by_retriever, log_softmax, softmax, tail_scores
from shared.catalog import _decode, _encode
from shared.categories import in_categories
from shared.ranking import BlendWeights
from shared.types import Item, ItemId

LLM_ALONE = BlendWeights(llm=1.0, retriever=0.0, popularity=0.0)
scores = st.lists(st.floats(-500, 0), min_size=1, max_size=40)
categories = st.text(
    st.one_of(st.sampled_from("> a\u0301\u00a0\uff1e\ufdfa"), st.characters()), min_size=1, max_size=512
)


@given(scores)
def test_softmax_sums_to_one_and_is_the_exponential_of_log_softmax(values: list[float]) -> None:
    shares = softmax(values)
    assert sum(shares) == pytest.approx(1.0)
    assert shares == pytest.approx([math.exp(value) for value in log_softmax(values)])


def test_the_blend_ranks_the_head_and_the_tail_follows_in_the_retrievers_order() -> None:
    pairs = [(ItemId(name), score) for name, score in (("a", -1.0), ("b", -2.0), ("c", -3.0), ("d", -3.5))]
    logprobs = {ItemId("a"): math.log(0.25), ItemId("b"): math.log(0.75)}
    ranked = by_llm(pairs, logprobs, [0.5, 0.5], LLM_ALONE)
    assert [each.item_id for each in ranked] == ["b", "a", "c", "d"]
    assert [ranked[0].score, ranked[1].score] == pytest.approx([0.75, 0.25])
    assert [each.llm is None for each in ranked] == [False, False, True, True]


@example(values=[0.0, -14.0, -16.0, -16.0], split=3)
@given(values=scores, split=st.integers(1, 40))
def test_scores_never_rise_along_the_ranking(values: list[float], split: int) -> None:
    pairs = [(ItemId(f"i{n}"), value) for n, value in enumerate(sorted(values, reverse=True))]
    head = pairs[:split]
    logprobs = dict(zip((item for item, _ in head), log_softmax([-score for _, score in head]), strict=True))
    ranked = by_llm(pairs, logprobs, [0.1] * len(head), LLM_ALONE)
    found = [each.score for each in ranked]
    assert found == sorted(found, reverse=True)
    assert {each.item_id for each in ranked} == {item for item, _ in pairs}
    assert all(0.0 <= score <= 1.0 for score in found)


def test_the_tail_starts_below_the_head() -> None:
    assert tail_scores(0.5, []) == []
    assert tail_scores(0.5, [-7.0])[0] < 0.5


def test_fallback_rankings() -> None:
    pairs = [(ItemId("a"), -1.0), (ItemId("b"), -1.0 - math.log(3))]
    assert [each.score for each in by_retriever(pairs)] == pytest.approx([0.75, 0.25])
    assert [each.item_id for each in by_popularity([(ItemId("x"), 0.1), (ItemId("y"), 0.3), (ItemId("z"), 0.1)])] == [
        "y",
        "x",
        "z",
    ]
    assert by_retriever([]) == []


def test_a_category_includes_what_lies_below_it() -> None:
    assert in_categories("Beauty > Skin Care > Creams", {"Skin Care"})
    assert in_categories("Beauty > Skin Care > Creams", {"Beauty > Skin Care"})
    assert not in_categories("Beauty > Skin Care", {"Skin"})
    assert not in_categories("", {"Skin"})


@given(categories)
def test_an_item_is_found_by_the_category_it_was_put_with_and_by_the_one_that_is_shown(category: str) -> None:
    item = _decode(ItemId("i"), _encode(Item(ItemId("i"), "Cream", category)))
    for asked in (category, item.category):
        wanted = _wanted([asked])
        assert wanted is not None
        assert in_categories(item.category, wanted)
