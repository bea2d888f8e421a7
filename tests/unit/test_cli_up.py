"""`evorec up`: what it starts nothing beside, and the lines that it shows."""

from __future__ import annotations

import errno
import io
import socket
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.cli.up import line_printer
from deploy.local.stack import require_free_port
from shared.errors import Conflict


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_up_starts_nothing_where_another_listens_on_its_port(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVOREC_STATE_DIR", str(tmp_path / "state"))
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        error = CliRunner().invoke(app, ["up", "--port", str(port)]).exception
    assert isinstance(error, Conflict)
    assert f"port {port} of 127.0.0.1 is taken" in str(error)
    assert not (tmp_path / "state").exists()
    require_free_port("127.0.0.1", port)


class FullDisk(io.StringIO):
    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_that_could_not_be_written_are_forgotten() -> None:
    disk = FullDisk()
    sink = line_printer(Console(file=disk, width=60))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            sink("worker", "lost")
    disk.full = False
    sink("worker", "kept")
    assert disk.getvalue() == " worker | kept\n"
