"""A version's rankings of held-out targets, with the scores that the service would have given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from evolver.batches import build_prompt, score_prompts
from evolver.evaluate import N_CANDIDATES, POPULARITY_POWER, CandidatePool, Case, draw_candidates, rank_of, summarise
from evolver.inputs import working_on
from evolver.splits import Target, filtered, item_sequence
from shared.config import Settings
from shared.errors import EvorecError
from shared.forgotten import ForgottenSet
from shared.prompt import Prompt, PromptBuilder, candidate_order
from shared.ranking import Blends, BlendWeights, blend
from shared.retriever import RetrieverIndex
from shared.types import ItemId, UserId

if TYPE_CHECKING:
    from peft import PeftModel

POPULARITY_ONLY = Blends.alike(BlendWeights(llm=0.0, retriever=0.0, popularity=1.0))
NOT_RETRIEVED = 1_000_000
UNIFORM, WEIGHTED, CATALOG = "", "weighted:", "catalog:"


@dataclass(frozen=True, slots=True)
class Version:
    """What answers: a model with its LoRA (None: no LLM, as before the bootstrap), retriever and forgotten set."""

    model: PeftModel | None
    index: RetrieverIndex
    forgotten: ForgottenSet


@dataclass(frozen=True, slots=True)
class Scored:
    """A case with its three experts' scores, each [C]; candidate 0 is not special: `target` is an index.

    `tokens` is the length of the prompt that the LLM read. A target that is not among the candidates (-1) ranks after
    everything whatever the LLM says, so it is not asked: `llm` is NaN and `tokens` 0.
    """

    case: Case
    target: int
    llm: tuple[float, ...]
    retriever: tuple[float, ...]
    popularity: tuple[float, ...]
    tokens: int = 0

    def rank(self, weights: BlendWeights) -> int:
        """The target's rank under some blend."""
        return rank_of(blend(self.llm, self.retriever, self.popularity, weights), self.target)


def judged_candidates(settings: Settings) -> int:
    """Candidates of a prompt that a version is judged by: 20, or fewer where it is trained and asked with fewer."""
    return min(N_CANDIDATES, settings.rank_candidates)


def make_cases(
    targets: Sequence[Target], popularity: Mapping[ItemId, float], *, seed: int, n: int = N_CANDIDATES
) -> dict[str, list[tuple[Target, Case]]]:
    """Both candidate sets of `n` for each target; the same for every version compared (they depend on the seed and the
    user alone).
    """
    pool = sorted(popularity)
    mass = np.array([popularity[item] for item in pool])
    sets = {UNIFORM: np.ones(len(pool)), WEIGHTED: mass**POPULARITY_POWER}
    pools = {name: CandidatePool(pool, weights) for name, weights in sets.items()}
    return {name: [(target, _case(target, chosen, seed, n)) for target in targets] for name, chosen in pools.items()}


def _case(target: Target, pool: CandidatePool, seed: int, n: int) -> Case:
    with working_on(target.user_id):
        own = frozenset(item_sequence(target.before))
        drawn = draw_candidates(target.user_id, target.item_id, own, pool, seed=seed, n=n)
        return Case(target.user_id, target.item_id, tuple(candidate_order(drawn, target.user_id)), target.active)


def retrieved_cases(
    version: Version, targets: Sequence[Target], k: int, popularity: Mapping[ItemId, float]
) -> list[tuple[Target, Case]]:
    """The whole pipeline's candidates: the retriever's top k over the catalog, what the user has seen excluded; before
    the bootstrap the k most popular, as the domain answered then.
    """
    popular = _most_popular(version.index, popularity) if version.model is None else []
    cases = []
    for target in targets:
        with working_on(target.user_id):
            history = filtered(version.forgotten, target.user_id, target.before)
            seen = frozenset(item_sequence(target.before))
            if version.model is None:
                found = [*islice((item for item in popular if item not in seen), k)]
            else:
                found = [item for item, _ in version.index.candidates(history, k, exclude=seen)]
            order = tuple(candidate_order(found, target.user_id))
            cases.append((target, Case(target.user_id, target.item_id, order, target.active)))
    return cases


def _most_popular(index: RetrieverIndex, popularity: Mapping[ItemId, float]) -> list[ItemId]:
    """What is available and has been bought, the most popular first; ties by id, as the domain serves them."""
    ordered = sorted(popularity, key=lambda item: (-popularity[item], item))
    return [item for item in ordered if (known := index.item(item)) is not None and known.available]


