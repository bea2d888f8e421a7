"""Generated stores: catalogs with readable titles and users whose tastes are known.

They make the shipped base model (many seeds), `evorec demo` (another seed) and tests. A store has what an online shop
has and what an evolution must cope with: content preferences (category, style, brand), purchases that follow one
another (each store has its own complements), popularity, and a second period in which *drifting* users change category
and style, while *steady* ones do not, and in which the complements of some categories change for everyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evolver.store_vocabulary import BRAND_SYLLABLES, DEPARTMENTS, STYLES, VARIANTS
from shared.types import Interaction, Item, ItemId, UserId

DAY_S = 86_400.0
PERIOD_DAYS = 120.0
STORE_OPENS = 1_735_689_600.0  # 2025-01-01T00:00:00Z

# Why a user buys: from a favourite category, what goes with the last purchase, or whatever is popular.
P_FAVOURITE, P_COMPLEMENT = 0.70, 0.20
STYLE_LOYALTY, BRAND_LOYALTY = 8.0, 5.0


@dataclass(frozen=True, slots=True)
class Store:
    """A generated store; `future` is each user's next purchase after the second period."""

    items: tuple[Item, ...]
    first_period: tuple[Interaction, ...]
    second_period: tuple[Interaction, ...]
    future: dict[UserId, ItemId]
    drifting: frozenset[UserId]
    steady: frozenset[UserId]
    # Interactions of the first period that a drifting user's second taste contradicts (what Forget should find).
    outdated: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Taste:
    favourites: tuple[int, ...]
    style: int
    brand_salt: int


@dataclass(frozen=True, slots=True)
class _Shelves:
    """The catalog as arrays over items [I]: category, style, brand (within the category) and popularity."""

    items: tuple[Item, ...]
    category: np.ndarray
    style: np.ndarray
    brand: np.ndarray
    popularity: np.ndarray


def make_store(
    seed: int, *, n_users: int = 600, n_items: int = 480, n_categories: int = 16, drifting_share: float = 0.4
) -> Store:
    """Generate a store from a seed: the same arguments give the same store."""
    rng = np.random.default_rng(seed)
    shelves = _make_shelves(rng, n_items, n_categories)
    complements = _complements(rng, n_categories)
    interactions: tuple[list[Interaction], list[Interaction]] = ([], [])
    future: dict[UserId, ItemId] = {}
    drifting: set[UserId] = set()
    outdated: set[str] = set()
    for number in range(n_users):
        user = UserId(f"user-{number:05d}")
        first, second = _tastes(rng, n_categories, drifts=bool(rng.random() < drifting_share))
        if first != second:
            drifting.add(user)
        last: int | None = None
        bought: set[int] = set()
        for period, (taste, mean) in enumerate(((first, 7.0), (second, 4.0))):
            # Some users stay away in the second period: the inactive ones (U_I).
            active = period == 0 or first != second or rng.random() < 0.4
            for when in np.sort(rng.uniform(0, PERIOD_DAYS, size=(3 - period) + rng.poisson(mean)) if active else []):
                last = _purchase(rng, shelves, taste, complements[period], last, bought)
                bought.add(last)
                event = _interaction(seed, user, shelves.items[last].item_id, period * PERIOD_DAYS + float(when))
                interactions[period].append(event)
                if (
                    period == 0
                    and first != second
                    and shelves.category[last] in set(first.favourites) - set(second.favourites)
                ):
                    outdated.add(event.event_id)
        future[user] = shelves.items[_purchase(rng, shelves, second, complements[1], last, bought)].item_id
    by_time = [tuple(sorted(period, key=lambda event: event.timestamp)) for period in interactions]
    everyone = frozenset(future)
    return Store(
        shelves.items, by_time[0], by_time[1], future, frozenset(drifting), everyone - drifting, frozenset(outdated)
    )


