"""The files of a version in the benchmark: those of an adapter version, and its blend where a manifest would be."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from evolver.lora import load_with_lora
from evolver.scoring import Version
from shared.config import Settings
from shared.forgotten import ForgottenSet
from shared.ranking import Blends
from shared.retriever import Retriever, RetrieverIndex
from shared.types import Item

BLEND_FILE = "blend.json"


def save_blend(blends: Blends, folder: Path) -> None:
    """Write `blend.json`."""
    (folder / BLEND_FILE).write_text(blends.model_dump_json() + "\n")


def load_blend(folder: Path) -> Blends:
    """Read `blend.json`."""
    return Blends.model_validate_json((folder / BLEND_FILE).read_bytes())


def load_version(folder: Path, items: Sequence[Item], settings: Settings) -> Version:
    """The version of a folder over a catalog."""
    model = load_with_lora(settings, folder, seed=settings.seed)
    return Version(model, RetrieverIndex(Retriever.load(folder), items), ForgottenSet.load(folder))


def copy_version(folder: Path, out: Path) -> None:
    """The same files in another folder, which exists."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
