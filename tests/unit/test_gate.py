"""The gate: what counts as a clear loss of the panel."""

from __future__ import annotations

import pytest

from evolver.pipeline import gate
from evolver.scoring import UNIFORM, WEIGHTED, Report
from evolver.splits import Target
from shared.types import ItemId, UserId

GROUPS = {"U_A": range(20), "U_I": range(20, 40)}
PANEL = [Target(UserId(f"u{n}"), ItemId("i"), (), active=n in GROUPS["U_A"]) for n in range(40)]
SETS = (UNIFORM, WEIGHTED)


def _report(ranks: dict[tuple[str, str], list[int]]) -> Report:
    """All rank second, but for one set's group: as given there."""
    found = {name: {target.user_id: 2 for target in PANEL} for name in SETS}
    for (name, group), values in ranks.items():
        found[name].update(zip((UserId(f"u{n}") for n in GROUPS[group]), values, strict=True))
    return Report(found, {})


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_that_ranks_clearly_worse_on_one_set_fails_the_gate(name: str, group: str) -> None:
    """From 1 / log2(3) = 0.631 to nothing, of all alike."""
    found = gate(PANEL, _report({}), _report({(name, group): [4] * 20}), seed=0)
    assert not found.passed
    assert found.reasons == (f"{name}ndcg@3 of {group} fell by 0.631 to 0.631 (95 % interval, 20 users)",)


def test_what_is_clearly_better_passes_and_makes_up_for_no_loss_elsewhere() -> None:
    better = {(name, group): [1] * 20 for name in SETS for group in GROUPS}
    assert gate(PANEL, _report({}), _report(better), seed=0).passed
    found = gate(PANEL, _report({}), _report({**better, (UNIFORM, "U_I"): [3] * 20}), seed=0)
    assert [reason.split(" fell")[0] for reason in found.reasons] == ["ndcg@3 of U_I"]


@pytest.mark.parametrize(("worse", "passed"), [(11, True), (19, False)])
def test_a_loss_that_may_be_chance_passes(worse: int, passed: bool) -> None:
    """Some fall from the second place out of the first three, the others rise to the first."""
    mixed = {(name, group): [4] * worse + [1] * (20 - worse) for name in SETS for group in GROUPS}
    found = gate(PANEL, _report({}), _report(mixed), seed=0)
    assert (found.passed, len(found.reasons)) == (passed, 0 if passed else 4)


def test_without_change_or_without_a_panel_it_passes() -> None:
    assert gate(PANEL, _report({}), _report({}), seed=0).passed
    assert gate([], _report({}), _report({}), seed=0).passed


def test_a_handful_of_users_is_too_few_to_tell() -> None:
    """Resampled, one user who fell from first to second gives an "interval" of one number."""
    few = [target for target in PANEL if target.user_id in {"u0", "u20"}]
    assert gate(few, _report({}), _report({("", "U_A"): [4] * 20}), seed=0).passed
