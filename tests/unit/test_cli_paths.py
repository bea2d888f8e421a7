"""Folders and files may be called `[old]`, or longer than a line: they are shown as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import bench, pretrain, up
from deploy.cli.main import app
from deploy.output import result_console
from shared.config import Settings
from shared.errors import EvorecError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With what rich takes for the end of a style, which it never saw begin: `[/b]`."""
    made = tmp_path / ("long" * 30) / "a[" / "b]"
    made.mkdir(parents=True)
    return made


def test_files_that_are_read(folder: Path) -> None:
    items, interactions = folder / "items.jsonl", folder / "interactions.csv"
    items.write_text("no item\n")
    interactions.write_text("user_id,item_id,timestamp\nno interaction\n")
    result = CliRunner().invoke(app, ["ingest", "--direct", str(interactions), "--items", str(items)])
    assert f"{items}: 1 bad lines" in result.stderr
    assert f"{interactions}: 1 bad lines" in result.stderr


def test_the_state_of_what_is_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ready(url: str, **_: object) -> None: ...

    monkeypatch.setattr(up, "service_ready", ready)
    asyncio.run(up._announce(Settings(_env_file=None, state_dir=folder), result_console()))
    assert f"State: {folder}." in capsys.readouterr().out


def test_the_logs_of_a_demo_that_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EvorecError("a process ended")

    monkeypatch.setattr("deploy.demo.run.run_demo", fail)
    monkeypatch.setenv("EVOREC_STATE_DIR", str(folder))
    result = CliRunner().invoke(app, ["demo"])
    assert f"The logs are in {folder / 'demo' / 'logs'}\n" in result.stderr


def test_the_base_that_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_generated", "_train"):
        monkeypatch.setattr(pretrain, name, lambda *_: {})
    result = CliRunner().invoke(app, ["pretrain", "--stores", "1", "--out", str(folder)])
    assert f"EVOREC_BASE_MODEL={folder}\n" in result.stdout


def test_the_report_of_a_benchmark(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_strategies", "keep_freed_memory"):
        monkeypatch.setattr(bench, name, lambda *_: ())
    monkeypatch.setattr(bench, "_seed", lambda plan, seed: plan.out / f"seed-{seed}")
    monkeypatch.setattr(bench, "_report_writer", lambda: lambda _, path: path)
    files = ["--items", "items.jsonl", "--interactions", "interactions.csv"]
    result = CliRunner().invoke(app, ["bench", *files, "--out", str(folder)])
    assert result.stdout == f"Report in {folder / 'report.md'}, figures in {folder / 'seed-0'}\n"
