"""LoRA as part of the weights: W' x with W' = W + (alpha / r) B A in place of W x + (alpha / r) B (A x)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evolver.trunk import decoder_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

MERGED_MIB = 4096  # most that merged copies of the weights may take
COMPOSED_UP_TO = 2**18  # weights of a linear; measured with a quarter of that: larger ones keep a GPU busy


@contextmanager
def merged(model: PeftModel, layers: Collection[int] | None = None) -> Iterator[None]:
    """While their LoRA does not change, let some layers (None: all) have W' for their weights: one product where there
    were three.

    The weights themselves are set aside and put back, not computed back, so they return bit for bit. W' is rounded to
    what products are computed in, as W would be in each of them. Where the copies would take more than `MERGED_MIB`,
    nothing is merged (such a base's own products are so large that LoRA adds little to them).
    """
    linears, dtype = _lora_linears(model, layers), model.compute_dtype
    if sum(linear.get_base_layer().weight.numel() for linear in linears) * dtype.itemsize > MERGED_MIB * 2**20:
        linears = []
    kept = [linear.get_base_layer().weight.data for linear in linears]
    try:
        # Plain tensors: one made in inference mode could not take part in training.
        with torch.inference_mode(False), torch.no_grad():
            for linear, weight in zip(linears, kept, strict=True):
                linear.get_base_layer().weight.data = (weight + linear.get_delta_weight("default")).to(dtype)
                linear.merged_adapters.append("default")
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.get_base_layer().weight.data = weight
            linear.merged_adapters.clear()


@contextmanager
def composed(model: PeftModel, layers: Collection[int]) -> Iterator[None]:
    """While their LoRA trains, let some layers make W' anew in each pass, where that pays: the same outputs and
    gradients of A and B, in fewer and larger products, at the price of a gradient of W' (d_in d_out multiplications a
    token).
    """
    linears = _lora_linears(model, layers)
    weights = max((linear.get_base_layer().weight.numel() for linear in linears), default=0)
    if not composing_pays(model.device, model.compute_dtype, weights):
        linears = []
    try:
        for linear in linears:
            linear.forward = partial(_composed_product, linear)
        yield
    finally:
        for linear in linears:
            del linear.forward


def composing_pays(device: torch.device, dtype: torch.dtype, weights: int) -> bool:
    """Where a GPU waits for a small base's kernels (ADR 0027); on a CPU both ways take the same time. `weights`: how
    many the largest linear has.

    >>> gpu, cpu = torch.device("cuda"), torch.device("cpu")
    >>> composing_pays(gpu, torch.float32, 192 * 384), composing_pays(cpu, torch.float32, 192 * 384)
    (True, False)
    >>> composing_pays(gpu, torch.bfloat16, 192 * 384), composing_pays(gpu, torch.float32, 3584 * 18944)
    (False, False)
    """
    return device.type == "cuda" and dtype == torch.float32 and weights <= COMPOSED_UP_TO


def _composed_product(linear: LoraLayer, x: Tensor) -> Tensor:
    """x: [..., d_in] -> [..., d_out]"""
    base = linear.get_base_layer()
    if linear.merged:  # for scores in between
        merged_product: Tensor = base(x)
        return merged_product
    a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
    return nn.functional.linear(x, torch.addmm(base.weight, b, a, alpha=linear.scaling["default"]), base.bias)


def _lora_linears(model: PeftModel, layers: Collection[int] | None) -> list[LoraLayer]:
    """The linears with LoRA of some layers that are not merged yet."""
    from peft.tuners.lora import LoraLayer

    chosen = decoder_layers(model) if layers is None else [decoder_layers(model)[layer] for layer in layers]
    modules = (module for block in chosen for module in block.modules())
    return [module for module in modules if isinstance(module, LoraLayer) and not module.merged]
