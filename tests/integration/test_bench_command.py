"""`evorec bench` from files to report, with strategies that train nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from deploy.cli.bench_run import QUICK
from deploy.cli.main import app
from evolver.bench.strategy import Learned, Strategy, Task
from shared.errors import Conflict, InvalidInput, NotFound
from shared.types import Interaction, Item
from tests import tiny_base
from tests.bench_support import learned_nothing, make_interactions, make_items, write_shop

NAMES = ("frozen", "retrain", "finetune", "evorec", "evorec-all-layers")


@pytest.fixture(autouse=True)
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the strategies; the list says which of them learned."""
    calls: list[str] = []

    def strategy(name: str) -> Strategy:
        def learn(task: Task) -> Learned:
            calls.append(name)
            return learned_nothing(task.inputs, task.out)

        return Strategy(name, f"{name}.", learn)

    module = ModuleType("evolver.bench.strategies")
    vars(module)["STRATEGIES"] = {name: strategy(name) for name in NAMES}
    vars(module)["MAIN"] = NAMES[:4]
    vars(module)["make_bootstrap"] = lambda inputs, split, out, settings, report: learned_nothing(inputs, out)
    monkeypatch.setitem(sys.modules, "evolver.bench.strategies", module)
    return calls


def _bench(
    folder: Path,
    *options: str,
    items: Sequence[Item] = make_items(),
    interactions: Sequence[Interaction] = make_interactions(),
) -> Result:
    data = folder / "shop"
    data.mkdir(exist_ok=True)
    files = write_shop(data, items, interactions)
    base = str(tiny_base.write_base(folder / "base"))
    return CliRunner().invoke(app, ["bench", *files, "--out", str(folder / "out"), "--base", base, *options])


