"""What is minimised: the answer, and a score of each candidate in the middle of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from evolver.pretrain.config import PretrainConfig
from evolver.pretrain.sampler import Batch
from shared.precision import cpu_dtype


class RankingLoss(nn.Module):
    """Cross-entropy over the prompt's labels at the answer position, plus the auxiliary head's over the candidates,
    plus the answer's against the auxiliary head's distribution.
    """

    def __init__(self, model: Qwen3ForCausalLM, config: PretrainConfig) -> None:
        super().__init__()
        self.model = model
        self.auxiliary = nn.Linear(config.hidden_size, 1, bias=False)
        self._config = config
        self.trunk = torch.compile(model.model, dynamic=False) if config.compile else model.model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Loss and its parts for a batch; the trunk runs in the processor's fast format, the losses in float32."""
        device = self.model.device
        batch = batch.to(device)
        rows = torch.arange(len(batch.ids), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_in_bfloat16(device)):
            out = self.trunk(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
        answer = out.last_hidden_state[rows, batch.last].float()
        labels = self.model.lm_head.weight[batch.ids[rows[:, None], batch.labels]]  # [B, C, d]
        logits = torch.einsum("bd,bcd->bc", answer, labels)
        middle = out.hidden_states[self._config.auxiliary_layer][rows[:, None], batch.labels].float()
        scores = self.auxiliary(nn.functional.rms_norm(middle, middle.shape[-1:])).squeeze(-1)
        loss = nn.functional.cross_entropy(logits, batch.target)
        auxiliary = nn.functional.cross_entropy(scores, batch.target)
        distillation = nn.functional.cross_entropy(logits, scores.detach().softmax(-1))
        parts = {
            "loss": loss.item(),
            "hr@1": (logits.argmax(-1) == batch.target).float().mean().item(),
            "auxiliary_hr@1": (scores.argmax(-1) == batch.target).float().mean().item(),
        }
        weights = self._config
        return loss + weights.auxiliary_weight * auxiliary + weights.distillation_weight * distillation, parts


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16, and does not emulate it."""
    return device.type != "cpu" or cpu_dtype("auto") == "bfloat16"
