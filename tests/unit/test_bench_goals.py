"""Whether goals are met is read from the results as a reader would."""

from __future__ import annotations

import re
from typing import Any

import pytest

from evolver.bench.goals import goals, goals_met, goals_table
from tests.bench_support import bench_results

OTHERS = dict.fromkeys(["frozen", "retrain", "replay", "kl", "lsat"], 0.3)
NAMES = ["frozen", "retrain", "finetune", "evorec", "evorec-all-layers"]


def results(values: dict[str, float], **changes: Any) -> dict[str, Any]:
    found = bench_results(list(values), value=lambda name, _, __: values[name])
    for a_round in found["rounds"]:
        for name, change in changes.items():
            a_round["strategies"][name.replace("_", "-")].update(change)
    return found


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    """The first round's cell of each goal."""
    lines = goals_table(goals([found]))
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")][2:]
    return {cells[0].strip(): cells[1].strip() for cells in rows}


LEADS = "U leads, `memory`, uniform"
LEVEL = "U_A level with `finetune`, `next`, weighted"
REMEMBERS = "U_I forgets at most 3%, `memory`, uniform"
KEEPS = "U_I keeps 90% of `finetune`'s gain, `next`, uniform"
BLEND = "the blend beats each rule and part, `memory`, weighted"


def test_a_winner_meets_what_accuracy_asks_for() -> None:
    ablations = {"evorec-all-layers": 0.6, "finetune-rehearsal": 0.6}  # they do not compete
    said = verdicts(results(OTHERS | {"finetune": 0.4, "evorec": 0.5} | ablations))
    assert re.fullmatch(r"\*\*\+0\.100 \[.*\]\*\* to `finetune`, \d\.\d\d of its seconds: met", said[LEADS])
    assert said[LEVEL].startswith("**+0.100 [")
    assert said[LEVEL].endswith(": met")
    assert re.fullmatch(r"\+[45]\d\.\d% at the lower end \(`finetune` \+[12]\d\.\d%\): met", said[REMEMBERS])
    assert said[KEEPS] == "200.0%: met"
    assert said[BLEND] == "0.500, retriever 0.250: met"


def test_who_leads_is_undecided_where_a_strategy_did_not_run() -> None:
    values = OTHERS | {"finetune": 0.4}
    del values["replay"]
    assert verdicts(results(values | {"evorec": 0.5}))[LEADS].endswith("of its seconds; not run: replay")
    level = verdicts(results(values | {"evorec": 0.397}))[LEADS]
    assert level.startswith("-0.005 [-")
    assert level.endswith("of its seconds; not run: replay")
    assert verdicts(results(values | {"evorec": 0.3}))[LEADS].endswith("of its seconds: **missed**")


def test_a_loser_misses_it() -> None:
    said = verdicts(results({"frozen": 0.3, "retrain": 0.35, "finetune": 0.34, "evorec": 0.29}))
    assert said[LEADS].startswith("**-0.060 [")
    assert said[LEADS].endswith("to `retrain`, 3.87 of its seconds: **missed**")
    assert said[LEVEL].endswith("**missed**")
    assert re.fullmatch(r"-\d\.\d% at the lower end .*: \*\*missed\*\*", said[REMEMBERS])
    assert said[KEEPS] == "-25.0%: **missed**"


def test_goals_of_cost_are_left_out_where_the_accelerator_was_shared() -> None:
    found = results({"frozen": 0.3, "retrain": 0.35, "finetune": 0.405, "evorec": 0.4})
    assert sum("seconds" in goal for goal in verdicts(found)) == 2
    found["arguments"] |= {"shared": True}
    said = verdicts(found)
    assert not [goal for goal in said if "seconds" in goal]
    assert said[LEADS].endswith("to `finetune`: level, at an unknown cost")
    behind = results({"frozen": 0.3, "finetune": 0.45, "evorec": 0.4})
    behind["arguments"] |= {"shared": True}
    assert verdicts(behind)[LEADS].endswith("to `finetune`: **missed**")


def test_met_goals_are_counted_round_by_round_and_undecided_ones_are_not_met() -> None:
    found = results({"frozen": 0.3, "finetune": 0.405, "evorec": 0.4})
    found["arguments"] |= {"shared": True}
    # Three rounds of 17 goals: EvoRec is level with `finetune` everywhere, and whether it leads U is unknown.
    assert goals_met(goals([found])) == "39 of 51"
    assert goals_met([]) == "–"


