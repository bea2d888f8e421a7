"""Plain rules on the same candidates: what a recommender has to beat before anybody installs it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from evolver.bench.cases import Cases, Question, Round
from evolver.bench.scores import CaseScores, case_scores
from evolver.splits import item_sequence
from shared.types import Item, ItemId

POPULARITY, DECAYED, CATEGORY, TITLE_WORDS = "popularity", "decayed popularity", "category", "title words"
RULES = {
    POPULARITY: "how often it was bought",
    DECAYED: "how often it was bought, an event counting half after each half-life",
    CATEGORY: "whether its category is among those of the last 10 items",
    TITLE_WORDS: "how many words of its title occur in the last 10 titles",
}
LAST = 10
_WORD = re.compile(r"\w+")

Rule = Callable[[Sequence[ItemId], ItemId], float]
"""(history, oldest first; candidate) -> score"""


def score_rules(a_round: Round) -> dict[str, CaseScores]:
    """Every rule's scores of every drawn case: `memory/uniform` and so on."""
    catalog = {item.item_id: item for item in a_round.inputs.items}
    return {
        f"{kind}/{name}": _scored(cases, _rules(question, catalog))
        for kind, question in a_round.questions.items()
        for name, cases in question.cases.items()
    }


def _scored(cases: Cases, rules: Mapping[str, Rule]) -> CaseScores:
    histories = [item_sequence(target.before) for target, _ in cases]
    return case_scores(
        [case.user_id for _, case in cases],
        [case.active for _, case in cases],
        [case.candidates.index(case.target) for _, case in cases],
        {
            name: [
                [rule(history, item) for item in case.candidates]
                for history, (_, case) in zip(histories, cases, strict=True)
            ]
            for name, rule in rules.items()
        },
    )


def _rules(question: Question, catalog: Mapping[ItemId, Item]) -> dict[str, Rule]:
    bought = Counter(event.item_id for events in question.events.values() for event in events)
    words = {item_id: title_words(item.title) for item_id, item in catalog.items()}

    def category(history: Sequence[ItemId], item: ItemId) -> float:
        return float(catalog[item].category in {catalog[one].category for one in history[-LAST:]})

    def title(history: Sequence[ItemId], item: ItemId) -> float:
        return float(len(words[item] & frozenset().union(*(words[one] for one in history[-LAST:]))))

    return {
        POPULARITY: lambda _, item: float(bought[item]),
        DECAYED: lambda _, item: question.popularity.get(item, 0.0),
        CATEGORY: category,
        TITLE_WORDS: title,
    }


def title_words(title: str) -> frozenset[str]:
    """Lower-cased words of at least three letters: shorter ones ("oz", "of", "2") match everything.

    >>> sorted(title_words("Acme Cream of Roses, 2 oz"))
    ['acme', 'cream', 'roses']
    """
    return frozenset(word for word in _WORD.findall(title.lower()) if len(word) > 2)
