"""`evorec bench --processes`: real strategies in real processes, against the same run in one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.cli.main import app
from shared.errors import Conflict
from tests import tiny_base
from tests.bench_support import make_interactions, make_items

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "items.jsonl").write_text("\n".join(json.dumps(asdict(item)) for item in make_items()))
    rows = [f"{event.user_id},{event.item_id},{event.timestamp}" for event in make_interactions()]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    base = tiny_base.write_base(folder / "base")
    tiny_base.write_weights(base)
    names = ("items.jsonl", "interactions.csv")
    return ["--items", str(folder / names[0]), "--interactions", str(folder / names[1]), "--base", str(base)]


def _bench(files: list[str], out: Path, *options: str) -> Result:
    small = ["--quick", "--max-train-examples", "8", "--max-evaluated", "5", "--strategies", "frozen,finetune"]
    return CliRunner().invoke(app, ["bench", *files, "--out", str(out), *small, *options])


def _results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"seed-{seed}" / "results.json").read_text()) for seed in SEEDS]


def test_several_processes_find_what_one_does(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order have other last digits
    for out, processes in (("one", "1"), ("three", "3")):
        outcome = _bench(files, tmp_path / out, "--seeds", str(len(SEEDS)), "--processes", processes)
        assert outcome.exit_code == 0, outcome.output
    for one, three in zip(_results(tmp_path / "one"), _results(tmp_path / "three"), strict=True):
        for ours, theirs in zip(one["rounds"], three["rounds"], strict=True):
            assert ours["rules"] == theirs["rules"]
            for name in ("frozen", "finetune"):
                ours_of, theirs_of = ours["strategies"][name], theirs["strategies"][name]
                assert ours_of["metrics"] == theirs_of["metrics"]
                assert ours_of["blend"] == theirs_of["blend"]
        assert one["arguments"] == three["arguments"]  # no GPU is shared here


def test_what_a_process_refuses_is_said_as_if_it_were_the_only_one(files: list[str], tmp_path: Path) -> None:
    assert _bench(files, tmp_path, "--strategies", "frozen").exit_code == 0
    outcome = _bench(files, tmp_path, "--max-train-examples", "9", "--processes", "2")
    assert isinstance(outcome.exception, Conflict)
    assert "max_train_examples was 8, now 9" in str(outcome.exception)
