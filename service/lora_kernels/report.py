"""What vLLM's workers really use: a plugin that fails to load is only logged, so the service asks."""

from __future__ import annotations

from typing import Any


class KernelReport:
    """Mixed into vLLM's worker (`worker_extension_cls`); called through `collective_rpc`."""

    model_runner: Any

    def lora_kernels(self) -> list[str]:
        """The classes that make this worker's LoRA products, one for each part of the model."""
        wrappers = self.model_runner.lora_manager._adapter_manager.punica_wrapper_mapping.values()
        return [f"{type(wrapper).__module__}.{type(wrapper).__name__}" for wrapper in wrappers]
