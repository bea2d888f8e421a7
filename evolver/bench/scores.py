"""What each expert said of each case, as files: every table of a report is made from these, and from nothing else.

An expert is the LLM, the retriever, popularity, or a plain rule. Cases are rows: N users with up to C candidates each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evolver.scoring import NOT_RETRIEVED, Scored
from shared.ranking import BlendWeights, log_odds

LLM, RETRIEVER, POPULARITY = "llm", "retriever", "popularity"
_SEPARATOR = "/"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CaseScores:
    """`users` [N] and `active` [N] say whose cases these are, `target` [N] is a candidate's index, or -1 where the
    target was not retrieved; `experts` have [N, C] scores each, NaN where a case has fewer than C candidates.
    """

    users: NDArray[np.str_]
    active: NDArray[np.bool_]
    target: NDArray[np.int64]
    experts: Mapping[str, NDArray[np.float32]]

    def blended(self, weights: BlendWeights) -> Floats:
        """The log-odds that `shared.ranking.blend` turns into probabilities.  -> [N, C]"""
        return log_odds(self.experts[LLM], self.experts[RETRIEVER], self.experts[POPULARITY], weights)

    def ranks(self, scores: NDArray[np.floating]) -> NDArray[np.int64]:
        """rank = 1 + the number of other candidates scored at least as high; after everything where the target was
        not retrieved.  scores: [N, C] -> [N]
        """
        found = self.target >= 0
        if not scores.shape[1]:
            return np.full(len(self.target), NOT_RETRIEVED)
        targets = np.take_along_axis(scores, np.maximum(self.target, 0)[:, None], axis=1)
        return np.where(found, (scores >= targets).sum(1), NOT_RETRIEVED)

    def rank_by(self, expert: str) -> NDArray[np.int64]:
        """Ranks by one expert alone.  -> [N]"""
        return self.ranks(self.experts[expert])


def case_scores(
    users: Sequence[str],
    active: Sequence[bool],
    target: Sequence[int],
    experts: Mapping[str, Sequence[Sequence[float]]],
) -> CaseScores:
    """Rows of different lengths, put into matrices."""
    return CaseScores(
        np.array(users, dtype=np.str_),
        np.array(active, dtype=np.bool_),
        np.array(target, dtype=np.int64),
        {name: _matrix(rows) for name, rows in experts.items()},
    )


def of_version(scored: Sequence[Scored]) -> CaseScores:
    """What a version's experts said. A version without an LLM says nothing: all candidates score alike."""
    return case_scores(
        [one.case.user_id for one in scored],
        [one.case.active for one in scored],
        [one.target for one in scored],
        {
            LLM: [one.llm for one in scored],
            RETRIEVER: [one.retriever for one in scored],
            POPULARITY: [one.popularity for one in scored],
        },
    )


def _matrix(rows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    width = max((len(row) for row in rows), default=0)
    matrix = np.full((len(rows), width), np.nan, dtype=np.float32)
    for filled, row in zip(matrix, rows, strict=True):
        filled[: len(row)] = row
    return matrix


def save_scores(path: Path, tables: Mapping[str, CaseScores]) -> None:
    """Write tables under names such as `memory/uniform`; arrays of numbers and text, nothing pickled."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, table in tables.items():
        arrays |= {
            _SEPARATOR.join((name, "users")): table.users,
            _SEPARATOR.join((name, "active")): table.active,
            _SEPARATOR.join((name, "target")): table.target,
            **{_SEPARATOR.join((name, "expert", expert)): scores for expert, scores in table.experts.items()},
        }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes a name for allow_pickle


def load_scores(path: Path) -> dict[str, CaseScores]:
    """Read what `save_scores` wrote."""
    with np.load(path, allow_pickle=False) as file:
        names = dict.fromkeys(key.rpartition(_SEPARATOR)[0] for key in file.files if key.endswith("/users"))
        return {
            name: CaseScores(
                file[f"{name}/users"],
                file[f"{name}/active"],
                file[f"{name}/target"],
                {
                    key.removeprefix(f"{name}/expert/"): file[key]
                    for key in file.files
                    if key.startswith(f"{name}/expert/")
                },
            )
            for name in names
        }
