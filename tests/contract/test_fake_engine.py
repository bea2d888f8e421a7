"""The fake engine keeps the contract of the real one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from service.ports import RankingEngine
from tests.contract.engine_contract import CONTRACT
from tests.fake_engine import FakeEngine
from tests.tiny_base import CONFIG, write_adapter, write_base


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
async def test_fake_engine(clause: Callable[[RankingEngine, Sequence[Path]], Awaitable[None]], tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    folders = [write_adapter(tmp_path / f"adapter-{seed}", seed, base) for seed in range(2)]
    await clause(FakeEngine(CONFIG["vocab_size"], CONFIG["max_position_embeddings"]), folders)
