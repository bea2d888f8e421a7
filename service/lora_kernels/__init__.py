"""Multi-LoRA for vLLM on CPUs: a plugin of vLLM (entry point group `vllm.general_plugins`), using nothing of evorec's.

vLLM calls `register` in each of its processes. On GPUs, where EVOREC_LORA_KERNELS is "0", and beside a vLLM that it
does not fit, it changes nothing (and says why).
"""

from __future__ import annotations

import inspect
import logging
import os
from typing import Final

SWITCH: Final = "EVOREC_LORA_KERNELS"
WRAPPER: Final = "service.lora_kernels.wrapper.GroupedPunicaWrapper"
MADE_FOR: Final = "0.32."

log = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, so that its settings show and hide these records too


def register() -> None:
    """Let vLLM on this CPU make its LoRA products with `GroupedPunicaWrapper`. Harmless when repeated."""
    from vllm.platforms import current_platform

    if os.environ.get(SWITCH) == "0" or not current_platform.is_cpu():
        return
    misfit = why_not()
    if misfit:
        log.warning(
            "the LoRA kernels are not used: %s. vLLM's own are many times slower, and wrong for rows of the base model",
            misfit,
        )
        return
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: WRAPPER)


def why_not() -> str | None:
    """What keeps the kernels from working with the installed vLLM; None where they fit."""
    import vllm

    if not vllm.__version__.startswith(MADE_FOR):
        return f"they were made for vLLM {MADE_FOR}x, and this is {vllm.__version__}"
    try:
        return _other_signature()
    except (ImportError, AttributeError) as error:  # raised further, it would end vLLM's process
        return f"they do not load beside this vLLM: {error}"


def _other_signature() -> str | None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from service.lora_kernels.wrapper import GroupedPunicaWrapper

    for name, method in vars(GroupedPunicaWrapper).items():
        stock = getattr(PunicaWrapperCPU, name, None)
        if not inspect.isfunction(method) or not inspect.isfunction(stock):
            continue
        theirs, ours = inspect.signature(stock).parameters, inspect.signature(method).parameters
        if list(theirs) != list(ours):
            return f"PunicaWrapperCPU.{name} takes {list(theirs)} here, not {list(ours)}"
    return None
