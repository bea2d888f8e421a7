"""The base model with a LoRA (arXiv 2106.09685) on every linear of its decoder blocks, one layer's parameters at a
time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shared.base_model import base_model_folder
from shared.config import Settings
from shared.precision import cpu_dtype

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def load_with_lora(settings: Settings, parent: Path | None, *, seed: int) -> PeftModel:
    """The base model in float32 with the parent version's LoRA, or a fresh one (B = 0: it changes nothing yet)."""
    # PEFT and transformers take seconds to import: whoever only computes with tensors does without.
    from peft import LoraConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base_model_folder(settings.base_model), dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        lora_dropout=0.0,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    if parent is not None:
        set_peft_model_state_dict(model, load_peft_weights(str(parent), device="cpu"))
    # Master weights stay float32; the trunk computes in what the engine computes in on this CPU. float16 has too little
    # range for gradients.
    model.compute_dtype = getattr(torch, cpu_dtype("auto" if settings.dtype == "float16" else settings.dtype))
    # The artifact must not name a folder of the machine that trained it.
    model.peft_config["default"].base_model_name_or_path = None
    return model.eval()


def decoder_layers(model: PeftModel) -> nn.ModuleList:
    """The decoder blocks, in order."""
    layers: nn.ModuleList = model.get_base_model().model.layers
    return layers


def run_trunk(model: PeftModel, ids: Tensor) -> Tensor:
    """The last block's normalised output, computed in the model's `compute_dtype`.  ids: [B, T] -> [B, T, d] float32"""
    with torch.autocast(ids.device.type, model.compute_dtype, enabled=model.compute_dtype != torch.float32):
        hidden: Tensor = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden.float()


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
