"""The base model with a LoRA (arXiv 2106.09685) on every linear of its decoder blocks, one layer's parameters at a
time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog
import torch
from torch import Tensor, nn

from evolver.attention import attend_blockwise
from evolver.trunk import has_parts, require_plain_logits
from shared.base_model import base_model_folder
from shared.config import Settings
from shared.precision import Dtype, cpu_dtype

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

log = structlog.get_logger(__name__)

ADAPTER_CONFIG_FILE = "adapter_config.json"
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPU_ROOM = 4  # free memory that makes a GPU a choice, in sizes of the base: its weights, merged ones, activations
GPU_ROOM_LEAST = 4 * 2**30  # bytes: of a small base batches of scores, and the retriever's training, take more
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def load_with_lora(settings: Settings, parent: Path | None, *, seed: int) -> PeftModel:
    """The base model in float32 with the parent version's LoRA, or a fresh one (B = 0: it changes nothing yet), on the
    device that trains.
    """
    # PEFT and transformers take seconds to import: whoever only computes with tensors does without.
    from peft.utils import load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base_model_folder(settings.base_model), dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    model = add_lora(base, settings, seed=seed, like=parent)
    if parent is not None:
        set_peft_model_state_dict(model, load_peft_weights(str(parent), device="cpu"))
    return model


def add_lora(base: PreTrainedModel, settings: Settings, *, seed: int, like: Path | None = None) -> PeftModel:
    """A fresh LoRA on a base in float32, ready to be asked and trained; `like`: folder of a version whose rank and
    alpha it takes, in place of the settings'.

    The model also says what its products are computed in (`compute_dtype`) and whether it can be run in parts
    (`has_parts`). Raises `InvalidInput` for a base whose logits are more than one product.
    """
    from peft import LoraConfig, get_peft_model

    rank = settings.lora_rank
    made = json.loads((like / ADAPTER_CONFIG_FILE).read_bytes()) if like else {"r": rank, "lora_alpha": 2 * rank}
    torch.manual_seed(seed)
    config = LoraConfig(
        r=made["r"],
        lora_alpha=made["lora_alpha"],
        lora_dropout=0.0,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    device = train_device(settings, sum(parameter.nbytes for parameter in base.parameters()))
    model: PeftModel = get_peft_model(base, config).to(device).eval()
    model.compute_dtype = torch.float32
    require_plain_logits(model)
    model.has_parts = has_parts(model)
    # Master weights stay float32; the trunk computes in what the engine computes in.
    model.compute_dtype = train_dtype(device, settings.dtype)
    if device.type == "cpu" and model.compute_dtype == torch.bfloat16:
        attend_blockwise(base)
    # The artifact must not name a folder of the machine that trained it.
    model.peft_config["default"].base_model_name_or_path = None
    return model


def train_device(settings: Settings, base_bytes: int) -> torch.device:
    """Where the evolver computes, with a base of that size in float32.

    Left open, it is a GPU that has room: an engine on the same one takes nearly all of its memory for itself. Raises
    `RuntimeError` for a device that this build of torch does not know.
    """
    if settings.train_device != "auto":
        return torch.device(settings.train_device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    free, needed = torch.cuda.mem_get_info()[0], max(GPU_ROOM * base_bytes, GPU_ROOM_LEAST)
    if free < needed:
        log.warning("gpu_has_no_room", free=free, needed=needed, remedy="EVOREC_TRAIN_DEVICE names another")
        return torch.device("cpu")
    return torch.device("cuda")


def train_dtype(device: torch.device, wanted: Dtype | Literal["auto"]) -> torch.dtype:
    """What products are computed in. Never float16: it has too little range for gradients."""
    if device.type == "cpu":
        dtype: torch.dtype = getattr(torch, cpu_dtype("auto" if wanted == "float16" else wanted))
        return dtype
    return torch.float32 if wanted == "float32" else torch.bfloat16


def lora_parameters(model: PeftModel) -> Iterator[tuple[int, str, nn.Parameter]]:
    """(layer, name, parameter) of every LoRA matrix."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            found = _LAYER.search(name)
            if found is None:
                raise ValueError(f"LoRA parameter {name} belongs to no decoder layer")
            yield int(found[1]), name, parameter


def train_only(model: PeftModel, layers: Collection[int]) -> list[nn.Parameter]:
    """Let the LoRA of these layers require gradients, and nothing else; returns those parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    chosen = [parameter for layer, _, parameter in lora_parameters(model) if layer in layers]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def lora_state(model: PeftModel, layers: Collection[int]) -> dict[str, Tensor]:
    """A copy of the LoRA matrices of some layers."""
    return {name: parameter.detach().clone() for layer, name, parameter in lora_parameters(model) if layer in layers}


@torch.no_grad()
def restore_lora(model: PeftModel, state: dict[str, Tensor]) -> None:
    """Put copied LoRA matrices back."""
    for _, name, parameter in lora_parameters(model):
        if name in state:
            parameter.copy_(state[name])


def save_lora(model: PeftModel, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`."""
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
