"""Paths of categories: names with ">" between them, blanks beside it or not."""

from __future__ import annotations

from collections.abc import Set


def joined(path: str) -> str:
    """The path as `in_categories` compares it.

    >>> joined("Beauty>Skin Care")
    'Beauty > Skin Care'
    """
    return " > ".join(_parts(path))


def leaf(path: str) -> str:
    """The path's last name.

    >>> leaf("Beauty > Skin Care"), leaf("Tea")
    ('Skin Care', 'Tea')
    """
    return _parts(path)[-1]


def in_categories(path: str, wanted: Set[str]) -> bool:
    """Whether a category path is, or lies below, one of the wanted names or paths, which are `joined`.

    >>> in_categories("Beauty > Skin Care > Creams", {"Skin Care"}), in_categories("Skin", {"Skin Care"})
    (True, False)
    """
    parts = _parts(path)
    return any(
        " > ".join(parts[start:end]) in wanted
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    )


def _parts(path: str) -> list[str]:
    return [part.strip() for part in path.split(">")]
