"""Whether an adapter's files fit its manifest and the base model that this process serves.

vLLM loads an adapter made for another model without a word and answers garbage, so nothing reaches the engine
before these checks. (The files' checksums are the artifact store's check.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from shared.errors import InvalidArtifact
from shared.manifest import Manifest

_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<module>\w+)\.lora_(?P<side>[AB])\.weight"
)


@dataclass(frozen=True, slots=True)
class BaseShape:
    """What LoRA tensors of a base model have to look like. `linears`: module -> (in, out) features."""

    hash: str
    n_layers: int
    linears: Mapping[str, tuple[int, int]]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], base_hash: str) -> Self:
        """From the base model's `config.json` (Llama, Qwen and their kind)."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        attention, keys = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
        inner = config["intermediate_size"]
        linears = {
            "q_proj": (hidden, attention),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (attention, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        return cls(base_hash, config["num_hidden_layers"], linears)


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, from the file's header alone. InvalidArtifact where it is no safetensors file."""
    try:
        with safe_open(str(file), framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidArtifact(f"{file.name} cannot be read: {error}") from error


def check_tensors(shapes: Mapping[str, tuple[int, ...]], rank: int, base: BaseShape) -> None:
    """A is [rank, in], B is [out, rank], both sides of every pair are there, in layers and modules of the base."""
    if not shapes:
        raise InvalidArtifact("the adapter holds no tensors")
    for name, shape in shapes.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match["module"] not in base.linears or int(match["layer"]) >= base.n_layers:
            raise InvalidArtifact(f"tensor {name} has no place in the base model")
        features_in, features_out = base.linears[match["module"]]
        expected = (rank, features_in) if match["side"] == "A" else (features_out, rank)
        if shape != expected:
            raise InvalidArtifact(f"tensor {name} is {list(shape)}, the base model needs {list(expected)}")
        other = "B" if match["side"] == "A" else "A"
        if name.replace(f"lora_{match['side']}", f"lora_{other}") not in shapes:
            raise InvalidArtifact(f"tensor {name} lacks its lora_{other}")


def check_finite(file: Path) -> None:
    """InvalidArtifact where a weight is NaN or infinite: one such adapter answers nonsense without a word."""
    with safe_open(str(file), framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if not bool(tensors.get_tensor(name).isfinite().all()):
                raise InvalidArtifact(f"tensor {name} holds numbers that are not finite")


def check_version(folder: Path, manifest: Manifest, base: BaseShape, max_rank: int) -> None:
    """InvalidArtifact, with what does not fit, unless this process may serve the version."""
    if manifest.base_model_hash != base.hash:
        raise InvalidArtifact(
            f"made for base model {manifest.base_model!r} ({manifest.base_model_hash[:12]}), "
            f"this process serves {base.hash[:12]}"
        )
    if manifest.lora_rank > max_rank:
        raise InvalidArtifact(f"LoRA rank {manifest.lora_rank} is above EVOREC_LORA_RANK={max_rank}")
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank = config["r"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArtifact(f"adapter_config.json cannot be read: {error!r}") from error
    if rank != manifest.lora_rank:
        raise InvalidArtifact(f"adapter_config.json says rank {rank}, the manifest {manifest.lora_rank}")
    weights = folder / "adapter_model.safetensors"
    check_tensors(tensor_shapes(weights), manifest.lora_rank, base)
    check_finite(weights)
