"""The arithmetic in docstrings holds."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "evolver.bench.rules",
    "evolver.bench.scores",
    "evolver.bench.reading",
    "evolver.bench.tables",
    "evolver.bench.strategies.lsat",
    "evolver.evaluate",
    "evolver.locate",
    "evolver.recipe",
    "evolver.update",
    "evolver.work",
    "service.lora_kernels.rows",
    "service.scoring",
    "shared.archive_files",
    "shared.categories",
    "shared.manifest",
    "deploy.demo.trial",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0