def test_a_lead_that_may_be_chance_is_no_lead() -> None:
    said = verdicts(results(OTHERS | {"finetune": 0.4, "evorec": 0.405}))[LEADS]
    assert said.startswith("+0.005 [")
    assert said.endswith("of its seconds: **missed**")


def of_these_users(found: dict[str, Any], active: str, **ranks: str) -> dict[str, Any]:
    """The results with these users' ranks in all tables; one character for each user."""
    for a_round in found["rounds"]:
        for asked in a_round["asked"].values():
            asked["users"], asked["active"] = " ".join(map(str, range(len(active)))), " ".join(active)
            asked["ranks"] = {name: " ".join(ranks.get(name, "0" * len(active))) for name in asked["ranks"]}
    return found


@pytest.mark.parametrize(("of_each", "says"), [(10, r"[+-]0\.\d+ \[-0\.[^]]*\]"), (2, r"\+0\.000 \[too few users\]")])
def test_an_interval_too_wide_shows_no_level_and_no_lead(of_each: int, says: str) -> None:
    """Each of `of_each` has four users: two are level, one is better served by each."""
    names = [*OTHERS, "finetune", "evorec"]
    found = bench_results(names, value=lambda name, *_: 0.4 if name in ("evorec", "finetune") else 0.3)
    found = of_these_users(found, "1" * 4 * of_each, finetune="1100" * of_each, evorec="1010" * of_each)
    for a_round in found["rounds"]:
        a_round["strategies"]["evorec"]["cost"] |= {"seconds": {"update": 1.0}}
    said = verdicts(found)
    assert re.fullmatch(f"{says}: too wide to say", said[LEVEL])
    assert re.fullmatch(rf"{says} to `finetune`, 0\.\d+ of its seconds: too wide to say", said[LEADS])


def test_a_gain_of_few_users_decides_nothing() -> None:
    found = results({"frozen": 0.3, "finetune": 0.5, "evorec": 0.35})
    assert verdicts(found)[KEEPS] == "25.0%: **missed**"
    # Of forty inactive users `finetune` wins six that EvoRec does not, and loses five that it keeps.
    few = of_these_users(
        found, "0" * 40, frozen="1" * 5 + "0" * 35, finetune="0" * 5 + "1" * 6 + "0" * 29, evorec="1" * 5 + "0" * 35
    )
    assert verdicts(few)[KEEPS] == "0.0%: too wide to say"
    assert verdicts(of_these_users(found, "0" * 10, frozen="1" * 10))[REMEMBERS] == "too few users to say"


def test_a_blend_that_is_hardly_ahead_has_to_be_so_in_more_than_one_seed() -> None:
    def seed(number: int) -> dict[str, Any]:
        found = bench_results(["evorec"], seed=number, value=lambda *_: 0.4)
        for a_round in found["rounds"]:
            for of_kind in a_round["strategies"]["evorec"]["metrics"].values():
                for name, of_set in of_kind.items():
                    of_kind[name] = of_set | {"llm": {group: {"ndcg@3": 0.395} for group in ("U_A", "U_I", "U")}}
        return found

    assert verdicts(seed(0))[BLEND] == "0.400, llm 0.395, of one seed"
    (both,) = (goal for goal in goals([seed(0), seed(1)]) if goal.what == BLEND)
    assert str(both.rounds[0]) == "0.400, llm 0.395: met"


def test_the_blend_has_to_beat_rules_and_parts_in_every_seed() -> None:
    seeds = [bench_results(["evorec"], seed=seed, value=lambda *_: 0.4) for seed in range(2)]
    for a_round in seeds[1]["rounds"]:
        for of_kind in a_round["strategies"]["evorec"]["metrics"].values():
            for name, of_set in of_kind.items():
                of_kind[name] = of_set | {"llm": {group: {"ndcg@3": 0.45} for group in ("U_A", "U_I", "U")}}
    (goal,) = (goal for goal in goals(seeds) if goal.what == BLEND)
    assert str(goal.rounds[0]) == "0.400, llm 0.325, ahead in 1 of 2 seeds"
    assert goal.rounds[0].met is None  # type: ignore[union-attr]


