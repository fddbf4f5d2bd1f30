"""Next-token losses, alone and mixed with the divergence from a teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

from cascade_engine.training.batches import Batch

SMALLEST_TAIL = 1e-6


def forward_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits [rows, length, vocab] where position t predicts batch.tokens[:, t].

    A LLaMA model's first position has no prediction and its weight is 0, so its logits are a copy.
    """
    if batch.inputs is not None:
        mask = (batch.inputs != model.config.pad_token_id).long()
        labels_in = batch.tokens.roll(1, dims=1)
        labels_in[:, 0] = model.config.decoder_start_token_id
        return model(
            input_ids=batch.inputs,
            attention_mask=mask,
            decoder_input_ids=labels_in,
            use_cache=False,
        ).logits
    logits = model(input_ids=batch.tokens, use_cache=False).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


def loss_of(
    model: Any, batch: Batch, teacher: Any = None, teacher_share: float = 0.0
) -> torch.Tensor:
    """Mean weighted loss per token in nats, cross entropy; mixed with the forward KL from a teacher
    by `teacher_share`: from the whole distributions of the model `teacher`, or from the most likely
    tokens that the batch holds, where it holds them."""
    keep = batch.weights > 0
    weights = batch.weights[keep]
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward_logits(model, batch)[keep]
    log_probs = functional.log_softmax(logits.float(), dim=-1)
    losses = functional.nll_loss(log_probs, batch.tokens[keep], reduction="none")
    if teacher is not None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            target = functional.log_softmax(forward_logits(teacher, batch)[keep].float(), dim=-1)
        divergence = functional.kl_div(log_probs, target, reduction="none", log_target=True).sum(-1)
        losses = (1 - teacher_share) * losses + teacher_share * divergence
    elif batch.top_ids is not None and batch.top_logprobs is not None:
        ids, target = batch.top_ids[keep], batch.top_logprobs[keep]
        shares = teacher_share * (target[:, 0] > -torch.inf).float()
        losses = (1 - shares) * losses + shares * top_divergence(log_probs, ids, target)
    return (losses * weights).sum() / weights.sum()


def top_divergence(
    log_probs: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """KL(teacher || student) [tokens] in nats, over the teacher's most likely tokens and one bin
    for all others, which bounds the whole divergence from below.

    `log_probs` float32 [tokens, vocab] of the student; `top_ids`, `top_logprobs` [tokens, k].
    """
    probs = top_logprobs.exp()
    student = log_probs.gather(1, top_ids)
    known = probs > 0
    gaps = torch.where(known, top_logprobs, 0.0) - student
    divergence = (probs * gaps).sum(-1)
    rest = (1 - probs.sum(-1)).clamp(min=0.0)
    student_rest = (1 - (student.exp() * known).sum(-1)).clamp(min=SMALLEST_TAIL)
    return divergence + torch.special.xlogy(rest, rest) - rest * student_rest.log()
