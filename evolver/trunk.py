"""Parts of a pass through the decoder blocks, exactly: what need not be computed again, or not at all.

With x the hidden states that enter block l and f the answer position of a prompt,

    h = blocks[l:](blocks[:l](embed(ids)))          blocks[:l] never change while only layers >= l train
    p = softmax(W_labels norm(h[f]))                of the last block, only row f of what follows attention counts

No model's forward is copied: blocks that are left out are replaced by ones that pass on what they are given. So the
others keep their number (some models attend differently in each), and masks and rotary positions are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
import torch
from torch import Tensor, nn

from shared.errors import InvalidInput

if TYPE_CHECKING:
    from peft import PeftModel

log = structlog.get_logger(__name__)

_PROBE = (2, 4)  # prompts, tokens


def decoder_layers(model: PeftModel) -> nn.ModuleList:
    """The decoder blocks, in order."""
    layers: nn.ModuleList = model.get_base_model().model.layers
    return layers


def run_trunk(model: PeftModel, x: Tensor) -> Tensor:
    """The last block's normalised output, computed in the model's `compute_dtype`.

    x: token ids [B, T], or what enters the first block [B, T, d] -> [B, T, d] float32
    """
    inputs = {"inputs_embeds" if x.is_floating_point() else "input_ids": x}
    with torch.autocast(x.device.type, model.compute_dtype, enabled=model.compute_dtype != torch.float32):
        hidden: Tensor = model.get_base_model().model(**inputs, use_cache=False).last_hidden_state
    return hidden.float()


def entering_block(model: PeftModel, ids: Tensor, block: int) -> Tensor:
    """The hidden states that enter a block.  ids: [B, T] -> [B, T, d] float32"""
    with _blocks(model, range(block), normalised=False):
        return run_trunk(model, ids)


def answer_states(model: PeftModel, x: Tensor, answer: Tensor, *, block: int = 0) -> Tensor:
    """The normalised hidden state at each prompt's answer position.

    x: token ids [B, T], or with `block` what enters that block [B, T, d]; answer: [B] -> [B, d] float32
    """
    rows = torch.arange(len(answer), device=answer.device)
    with _blocks(model, range(block, len(decoder_layers(model)))), _at_answer(model, answer):
        return run_trunk(model, x)[rows, answer]


def has_parts(model: PeftModel) -> bool:
    """Whether these parts give what the whole pass gives: tried on a few tokens, in float32.

    They do not where a model scales what it is given as embeddings, hands its blocks more than the hidden states, or
    names its modules otherwise; such a model is run as a whole, and the log says so.
    """
    ids = _probe(model)
    answer = torch.full((_PROBE[0],), _PROBE[1] - 1, device=model.device)
    half = max(1, len(decoder_layers(model)) // 2)
    try:
        with torch.no_grad():
            whole = run_trunk(model, ids)[:, -1]
            parts = answer_states(model, entering_block(model, ids, half), answer, block=half)
        same = parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # another model's own code
        log.warning("model_runs_as_a_whole", model=type(model.get_base_model()).__name__, reason=str(error))
        return False
    if not same:
        log.warning("model_runs_as_a_whole", model=type(model.get_base_model()).__name__, reason="parts differ")
    return same


@torch.no_grad()
def require_plain_logits(model: PeftModel) -> None:
    """Raise `InvalidInput` where a model's logits are not W h: they are scaled or capped in some families (Cohere,
    Gemma 2, Granite), and what is learned here would not be what the engine answers. Tried as `has_parts` is.
    """
    base, ids = model.get_base_model(), _probe(model)
    theirs = base(input_ids=ids, use_cache=False).logits[:, -1]  # [B, V]
    ours = run_trunk(model, ids)[:, -1] @ base.lm_head.weight.T
    if not torch.allclose(ours.log_softmax(-1), theirs.log_softmax(-1), rtol=1e-3, atol=1e-2):
        raise InvalidInput(
            f"{type(base).__name__} scales or caps its logits, which training does not follow: choose another base "
            "for EVOREC_BASE_MODEL."
        )


def _probe(model: PeftModel) -> Tensor:
    return torch.arange(_PROBE[0] * _PROBE[1], device=model.device).reshape(_PROBE)


class _PassOn(nn.Module):
    """Stands where a block is left out."""

    def forward(self, hidden_states: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        return hidden_states


@contextmanager
def _blocks(model: PeftModel, kept: range, *, normalised: bool = True) -> Iterator[None]:
    """Leave out all decoder blocks but some, and the last normalisation where it is not wanted."""
    trunk = model.get_base_model().model
    blocks, norm = trunk.layers, trunk.norm
    trunk.layers = nn.ModuleList([block if i in kept else _PassOn() for i, block in enumerate(blocks)])
    if not normalised:
        trunk.norm = _PassOn()
    try:
        yield
    finally:
        trunk.layers, trunk.norm = blocks, norm


class _AtAnswer(nn.Module):
    """A module that works on each token alone, applied to one token of each prompt; the others' outputs are zero."""

    def __init__(self, module: nn.Module, answer: Tensor) -> None:
        super().__init__()
        self._module, self._answer = module, answer

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d_in] -> [B, T, d_out]"""
        rows = torch.arange(len(x), device=x.device)
        y: Tensor = self._module(x[rows, self._answer][:, None])[:, 0]
        return y.new_zeros(*x.shape[:2], y.shape[-1]).index_put((rows, self._answer), y)


@contextmanager
def _at_answer(model: PeftModel, answer: Tensor) -> Iterator[None]:
    """Let what follows attention in the last block (three quarters of its multiplications) work at the answer only."""
    last: Any = decoder_layers(model)[-1]
    attention, projection, mlp = last.self_attn, last.self_attn.o_proj, last.mlp
    attention.o_proj, last.mlp = _AtAnswer(projection, answer), _AtAnswer(mlp, answer)
    try:
        yield
    finally:
        attention.o_proj, last.mlp = projection, mlp