def _complements(rng: np.random.Generator, n_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """What follows a purchase from each category, per period [C], [C]: half of the categories change theirs."""
    first = rng.permutation(n_categories)
    changing = rng.choice(n_categories, size=n_categories // 2, replace=False)
    second = first.copy()
    second[changing] = np.roll(first[changing], 1)
    return first, second


def _interaction(seed: int, user: UserId, item: ItemId, day: float) -> Interaction:
    timestamp = round(STORE_OPENS + day * DAY_S, 3)
    return Interaction(f"{seed}-{user}-{item}-{timestamp:.0f}", user, item, timestamp)


def _make_shelves(rng: np.random.Generator, n_items: int, n_categories: int) -> _Shelves:
    every = [(department, category) for department, shelf in DEPARTMENTS.items() for category in shelf]
    chosen = [every[i] for i in rng.choice(len(every), size=n_categories, replace=False)]
    styles = list(STYLES)
    brands = [[_brand_name(rng) for _ in range(5)] for _ in chosen]
    category = rng.integers(0, n_categories, size=n_items)
    style = rng.integers(0, len(styles), size=n_items)
    brand = rng.integers(0, 5, size=n_items)
    items: list[Item] = []
    titles: set[str] = set()
    for index in range(n_items):
        department, name = chosen[category[index]]
        make = brands[category[index]][brand[index]]
        title = _title(rng, make, STYLES[styles[style[index]]], DEPARTMENTS[department][name])
        while title in titles:
            title = f"{title} {rng.choice(VARIANTS)}"
        titles.add(title)
        items.append(Item(ItemId(f"item-{index:05d}"), title, f"{department} > {name}", make))
    popularity = rng.permutation(1.0 / np.arange(2, n_items + 2) ** 0.6)
    return _Shelves(tuple(items), category, style, brand, popularity)


def _brand_name(rng: np.random.Generator) -> str:
    return "".join(rng.choice(BRAND_SYLLABLES, size=int(rng.integers(2, 4)))).capitalize()


def _title(rng: np.random.Generator, brand: str, style_words: str, nouns: str) -> str:
    words = [brand, str(rng.choice(style_words.split(", "))), str(rng.choice(nouns.split(", ")))]
    if rng.random() < 0.4:
        words.append(str(rng.choice(VARIANTS)))
    return " ".join(words)


def _tastes(rng: np.random.Generator, n_categories: int, *, drifts: bool) -> tuple[_Taste, _Taste]:
    favourites = rng.choice(n_categories, size=4, replace=False)
    styles = rng.choice(len(STYLES), size=2, replace=False)
    salt = int(rng.integers(0, 5))
    before = _Taste((int(favourites[0]), int(favourites[1])), int(styles[0]), salt)
    after = _Taste((int(favourites[2]), int(favourites[3])), int(styles[1]), salt)
    return before, (after if drifts else before)


def _purchase(
    rng: np.random.Generator,
    shelves: _Shelves,
    taste: _Taste,
    complement: np.ndarray,
    last: int | None,
    bought: Sequence[int] | set[int],
) -> int:
    """Draw an item index: popularity times loyalty to style and brand, within the category that the occasion picks."""
    weight = shelves.popularity.copy()
    weight[list(bought)] = 0.0
    occasion = rng.random()
    if occasion < P_FAVOURITE or last is None:
        category = int(rng.choice(taste.favourites))
    elif occasion < P_FAVOURITE + P_COMPLEMENT:
        category = int(complement[shelves.category[last]])
    else:
        category = -1
    if category >= 0 and weight[shelves.category == category].sum() > 0:
        weight = np.where(shelves.category == category, weight, 0.0)
        weight = np.where(shelves.style == taste.style, weight * STYLE_LOYALTY, weight)
        # Every user has a favourite among each category's five brands, the same one through both periods.
        favourite_brand = (shelves.category + taste.brand_salt) % 5
        weight = np.where(shelves.brand == favourite_brand, weight * BRAND_LOYALTY, weight)
    return int(rng.choice(len(weight), p=weight / weight.sum()))
