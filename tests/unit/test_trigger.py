"""When an evolution is due: the decision alone, without stores."""

from __future__ import annotations

import pytest

from evolver.trigger import FIRST_RETRY_S, LONGEST_RETRY_S, DomainState, decide, refusal, retry_in_s
from shared.config import Settings
from shared.evolutions import Evolution, EvolutionStatus
from shared.types import DomainId, EvolutionId

SETTINGS = Settings(evolve_min_interactions=100, evolve_max_age_s=3600, _env_file=None)
NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("state", "due", "reason"),
    [
        (DomainState(0), False, "no new interactions"),
        (DomainState(99, oldest_age_s=3599), False, "99 of 100 new interactions"),
        (DomainState(100, oldest_age_s=1), True, "100 new interactions (at least 100)"),
        (DomainState(1, oldest_age_s=3600), True, "the oldest new interaction waits for 3600 s"),
        (DomainState(500, paused=True), False, "evolutions of this domain are paused"),
        (DomainState(500, challenger="beauty-v000002"), False, "challenger beauty-v000002 is on trial"),
        (DomainState(500, retry_in_s=30), False, "the last run did not finish; the next one may start in 30 s"),
    ],
)
def test_decide(state: DomainState, due: bool, reason: str) -> None:
    decision = decide(state, SETTINGS)

    assert (decision.due, decision.reason) == (due, reason)


@pytest.mark.parametrize(
    ("state", "force", "starts"),
    [
        (DomainState(1), False, True),  # asking is a trigger: neither count nor age matter
        (DomainState(0), False, False),
        (DomainState(0), True, True),
        (DomainState(5, paused=True), False, False),
        (DomainState(5, paused=True), True, True),
        (DomainState(5, challenger="beauty-v000002"), True, False),
        (DomainState(5, retry_in_s=30), False, True),  # the pause after a failure binds triggers, not people
    ],
)
def test_refusal(state: DomainState, force: bool, starts: bool) -> None:
    assert (refusal(state, force=force) is None) is starts


def ended(status: EvolutionStatus, finished_at: float = NOW) -> Evolution:
    return Evolution(
        id=EvolutionId("e"), domain=DomainId("beauty"), status=status, requested_at=NOW - 100, finished_at=finished_at
    )


def test_retry_waits_twice_as_long_after_every_failure_in_a_row() -> None:
    failed, cancelled = ended(EvolutionStatus.failed), ended(EvolutionStatus.cancelled)
    published = ended(EvolutionStatus.published)

    assert retry_in_s([], NOW) == 0
    assert retry_in_s([published, failed], NOW) == 0
    assert retry_in_s([failed, published, failed], NOW) == FIRST_RETRY_S
    assert retry_in_s([failed, cancelled, failed], NOW) == 4 * FIRST_RETRY_S
    assert retry_in_s([failed] * 30, NOW) == LONGEST_RETRY_S


def test_retry_pause_passes() -> None:
    assert retry_in_s([ended(EvolutionStatus.failed, NOW - FIRST_RETRY_S + 1)], NOW) == 1
    assert retry_in_s([ended(EvolutionStatus.failed, NOW - FIRST_RETRY_S)], NOW) == 0