def score_cases(
    version: Version,
    cases: Sequence[tuple[Target, Case]],
    builder: PromptBuilder,
    popularity: Mapping[ItemId, float],
    on_batch: Callable[[float], None] = lambda share: None,
) -> list[Scored]:
    """Every expert's scores for every case; a target outside the candidates gets index -1. A user who has seen the
    whole catalog has no candidates, hence no scores. Raises `EvorecError` where scores are not numbers.
    """
    histories = [filtered(version.forgotten, target.user_id, target.before) for target, _ in cases]
    prompts: dict[int, Prompt] = {}
    if version.model is None:
        llm = [[0.0] * len(case.candidates) for _, case in cases]
    else:
        prompts = {
            number: _prompt(builder, version.index, history, case)
            for number, (history, (_, case)) in enumerate(zip(histories, cases, strict=True))
            if case.target in case.candidates
        }
        scores = score_prompts(version.model, [*prompts.values()], builder.label_ids, on_batch=on_batch)
        _require_numbers("LLM", chain.from_iterable(scores))
        of_case = dict(zip(prompts, scores, strict=True))
        llm = [of_case.get(number, [math.nan] * len(case.candidates)) for number, (_, case) in enumerate(cases)]
    lengths = [len(prompts[number].token_ids) if number in prompts else 0 for number in range(len(cases))]
    scored = [
        _scored(version.index, history, case, logprobs, popularity, length)
        for history, (_, case), logprobs, length in zip(histories, cases, llm, lengths, strict=True)
    ]
    _require_numbers("retriever", chain.from_iterable(one.retriever for one in scored))
    return scored


def _require_numbers(expert: str, scores: Iterable[float]) -> None:
    if not all(map(math.isfinite, scores)):
        raise EvorecError(
            f"the {expert}'s scores are not numbers: its weights have diverged, nothing can be ranked by it; where "
            "it is the champion's, POST /admin/rollback goes back to the version before"
        )


def _prompt(builder: PromptBuilder, index: RetrieverIndex, history: Sequence[ItemId], case: Case) -> Prompt:
    with working_on(case.user_id):
        return build_prompt(builder, index, history, case.candidates)


def _scored(
    index: RetrieverIndex,
    history: Sequence[ItemId],
    case: Case,
    logprobs: Sequence[float],
    popularity: Mapping[ItemId, float],
    tokens: int,
) -> Scored:
    with working_on(case.user_id):
        return Scored(
            case,
            case.candidates.index(case.target) if case.target in case.candidates else -1,
            tuple(logprobs),
            tuple(index.scores(history, case.candidates)) if case.candidates else (),
            tuple(popularity.get(item, 0.0) for item in case.candidates),
            tokens,
        )


def ranks(scored: Sequence[Scored], weights: BlendWeights) -> dict[UserId, int]:
    """The target's rank for each user; a target that was not retrieved ranks after everything."""
    return {one.case.user_id: one.rank(weights) if one.target >= 0 else NOT_RETRIEVED for one in scored}


@dataclass(frozen=True, slots=True)
class Report:
    """Ranks per candidate set and user, and the metrics made from them."""

    ranks: Mapping[str, Mapping[UserId, int]]
    metrics: Mapping[str, Mapping[str, float]]


def evaluate_version(
    version: Version,
    blends: Blends,
    cases: Mapping[str, Sequence[tuple[Target, Case]]],
    builder: PromptBuilder,
    popularity: Mapping[ItemId, float],
    *,
    k: int,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Report:
    """Metrics of a version on uniform and weighted candidates, and of the whole pipeline on the catalog."""
    targets = [target for target, _ in cases[UNIFORM]]
    active = frozenset(target.user_id for target in targets if target.active)
    sets = {**cases, CATALOG: retrieved_cases(version, targets, k, popularity)}
    found: dict[str, dict[UserId, int]] = {}
    metrics: dict[str, dict[str, float]] = {"U_A": {}, "U_I": {}, "U": {}}
    for number, (name, chosen) in enumerate(sets.items()):
        report = partial(report_part, on_batch, number, len(sets))
        scored = score_cases(version, chosen, builder, popularity, report)
        found[name] = ranks(scored, blends.retrieved if name == CATALOG else blends.given)
        cutoffs = (10,) if name == CATALOG else (1, 3)
        for group, values in summarise(found[name], active, prefix=name, cutoffs=cutoffs).items():
            metrics[group].update(values)
    return Report(found, metrics)


def report_part(on_batch: Callable[[float], None], number: int, of: int, share: float) -> None:
    """Report the share of one of several like parts as a share of the whole."""
    on_batch((number + share) / of)
