"""Which base model this is: its folder, its shape, and the hash that adapters are bound to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shared.errors import NotFound


@dataclass(frozen=True, slots=True)
class BaseModelInfo:
    """Shape of a decoder-only transformer, from its `config.json`."""

    n_layers: int
    hidden_size: int
    vocab_size: int


def base_model_folder(base_model: str) -> Path:
    """The local folder of a base model; a hub id is downloaded (safetensors only) into Hugging Face's cache.

    Raises `NotFound` where neither a folder nor a hub model of that name can be had.
    """
    folder = Path(base_model)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download  # only a hub id needs it

        return Path(snapshot_download(base_model, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        raise NotFound(
            f"EVOREC_BASE_MODEL={base_model!r} is no folder, and no model hub answered for it "
            f"({type(error).__name__}: {error}). "
            "Name a folder with config.json, tokenizer.json and *.safetensors, or a hub id reachable from here."
        ) from error


def base_model_info(base_model: str) -> BaseModelInfo:
    """Shape of the base model, read from its configuration (no weights are loaded)."""
    config = json.loads((base_model_folder(base_model) / "config.json").read_text())
    return BaseModelInfo(
        n_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
    )


def base_model_hash(base_model: str) -> str:
    """sha256 over the names and contents of config, tokenizer and weights: an adapter answers only on the base it was
    made on.
    """
    return _hash_of(base_model_folder(base_model).resolve())


@lru_cache(maxsize=8)
def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", folder / "tokenizer.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
