"""The results of a benchmark's seed as one JSON document, computed from saved scores alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evolver.bench.cases import CATALOG_SET, DRAWN_SETS, KINDS, UNIFORM_SET
from evolver.bench.locks import alone_in
from evolver.bench.paired import asked, group_masks, rank_lines
from evolver.bench.rules import RULES
from evolver.bench.runner import (
    ARGUMENTS,
    BOOTSTRAP_FOLDER,
    LEAVE_ONE_OUT_FOLDER,
    RESULT,
    RULES_FOLDER,
    SCORES,
    is_done,
    steps,
)
from evolver.bench.scores import LLM, RETRIEVER, CaseScores, load_scores
from evolver.evaluate import gains
from shared.errors import Conflict
from shared.ranking import Blends

FORMAT = 2
FROZEN, RETRAIN, FINETUNE, EVOREC = "frozen", "retrain", "finetune", "evorec"
BLEND = "blend"
ALONE = "alone"
SETS = (*DRAWN_SETS, CATALOG_SET)
CUTOFFS = {**dict.fromkeys(DRAWN_SETS, (1, 3)), CATALOG_SET: (10,)}
"""Cut-offs of HR per candidate set; NDCG is cut at the last."""

Ranks = Mapping[str, Mapping[str, NDArray[np.int64]]]
"""Table (`memory/uniform`) -> ranker -> rank per user."""


def served_of(strategies: Sequence[str]) -> str:
    """Whose version is looked into: EvoRec's, or the last one's where it was not run."""
    return EVOREC if EVOREC in strategies else strategies[-1]


def collect(folder: Path, strategies: Sequence[str], rounds: int) -> dict[str, Any]:
    """Everything that was found in a seed's folder: figures, ranks, costs and votes of each round."""
    bootstrap = json.loads((folder / BOOTSTRAP_FOLDER / RESULT).read_text())
    one_out = folder / LEAVE_ONE_OUT_FOLDER
    tried = is_done(one_out)
    return {
        "bootstrap": bootstrap,
        "leave_one_out": json.loads((one_out / RESULT).read_text()) if tried else None,
        "elapsed_seconds": _elapsed(folder, steps(folder, strategies, rounds, leave_one_out=tried)),
        "rounds": [_round(folder, strategies, number) for number in range(1, rounds + 1)],
    }


def _elapsed(folder: Path, done: Sequence[Path]) -> float:
    """By the clock, from the first call to the end of the last of these steps, pauses included."""
    return max((step / RESULT).stat().st_mtime for step in done) - (folder / ARGUMENTS).stat().st_mtime


def _round(folder: Path, strategies: Sequence[str], number: int) -> dict[str, Any]:
    rules_folder = folder / RULES_FOLDER / f"round-{number}"
    rules = load_scores(rules_folder / SCORES)
    found, ranks, tables = {}, {}, {}
    for name in strategies:
        step = folder / name / f"round-{number}"
        about = json.loads((step / RESULT).read_text())
        tables = load_scores(step / SCORES)
        _require_same_questions(rules, tables, rules_folder, step)
        ranks[name] = version_ranks(tables, Blends.model_validate(about["blend"]))
        found[name] = {**about, "metrics": metrics(tables, ranks[name])}
    rule_ranks = {table: {rule: scores.rank_by(rule) for rule in RULES} for table, scores in rules.items()}
    served = ranks[served_of(strategies)]
    return {
        "round": number,
        **json.loads((rules_folder / RESULT).read_text()),
        "rules": metrics(rules, rule_ranks),
        "strategies": found,
        "asked": {
            table: {
                **asked(scores, {name: of_table[table][BLEND] for name, of_table in ranks.items()}),
                ALONE: rank_lines({part: served[table][part] for part in (RETRIEVER, LLM)} | rule_ranks.get(table, {})),
            }
            for table, scores in tables.items()
        },
    }


def _require_same_questions(
    rules: Mapping[str, CaseScores], tables: Mapping[str, CaseScores], of_rules: Path, step: Path
) -> None:
    """Raises `Conflict` where a strategy was asked about other users or targets than the plain rules were, as another
    version of the code may have asked: they would be compared row by row. The catalog's candidates are the retriever's
    own.
    """
    for name, table in tables.items():
        asked = rules.get(name, rules[f"{name.partition('/')[0]}/{UNIFORM_SET}"])
        same = [np.array_equal(table.users, asked.users), np.array_equal(table.active, asked.active)]
        if name in rules:
            same.append(np.array_equal(table.target, asked.target))
        if not all(same):
            raise Conflict(
                f"{step} and {of_rules} hold answers to different questions ({name}): another version of evorec made "
                "one of them. Remove the older of the two folders and call again, or give another --out."
            )


def version_ranks(tables: Mapping[str, CaseScores], blends: Blends) -> Ranks:
    """Ranks by the blend that is served, by the LLM alone and by the retriever alone."""
    return {
        name: {
            BLEND: table.ranks(table.blended(blends.retrieved if name.endswith(CATALOG_SET) else blends.given)),
            LLM: table.rank_by(LLM),
            RETRIEVER: table.rank_by(RETRIEVER),
        }
        for name, table in tables.items()
    }


def metrics(tables: Mapping[str, CaseScores], ranks: Ranks) -> dict[str, Any]:
    """kind -> candidate set -> ranker -> group -> n, HR@k, NDCG@k."""
    found: dict[str, Any] = {kind: {} for kind in KINDS}
    for table, of_ranker in ranks.items():
        kind, name = table.split("/")
        found[kind][name] = {
            ranker: {
                group: _figures(values[chosen], CUTOFFS[name])
                for group, chosen in group_masks(tables[table].active).items()
            }
            for ranker, values in of_ranker.items()
        }
    return found


def _figures(ranks: NDArray[np.int64], cutoffs: Sequence[int]) -> dict[str, float]:
    if not len(ranks):
        return {"n": 0}
    hits = {f"hr@{k}": float((ranks <= k).mean()) for k in cutoffs}
    return {"n": len(ranks), **hits, f"ndcg@{cutoffs[-1]}": float(gains(ranks, cutoffs[-1]).mean())}


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """One document, replaced at once."""
    with alone_in(path):
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({"format": FORMAT, **results}, indent=1) + "\n")
        aside.replace(path)
