from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.verify import BaseShape, check_tensors, check_version
from shared.errors import InvalidArtifact
from tests.factories import manifest
from tests.tiny_base import CONFIG, RANK, adapter_shapes, write_adapter

BASE = BaseShape.from_config(CONFIG, "0" * 64)
Shapes = dict[str, tuple[int, ...]]


def test_the_adapters_of_the_base_pass(tmp_path: Path) -> None:
    check_tensors(adapter_shapes(), RANK, BASE)
    check_version(write_adapter(tmp_path / "a", 1, tmp_path), manifest(), BASE, max_rank=16)


def _first(shapes: Shapes, side: str) -> str:
    return next(name for name in shapes if f"lora_{side}" in name)


def _smaller_model(shapes: Shapes) -> Shapes:
    return {name: tuple(size // 2 if size > RANK else size for size in shape) for name, shape in shapes.items()}


def _without_b(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if name != _first(shapes, "B")}


def _deeper_model(shapes: Shapes) -> Shapes:
    return {**shapes, **{name.replace("layers.0", "layers.9"): shape for name, shape in shapes.items()}}


def _embeddings(shapes: Shapes) -> Shapes:
    return {**shapes, "base_model.model.model.embed_tokens.lora_A.weight": (RANK, 512)}


@pytest.mark.parametrize("change", [_smaller_model, _without_b, _deeper_model, _embeddings, lambda shapes: {}])
def test_tensors_of_another_model_are_refused(change: Callable[[Shapes], Shapes]) -> None:
    with pytest.raises(InvalidArtifact):
        check_tensors(change(dict(adapter_shapes())), RANK, BASE)


def test_another_rank_is_refused() -> None:
    with pytest.raises(InvalidArtifact, match="base model needs"):
        check_tensors(adapter_shapes(), 8, BASE)


def test_the_manifest_has_to_fit(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, tmp_path)
    for version, max_rank, words in (
        (manifest(base_model_hash="1" * 64), 16, "made for base model"),
        (manifest(), 8, "EVOREC_LORA_RANK"),
        (manifest(lora_rank=8), 16, "the manifest 8"),
    ):
        with pytest.raises(InvalidArtifact, match=words):
            check_version(folder, version, BASE, max_rank)


@pytest.mark.parametrize("config", ["", "[]", "{}", json.dumps({"r": "16"})])
def test_a_broken_configuration_is_refused(tmp_path: Path, config: str) -> None:
    folder = write_adapter(tmp_path / "a", 1, tmp_path)
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(InvalidArtifact):
        check_version(folder, manifest(), BASE, max_rank=16)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1, tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InvalidArtifact, match="cannot be read"):
        check_version(folder, manifest(), BASE, max_rank=16)
