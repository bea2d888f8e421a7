"""`evorec bench --processes`: real strategies in real processes, against the same run in one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import bench
from deploy.cli.bench_processes import run_at_once
from deploy.cli.bench_run import Plan, Size, Source
from deploy.cli.main import app
from evolver.bench.runner import is_done
from shared.config import Settings
from shared.errors import Conflict, EvorecError
from tests import tiny_base
from tests.bench_support import write_shop

NAMES = ("frozen", "finetune")
SIZE = Size(train_examples=8, evaluated=5, rounds=2, base_scale=0.0, settings={"retriever_epochs": 1})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with items, interactions and a base."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    tiny_base.write_weights(tiny_base.write_base(folder / "base"))
    return folder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order have other last digits."""
    monkeypatch.setenv("EVOREC_TRAIN_THREADS", "1")


def _plan(shop: Path, out: Path, settings: Settings, *, processes: int = 2) -> Plan:
    source = Source(shop / "items.jsonl", shop / "interactions.csv", "shop", settings)
    return Plan(source, NAMES, str(shop / "base"), SIZE, out, processes)


def _bench(shop: Path, out: Path, *options: str) -> Result:
    files = ["--items", str(shop / "items.jsonl"), "--interactions", str(shop / "interactions.csv")]
    small = ["--quick", "--max-train-examples", "8", "--max-evaluated", "5", "--strategies", ",".join(NAMES)]
    return CliRunner().invoke(app, ["bench", *files, "--base", str(shop / "base"), "--out", str(out), *small, *options])


def _of_seed(out: Path, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"seed-{seed}" / "results.json").read_text())
    return found


def test_several_processes_find_what_one_does(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_over = []
    in_parent = bench._seed

    def watched(plan: Plan, seed: int) -> Path:
        left_over.append([step for step in plan.steps(seed) if not is_done(step)])
        return in_parent(plan, seed)

    monkeypatch.setattr(bench, "_seed", watched)
    for out, processes in (("one", "1"), ("two", "2")):
        outcome = _bench(shop, tmp_path / out, "--seeds", "2", "--processes", processes)
        assert outcome.exit_code == 0, outcome.output
    assert all(left_over[:2])
    assert not any(left_over[2:])  # the processes did everything
    for seed in (0, 1):
        one, two = (_of_seed(tmp_path / out, seed) for out in ("one", "two"))
        assert one["rounds"][0]["rules"] == two["rounds"][0]["rules"]
        for name in NAMES:
            ours, theirs = (found["rounds"][0]["strategies"][name] for found in (one, two))
            assert ours["metrics"] == theirs["metrics"]
            assert ours["blend"] == theirs["blend"]
        assert one["arguments"] == two["arguments"]  # no GPU is shared here
        assert two["command"] == one["command"].replace(" --base", " --processes 2 --base")


def test_rounds_follow_one_another_and_leave_one_out_is_done_too(
    shop: Path, tmp_path: Path, settings: Settings
) -> None:
    plan = _plan(shop, tmp_path, settings)
    run_at_once(plan, [0], str(shop / "base"), lambda: None)
    assert len(plan.steps(0)) == 1 + 1 + 2 * (1 + len(NAMES))
    assert [step for step in plan.steps(0) if not is_done(step)] == []


def test_what_a_process_refuses_is_said_as_if_it_were_the_only_one(shop: Path, tmp_path: Path) -> None:
    assert _bench(shop, tmp_path, "--strategies", "frozen").exit_code == 0
    outcome = _bench(shop, tmp_path, "--max-train-examples", "9", "--processes", "2")
    assert isinstance(outcome.exception, Conflict)
    assert "max_train_examples was 8, now 9" in str(outcome.exception)


def test_an_error_of_a_library_comes_with_its_story(shop: Path, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="Traceback") as raised:
        run_at_once(_plan(shop, tmp_path / "out", settings), [0], str(tmp_path / "base"), lambda: None)
    assert "base" in str(raised.value)


def test_a_killed_process_ends_the_run_and_its_other_processes(shop: Path, tmp_path: Path, settings: Settings) -> None:
    def kill_one() -> None:
        for child in multiprocessing.active_children()[:1]:
            os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(EvorecError, match="ended unexpectedly, often for want of memory"):
        run_at_once(_plan(shop, tmp_path, settings), [0, 1], str(shop / "base"), kill_one)
    # The pool's own thread waits for them too, and whoever comes second cannot know yet that a process has ended.
    end = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