def test_an_update_that_validation_did_not_keep_is_said() -> None:
    kept = {"validation_loss": [2.5, 2.5]}
    said = verdicts(results(dict.fromkeys(NAMES, 0.3), evorec=kept))
    assert said["at most 30% of LoRA trains"] == "30%, validation kept the parent's in 1 of 1 seeds: met"


def test_seconds_of_unlike_code_decide_nothing() -> None:
    said = verdicts(results(dict.fromkeys(NAMES, 0.3), evorec={"code": "another"}))
    assert said["seconds per example at most 60% of `finetune`'s"] == "129.0%, of other code"
    assert said["seconds at most 10% of `retrain`'s"] == "387.0%, of other code"
    theirs, cheap = ({"cost": {"seconds": {"update": seconds}, **_COST}} for seconds in (20.0, 10.0))
    values = OTHERS | {"finetune": 0.405, "evorec": 0.4}
    level = verdicts(results(values, finetune=theirs, evorec={**cheap, "code": "another"}))[LEADS]
    assert level.endswith("to `finetune`, 0.50 of its seconds, of other code")


def test_being_level_counts_at_half_of_the_seconds() -> None:
    values = OTHERS | {"finetune": 0.405, "evorec": 0.4}
    theirs, cheap, dear = ({"cost": {"seconds": {"update": seconds}, **_COST}} for seconds in (20.0, 10.0, 15.0))
    assert verdicts(results(values, finetune=theirs, evorec=cheap))[LEADS].endswith("0.50 of its seconds: met")
    assert verdicts(results(values, finetune=theirs, evorec=dear))[LEADS].endswith("0.75 of its seconds: **missed**")


def test_costs_are_held_against_finetune_and_retrain() -> None:
    said = verdicts(results(dict.fromkeys(NAMES, 0.3)))
    per_example = "seconds per example at most 60% of `finetune`'s"
    assert said["at most 30% of LoRA trains"] == "30%: met"
    # Seconds over examples: (9 + 80) / 300 against (6 + 40) / 200.
    assert said[per_example] == "129.0%: **missed**"
    assert said["seconds at most 10% of `retrain`'s"] == "387.0%: **missed**"
    low = {"layers": [0, 8, 9], "votes": [0] * 10, "similarity": [0.9] * 10}
    said = verdicts(results(dict.fromkeys(NAMES, 0.3), evorec={"location": low}))
    assert said[per_example] == "does not apply"


def test_nothing_is_said_of_a_group_in_which_nobody_was_asked() -> None:
    found = results(OTHERS | {"finetune": 0.4, "evorec": 0.5})
    for a_round in found["rounds"]:
        for asked in a_round["asked"].values():
            asked["active"] = asked["active"].replace("0", "1")
        for strategy in a_round["strategies"].values():
            for of_kind in strategy["metrics"].values():
                for of_set in of_kind.values():
                    for of_ranker in of_set.values():
                        of_ranker["U_I"] = {"n": 0}
    said = verdicts(found)
    assert said[REMEMBERS] == said[KEEPS] == "does not apply"
    assert said[LEVEL].endswith(": met")


def test_what_nobody_knew_cannot_be_forgotten() -> None:
    said = verdicts(results({"frozen": 0.0, "finetune": 0.0, "evorec": 0.0}))
    assert said[REMEMBERS] == "`frozen` finds nothing that could be forgotten"


def test_seconds_per_example_are_not_asked_of_a_round_without_examples() -> None:
    nothing = {"cost": {"seconds": {"update": 1.0}, **_COST, "examples": 0}}
    said = verdicts(results(dict.fromkeys(NAMES, 0.3), evorec=nothing, finetune=nothing))
    assert said["seconds per example at most 60% of `finetune`'s"] == "does not apply"


@pytest.mark.parametrize("names", [["frozen", "finetune"], ["frozen", "evorec"], ["evorec"]], ids=str)
def test_goals_without_the_strategy_that_they_are_held_against_are_left_out(names: list[str]) -> None:
    said = verdicts(results(dict.fromkeys(names, 0.3)))
    assert ("at most 30% of LoRA trains" in said) == ("evorec" in names)
    assert not any("finetune" in goal for goal in said)
    assert (LEADS in said) == (REMEMBERS in said) == (len(names) > 1 and "evorec" in names)


_COST = {
    "examples": 100,
    "tokens_forward": 0,
    "tokens_backward": 0,
    "trainable_parameters": 30,
    "lora_parameters": 100,
    "added_memory_mib": 1.0,
}