def test_files_in_report_out_and_a_second_call_has_nothing_to_do(tmp_path: Path, learned: list[str]) -> None:
    outcome = _bench(tmp_path, "--seeds", "2", "--quick", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert learned == ["frozen", "retrain", "finetune", "evorec"] * 2  # one round, the main ones
    found = json.loads(outcome.stdout)
    assert found["report"] == str(tmp_path / "out" / "report.md")
    first = json.loads(Path(found["results"][0]).read_text())
    assert first["data"]["name"] == "shop"
    assert (first["data"]["interactions"], first["data"]["users"]) == (900, 80)
    assert first["arguments"]["max_train_examples"] == QUICK.train_examples
    command = "evorec bench --items shop/items.jsonl --interactions shop/interactions.csv --quick --base base"
    assert first["command"] == f"{command} --strategies frozen,retrain,finetune,evorec --out DIR"
    assert first["base"]["pretrained_on_the_past"] is False
    assert str(tmp_path) not in json.dumps(first)
    assert "## shop" in (tmp_path / "out" / "report.md").read_text()
    assert _bench(tmp_path, "--seeds", "2", "--quick").exit_code == 0
    assert len(learned) == 8


def test_the_command_has_the_name_that_was_given(tmp_path: Path) -> None:
    outcome = _bench(tmp_path, "--quick", "--strategies", "frozen", "--name", "the shop", "--json")
    first = json.loads(Path(json.loads(outcome.stdout)["results"][0]).read_text())
    assert first["data"]["name"] == "the shop"
    assert "--name 'the shop' --strategies frozen --out DIR" in first["command"]


def test_a_strategy_may_join_later(tmp_path: Path, learned: list[str]) -> None:
    assert _bench(tmp_path, "--quick", "--strategies", "frozen").exit_code == 0
    assert _bench(tmp_path, "--quick", "--strategies", "frozen, evorec-all-layers").exit_code == 0
    assert learned == ["frozen", "evorec-all-layers"]


@pytest.mark.parametrize(("options", "expected"), [((), NAMES[:4]), (("--strategies", "all"), NAMES)])
def test_ablations_run_where_all_is_asked_for(
    tmp_path: Path, learned: list[str], options: Sequence[str], expected: Sequence[str]
) -> None:
    assert _bench(tmp_path, "--rounds", "1", "--max-evaluated", "4", *options).exit_code == 0
    assert learned == [*expected]


def test_a_run_may_end_earlier_and_go_on_later(tmp_path: Path, learned: list[str]) -> None:
    for rounds in (1, 3):
        outcome = _bench(tmp_path, "--strategies", "frozen", "--rounds", str(rounds), "--quick", "--json")
        found = json.loads(Path(json.loads(outcome.stdout)["results"][0]).read_text())
        assert len(found["rounds"]) == len(learned) == rounds
        assert (f"--rounds {rounds}" in found["command"]) == (rounds != QUICK.rounds)


def test_strategies_may_learn_several_times_a_round(tmp_path: Path, learned: list[str]) -> None:
    often = ("--updates-per-round", "2")
    outcome = _bench(tmp_path, "--quick", "--strategies", "frozen", *often, "--json")
    found = json.loads(outcome.stdout)
    first = json.loads(Path(found["results"][0]).read_text())
    assert learned == ["frozen"] * 2
    assert " ".join(often) in first["command"]
    report = Path(found["report"]).read_text()
    assert "150 training prompts per strategy and update, 2 updates a round from windows 2 times shorter" in report
    assert "| 2 times 150 |" in report


def test_another_fold_is_another_panel_and_no_part_of_the_same_run(tmp_path: Path) -> None:
    quick = ("--quick", "--strategies", "frozen")
    found = json.loads(_bench(tmp_path, *quick, "--fold", "2", "--json").stdout)
    first = json.loads(Path(found["results"][0]).read_text())
    assert first["arguments"]["fold"] == 2
    assert "--fold 2" in first["command"]
    assert "The panel is fold 2 of 0 to 4." in Path(found["report"]).read_text()
    refused = _bench(tmp_path, *quick).exception
    assert isinstance(refused, Conflict)
    assert "fold was 2, now not given" in str(refused)


def test_machines_can_share_the_seeds(tmp_path: Path) -> None:
    outcome = _bench(tmp_path, "--quick", "--strategies", "frozen", "--first-seed", "1", "--seeds", "2", "--json")
    files = [Path(path) for path in json.loads(outcome.stdout)["results"]]
    assert [json.loads(path.read_text())["seed"] for path in files] == [1, 2]


def test_wrong_names_and_unusable_files_are_refused_before_anything_is_learned(
    tmp_path: Path, learned: list[str]
) -> None:
    positions = [Interaction("", e.user_id, e.item_id, float(n)) for n, e in enumerate(make_interactions())]
    untitled = [Item(item.item_id, "", item.category) for item in make_items()]
    for outcome, says in (
        (_bench(tmp_path, "--strategies", "frozen,evrec"), "No strategy is called evrec; there are frozen, retrain"),
        (_bench(tmp_path, "--name", "shop/2014"), "cannot be called 'shop/2014'"),
        (_bench(tmp_path, "--base-scale", "0.1"), "--base names a base, --base-scale"),
        (_bench(tmp_path, "--base", str(tmp_path / "nobase")), f"--base '{tmp_path / 'nobase'}' is no folder"),
        (_bench(tmp_path, interactions=positions), "seem to be positions"),
        (_bench(tmp_path, items=untitled), "has a title"),
        (_bench(tmp_path, interactions=make_interactions(n=150)), "too few to split by time"),
    ):
        assert isinstance(outcome.exception, InvalidInput | NotFound)
        assert says in str(outcome.exception)
    assert not learned
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_arguments_is_refused_before_a_base_is_made(
    tmp_path: Path, learned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _bench(tmp_path, "--quick", "--strategies", "frozen").exit_code == 0
    made: list[str] = []
    monkeypatch.setattr("evolver.bench.base.pretrain", lambda *args, **options: made.append("base"))
    files = write_shop(tmp_path / "shop")
    outcome = CliRunner().invoke(app, ["bench", *files, "--out", str(tmp_path / "out"), "--strategies", "frozen"])
    assert isinstance(outcome.exception, Conflict)
    assert "max_train_examples was 150, now 1500" in str(outcome.exception)
    assert "base was" not in str(outcome.exception)
    assert not made
